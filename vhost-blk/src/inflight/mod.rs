//! The record of requests in flight: memory that the frontend keeps when this process dies, so that the next one carries
//! out what it left (vhost-user specification, "Inflight I/O tracking", split virtqueues).
//!
//! A [`Region`] holds a [`Record`] for each queue, and behind them room for the engine's redo log. A kill may come between
//! any two stores, and takes none of those that were made, so their order is all that counts:
//!
//! | when | stores, one after the other |
//! |---|---|
//! | a request is taken | its number in the order of taking; that it is in flight |
//! | it has ended | that it is in the last batch, behind those that are there already |
//! | the guest is shown the batch | the used ring's index; that none of the batch is in flight; that index, here |
//! | a ring starts | what of the last row is missing, which the two indices tell |
//!
//! So a request that the guest was shown is never done again, and any other is: the first thing that a ring does is what its
//! record has in flight, in the order in which it was taken. The guest has heard nothing of those, and so cannot have built
//! on them: to read, write, zero or discard once more what may have been read, written, zeroed or discarded already is what
//! one slow request would have done. Where another request to the same sectors has been answered meanwhile, the two were in
//! flight together, and virtio promises no order for such.
//!
//! A ring goes on at its used index plus what its record has in flight, whatever base the frontend states: that is how many
//! requests have been taken.
//!
//! What has been done and shown to the guest may still be in need of rescue: the mappings that it has changed are in memory
//! until a flush. The engine's redo log has them, and is replayed before the first ring starts ([`LogRoom`]).

mod record;
mod region;
#[cfg(test)]
mod tests;

pub use record::{Record, RecordError};
pub use region::{LogRoom, Region};
