//! The metadata of an authenticated image as a state machine: a tree of entries, the blocks in use, and what is on its way to
//! being free.
//!
//! Nothing here does I/O or waits, as everywhere in `meta`. Nothing that a durable root leads to is ever overwritten: what
//! changes goes to blocks that nobody uses, and [`tree::Tree::capture`] takes all that the next root needs at one moment.
//! [`pending::Pending`] keeps what the older root leads to until the newer one is durable.

pub mod blocks;
pub mod pending;
pub mod space;
pub mod tree;

use crate::addr::HostBlock;
use crate::format::sealed::entry::Stored;

/// Consecutive blocks of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The first one.
    pub first: HostBlock,
    /// How many.
    pub count: u64,
}

impl BlockRun {
    /// The blocks of what is stored.
    pub fn of(stored: &Stored) -> Self {
        Self { first: stored.place, count: stored.blocks() }
    }

    /// The first block behind it.
    pub fn end(&self) -> HostBlock {
        self.first.plus(self.count)
    }

    /// Its first `count` blocks, and the rest.
    pub fn split_at(self, count: u64) -> (Self, Self) {
        assert!(count <= self.count);
        let head = Self { count, ..self };
        (head, Self { first: head.end(), count: self.count - count })
    }
}
