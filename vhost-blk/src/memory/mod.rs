//! Guest memory: the regions that the frontend shares, and the only ways to touch them.
//!
//! The guest runs on other processors and may change any byte at any time, so no Rust reference ever points at it: the
//! fields of a ring are accessed as atomics in a [`Window`], what a request says is read once from its [`Buffers`], and
//! I/O goes through [`Payload`](qcow::disk::Payload)s that keep the mapping alive.
//!
//! A region is checked against the length of its file when it is mapped. A frontend that shrinks the file afterwards makes
//! the next access end this process, with all its disks: only a sealed memfd rules that out, and not every kind of guest
//! memory is one. So all frontends of one process must trust each other that far; those that do not get a process each.

use std::sync::Arc;

mod buffers;
mod table;
mod window;

pub use buffers::Buffers;
pub use table::{MemoryTable, REGION_COUNT_MAX, RegionError, RegionPlace};
pub use window::Window;

/// The guest's memory as one queue holds it. Every queue counts its own users, so that queues on different processors do
/// not fight for one counter.
#[derive(Debug)]
pub struct QueueMemory {
    table: Arc<MemoryTable>,
}

impl QueueMemory {
    /// A queue's share of `table`.
    pub fn new(table: Arc<MemoryTable>) -> Arc<Self> {
        Arc::new(Self { table })
    }
}

#[cfg(test)]
mod testing {
    use std::fs::File;

    use super::RegionPlace;

    pub const PAGE: u64 = 4096;

    pub fn file(pages: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(pages * PAGE).unwrap();
        file
    }

    pub fn place(guest_page: u64, user_page: u64, pages: u64) -> RegionPlace {
        RegionPlace { guest: guest_page * PAGE, user: user_page * PAGE, len: pages * PAGE }
    }
}
