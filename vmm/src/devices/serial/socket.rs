//! The client at the other end of a serial line on a socket.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use nix::sys::socket::{MsgFlags, send};
use qcow::sync::lock;

/// The client, if there is one. What is said while there is none is lost, and what one does not read in time, too: as on a
/// line that nobody listens to. The guest never waits.
#[derive(Clone, Debug, Default)]
pub struct Client(Arc<Mutex<Option<UnixStream>>>);

impl Client {
    /// From here on it is `stream`, whose other half is for what it says. The one before is sent away.
    pub fn connect(&self, stream: UnixStream) -> io::Result<impl Read> {
        let said = stream.try_clone()?;
        *lock(&self.0) = Some(stream);
        Ok(said)
    }

    /// There is none any more.
    pub fn disconnect(&self) {
        *lock(&self.0) = None;
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(stream) = &*lock(&self.0) {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            // It does not read, or has gone.
            let _ = send(stream.as_raw_fd(), bytes, flags);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
