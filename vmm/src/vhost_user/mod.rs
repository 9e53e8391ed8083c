//! The frontend's side of vhost-user: a device whose queues another program serves.
//!
//! The backend gets the guest's memory, and for each queue the eventfds that KVM knows. From then on both talk to each other
//! directly. A thread per device keeps the conversation: it starts and stops the queues, and when the backend dies it waits
//! for the next one and lets that resume, however long it takes.

mod backend;
mod indices;
mod link;
mod notices;
mod session;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub use backend::Backend;

/// A queue that is to be served.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Its number.
    pub index: usize,
    /// Entries, a power of two.
    pub size: u16,
    /// Where the descriptors are in the guest's memory.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
    /// What the guest signals.
    pub kick: Arc<EventFd>,
    /// What interrupts the guest.
    pub call: Arc<EventFd>,
}
