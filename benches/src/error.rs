//! What can go wrong between this driver and a daemon.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vm_memory::GuestAddress;

use crate::request::Status;

/// Result of everything in this crate that talks to a daemon.
pub type Result<T> = std::result::Result<T, Error>;

/// Failure of a conversation, of a queue, or of one request. The messages contain their causes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket is missing, nobody listens on it, or the daemon serves somebody else.
    #[error("{path}: cannot connect: {cause}")]
    Connect {
        /// The daemon's socket.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The daemon refused a message, answered nonsense, or went away while answering.
    #[error("vhost-user message {message}: {cause}")]
    Protocol {
        /// Name of the message in the vhost-user specification.
        message: &'static str,
        /// Why.
        cause: vhost::Error,
    },
    /// The daemon lacks something this driver cannot do without.
    #[error("the daemon does not offer {0}")]
    NotOffered(&'static str),
    /// The daemon serves fewer queues than asked for.
    #[error("asked for {asked} queues, but the daemon serves at most {served}")]
    TooFewQueues {
        /// Queues wanted.
        asked: u16,
        /// Queues the daemon has.
        served: u64,
    },
    /// A system call failed.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        cause: io::Error,
    },
    /// An address outside the guest's memory.
    #[error("guest address {:#x} is outside the guest's memory", .0.0)]
    Address(GuestAddress),
    /// The guest's memory, or the part of it set aside for buffers, is full.
    #[error("guest memory is full: {wanted} more bytes wanted, {left} left")]
    MemoryFull {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes left.
        left: u64,
    },
    /// More descriptors are in flight than the queue holds.
    #[error("the queue is full: {wanted} descriptors wanted, {free} free")]
    QueueFull {
        /// Descriptors asked for.
        wanted: usize,
        /// Descriptors left.
        free: usize,
    },
    /// The daemon put a descriptor into the used ring that this driver never offered.
    #[error("the daemon returned descriptor {0}, which is not in flight")]
    StrayUsed(u32),
    /// Nothing came back in time. The request is still in flight.
    #[error("no completion within {0:?}")]
    Timeout(Duration),
    /// The daemon closed the connection.
    #[error("the daemon closed the connection")]
    Hangup,
    /// The request completed, and not with success.
    #[error("the request completed with status {0:?}")]
    Status(Status),
    /// What was asked for makes no sense for this disk.
    #[error("{0}")]
    Invalid(String),
    /// The disk returned other bytes than were written to it.
    #[error(transparent)]
    Mismatch(#[from] crate::load::content::Mismatch),
}

impl Error {
    /// Names the vhost-user `message` that failed: for `map_err`.
    pub(crate) fn protocol(message: &'static str) -> impl FnOnce(vhost::Error) -> Self {
        move |cause| Self::Protocol { message, cause }
    }

    /// Names `what` a system call was for: for `map_err`.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self::System { what, cause: cause.into() }
    }
}
