//! What the control thread asks of the thread behind a queue.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::chain::Indirect;
use crate::memory::QueueMemory;
use crate::virtqueue::Virtqueue;

/// A queue that is to start.
#[derive(Debug)]
pub struct Start {
    pub ring: Virtqueue,
    pub memory: Arc<QueueMemory>,
    pub indirect: Indirect,
    /// Written to by the guest when there is something to do; without it the ring is polled.
    pub kick: Option<Arc<OwnedFd>>,
    pub call: Option<Arc<File>>,
    pub error: Option<Arc<File>>,
}

/// What the control thread wants of a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve this queue. The worker serves none.
    Start(Box<Start>),
    /// Interrupt the guest through this descriptor from now on.
    SetCall(Option<Arc<File>>),
    /// Take no more requests, finish those in flight, let go of the guest's memory; then answer with the index of the
    /// next chain in the available ring.
    Stop(Sender<u16>),
}
