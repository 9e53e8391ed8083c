//! Guest clusters whose mapping is about to change: writers that need a change wait for each other, all others do not.
//!
//! A holder may only wait for clusters above those that it holds; so two holders never wait for each other.

use std::ops::Range;

use crate::addr::GuestCluster;

/// The ranges that are held, one per change under way.
#[derive(Debug, Default)]
pub struct BusyClusters {
    ranges: Vec<Range<u64>>,
    /// Written in place, where a change of the mapping has to wait for that: one range per write.
    written: Vec<Range<u64>>,
}

impl BusyClusters {
    /// How many of the `count` clusters from `first` on are free before the first busy one.
    pub fn free_prefix(&self, first: GuestCluster, count: u64) -> u64 {
        free_prefix(self.ranges.iter().chain(&self.written), first, count)
    }

    /// As [`Self::free_prefix`], for a write in place: other such writes do not matter to it.
    pub fn writable_prefix(&self, first: GuestCluster, count: u64) -> u64 {
        free_prefix(self.ranges.iter(), first, count)
    }

    /// Keeps the mapping of clusters that are writable from being changed.
    pub fn hold_written(&mut self, first: GuestCluster, count: u64) {
        assert_eq!(self.writable_prefix(first, count), count, "nobody is changing the mapping");
        self.written.push(first.get()..first.get() + count);
    }

    /// Takes back a [`Self::hold_written`].
    pub fn release_written(&mut self, first: GuestCluster, count: u64) {
        remove(&mut self.written, first, count);
    }

    /// Marks clusters that are free as busy.
    pub fn hold(&mut self, first: GuestCluster, count: u64) {
        assert_eq!(self.free_prefix(first, count), count, "a cluster is held once");
        self.ranges.push(first.get()..first.get() + count);
    }

    /// Takes back a [`Self::hold`].
    pub fn release(&mut self, first: GuestCluster, count: u64) {
        remove(&mut self.ranges, first, count);
    }
}

fn free_prefix<'r>(
    ranges: impl Iterator<Item = &'r Range<u64>>,
    first: GuestCluster,
    count: u64,
) -> u64 {
    let (start, end) = (first.get(), first.get() + count);
    let clash = ranges.filter(|r| r.start < end && start < r.end);
    clash.map(|r| r.start.saturating_sub(start)).min().unwrap_or(count)
}

fn remove(ranges: &mut Vec<Range<u64>>, first: GuestCluster, count: u64) {
    let range = first.get()..first.get() + count;
    let at = ranges.iter().position(|r| *r == range).expect("only a held range is released");
    ranges.swap_remove(at);
}
