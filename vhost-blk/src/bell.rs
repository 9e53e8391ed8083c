//! Waking a thread that sleeps in its ring or in `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd that one thread watches and any thread rings. Clones are the same bell.
#[derive(Clone, Debug)]
pub struct Bell {
    event: Arc<OwnedFd>,
}

impl Bell {
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self { event: Arc::new(EventFd::from_flags(flags)?.into()) })
    }

    /// Wakes whoever watches.
    pub fn ring(&self) {
        // It fails only when the counter is full, and then it is readable already.
        let _ = nix::unistd::write(&self.event, &1u64.to_ne_bytes());
    }

    /// What to watch.
    pub fn watched(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.event)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
