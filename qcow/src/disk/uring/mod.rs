//! [`Disk`](super::Disk) on io_uring: one ring per thread, every operation through it.
//!
//! A [`UringDisk`] is shared by all threads; an operation runs on the ring of the thread that polls it first and must be
//! polled there until it ends. [`block_on`] drives the calling thread's ring. What is no transfer may be left to another
//! thread: [`serve_upkeep`].

use std::future::Future;

mod direct;
mod file;
mod lock;
mod restrict;
mod ring;
mod upkeep;

pub use file::{Access, CacheMode, UringDisk};
pub use ring::{Readiness, RingPark, pin_memory, set_up_ring, unpin_memory};
pub use upkeep::serve_upkeep;

/// Runs `root` to its end on this thread and its ring.
pub fn block_on<T>(root: impl Future<Output = T>) -> T {
    crate::exec::block_on(&RingPark::new(), root)
}
