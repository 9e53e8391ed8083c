//! Asking a disk to stop, from any thread and whatever it waits for.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use qcow::sync::lock;

use crate::bell::Bell;

/// Stops one disk. Clones stop the same disk.
#[derive(Clone, Debug)]
pub struct Stop {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    requested: AtomicBool,
    /// Readable once the stop is requested.
    bell: Bell,
    /// The frontend that is being served.
    connection: Mutex<Option<UnixStream>>,
}

impl Stop {
    /// A disk that is to run.
    pub fn new() -> io::Result<Self> {
        let bell = Bell::new()?;
        Ok(Self {
            inner: Arc::new(Inner {
                requested: AtomicBool::new(false),
                bell,
                connection: Mutex::new(None),
            }),
        })
    }

    /// Asks the disk to stop. A frontend that is being served is cut off, even in the middle of a message.
    pub fn request(&self) {
        self.inner.requested.store(true, Ordering::SeqCst);
        self.inner.bell.ring();
        if let Some(connection) = &*lock(&self.inner.connection) {
            hang_up(connection);
        }
    }

    pub fn is_requested(&self) -> bool {
        self.inner.requested.load(Ordering::SeqCst)
    }

    /// Cuts `connection` off when the stop is requested, as long as the guard lives.
    pub fn guard(&self, connection: UnixStream) -> ConnectionGuard<'_> {
        let mut slot = lock(&self.inner.connection);
        // Asked under the lock: a request before this saw no connection, one after it sees this one.
        if self.is_requested() {
            hang_up(&connection);
        }
        *slot = Some(connection);
        drop(slot);
        ConnectionGuard { stop: self }
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.bell.as_fd()
    }
}

/// A connection that a stop cuts off.
#[derive(Debug)]
pub struct ConnectionGuard<'a> {
    stop: &'a Stop,
}

impl Drop for ConnectionGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.stop.inner.connection) = None;
    }
}

fn hang_up(connection: &UnixStream) {
    // It fails only where the other side has hung up already.
    let _ = connection.shutdown(Shutdown::Both);
}
