//! The listening socket: made at a path or inherited, accepting one frontend after the other, removed at the end.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockname, getsockopt, socket, sockopt,
};

use crate::stop::Stop;

/// How long to wait before accepting again where the host is short of something.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A listening UNIX socket.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    /// The socket file that we made.
    file: Option<SocketFile>,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: whether the file is still ours.
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`, in place of a socket file that nobody listens on any more.
    pub fn bind(path: &Path) -> Result<Self> {
        Self::bind_unnamed(path).with_context(|| path.display().to_string())
    }

    fn bind_unnamed(path: &Path) -> Result<Self> {
        make_room(path)?;
        let listener = UnixListener::bind(path).map_err(said("cannot make the socket"))?;
        let metadata = fs::symlink_metadata(path).map_err(said("cannot find the socket again"))?;
        let identity = (metadata.dev(), metadata.ino());
        let file = SocketFile { path: path.to_owned(), identity };
        Self::new(listener, Some(file))
    }

    /// Listens on a socket that somebody else made.
    pub fn adopt(listener: UnixListener) -> Result<Self> {
        if getsockname::<UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(&listener)).is_err() {
            bail!("not a UNIX socket");
        }
        if getsockopt(&listener, sockopt::SockType)? != SockType::Stream {
            bail!("not a stream socket");
        }
        if !getsockopt(&listener, sockopt::AcceptConn)? {
            bail!("not a listening socket");
        }
        Self::new(listener, None)
    }

    fn new(listener: UnixListener, file: Option<SocketFile>) -> Result<Self> {
        listener.set_nonblocking(true).map_err(said("cannot set up the socket"))?;
        Ok(Self { listener, file })
    }

    /// The next frontend; `None` once `stop` is requested.
    pub fn accept(&self, stop: &Stop) -> Result<Option<UnixStream>> {
        loop {
            let mut watched = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("cannot wait for a frontend"),
            }
            if stop.is_requested() {
                return Ok(None);
            }
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(e) if is_passing(&e) => {}
                Err(e) => {
                    tracing::warn!(
                        "cannot accept a frontend, will try again: {}",
                        qcow::error::reason(&e)
                    );
                    wait(stop, RETRY_DELAY);
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(file) = &self.file else { return };
        let now = fs::symlink_metadata(&file.path).map(|m| (m.dev(), m.ino()));
        // Somebody may have put another one in its place.
        if now.is_ok_and(|now| now == file.identity)
            && let Err(e) = fs::remove_file(&file.path)
        {
            tracing::warn!(
                "{}: cannot remove the socket: {}",
                file.path.display(),
                qcow::error::reason(&e)
            );
        }
    }
}

/// Removes a socket file at `path` that nobody listens on.
fn make_room(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(said("cannot make the socket")(e)),
    };
    if !metadata.file_type().is_socket() {
        bail!("exists and is not a socket");
    }
    match try_connect(path) {
        Err(Errno::ECONNREFUSED) => {
            fs::remove_file(path).map_err(said("cannot remove the old socket"))
        }
        Err(Errno::ENOENT) => Ok(()),
        // A full backlog, too, belongs to somebody who listens.
        Ok(()) | Err(Errno::EAGAIN) => bail!("the socket is taken: another program listens on it"),
        Err(e) => bail!("the socket exists, and nobody can say whether it is in use: {}", e.desc()),
    }
}

fn try_connect(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&probe), &UnixAddr::new(path)?)
}

/// Whether the frontend just changed its mind.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

fn wait(stop: &Stop, delay: Duration) {
    let mut watched = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(delay).unwrap_or(PollTimeout::MAX);
    // Woken early, we only try again early.
    let _ = poll(&mut watched, timeout);
}

fn said(what: &'static str) -> impl FnOnce(io::Error) -> anyhow::Error {
    move |e| anyhow!("{what}: {}", qcow::error::reason(&e))
}
