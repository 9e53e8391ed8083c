//! What the driver tells of one queue.

use std::sync::Arc;

use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;

use super::NO_VECTOR;
use crate::vhost_user::Ring;

/// Entries of a queue, unless the driver wants fewer.
pub const QUEUE_SIZE_MAX: u16 = 256;

/// See the module.
#[derive(Debug)]
pub struct Queue {
    /// Entries, a power of two.
    pub size: u16,
    /// Whether the driver has finished telling.
    pub enabled: bool,
    /// Its vector.
    pub vector: u16,
    /// Where the descriptors are in the guest's memory.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
    /// What the guest signals, without this program.
    pub kick: Arc<EventFd>,
    /// What interrupts the guest, without this program.
    pub call: Arc<EventFd>,
}

impl Queue {
    /// A queue that nothing is known of.
    pub fn new() -> Result<Self> {
        Ok(Self {
            size: QUEUE_SIZE_MAX,
            enabled: false,
            vector: NO_VECTOR,
            descriptors: 0,
            available: 0,
            used: 0,
            kick: Arc::new(event()?),
            call: Arc::new(event()?),
        })
    }

    /// Forgets what the driver has told. The vector is left to whoever knows what is attached to it.
    pub fn reset(&mut self) {
        self.size = QUEUE_SIZE_MAX;
        self.enabled = false;
        (self.descriptors, self.available, self.used) = (0, 0, 0);
        // What was signalled was meant for what has ended.
        let _ = (self.kick.read(), self.call.read());
    }

    /// Takes over the size that the driver wants, if it is one.
    pub fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= QUEUE_SIZE_MAX {
            self.size = size;
        }
    }

    /// What whoever serves it has to know; `None` if it is not to be served.
    pub fn ring(&self, index: usize) -> Option<Ring> {
        self.enabled.then(|| Ring {
            index,
            size: self.size,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
            kick: Arc::clone(&self.kick),
            call: Arc::clone(&self.call),
        })
    }
}

/// An eventfd on which nobody waits by reading.
pub fn event() -> Result<EventFd> {
    Ok(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?)
}
