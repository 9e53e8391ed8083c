//! What the frontend has told about one ring, and whether it is to run.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::virtqueue::RingAddresses;

/// How the guest says that there is something to do.
#[derive(Clone, Debug)]
pub enum Kick {
    /// Not told yet: the ring is not started.
    Unknown,
    /// Through this eventfd.
    Event(Arc<OwnedFd>),
    /// Not at all: the ring has to be looked at all the time.
    Polled,
}

/// One ring as the frontend describes it.
#[derive(Debug)]
pub struct RingSettings {
    /// Entries, a power of two.
    pub size: u16,
    /// The next chain to take, as an index of the available ring. Current only while the ring does not run.
    pub base: u16,
    pub addresses: Option<RingAddresses>,
    pub kick: Kick,
    pub call: Option<Arc<File>>,
    pub error: Option<Arc<File>>,
    pub enabled: bool,
    /// Whether a worker has it.
    pub running: bool,
}

impl RingSettings {
    /// A ring about which nothing is known.
    pub fn new(size: u16) -> Self {
        Self {
            size,
            base: 0,
            addresses: None,
            kick: Kick::Unknown,
            call: None,
            error: None,
            enabled: false,
            running: false,
        }
    }

    /// Where it lies, if it is known well enough to run and is to run.
    pub fn wanted(&self) -> Option<RingAddresses> {
        let started = self.enabled && !matches!(self.kick, Kick::Unknown);
        self.addresses.filter(|_| started)
    }
}
