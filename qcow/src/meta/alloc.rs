//! Finding free clusters: first fit, from the lowest cluster that may be free.
//!
//! The file is made longer before a cluster behind its end is used, and by more than one cluster at a time. So every
//! cluster lies inside the file as a whole, and once it is mapped on disk what nobody wrote to it is a hole there, which
//! reads as zeros: a cluster across the end of the file could read as anything after a power cut that keeps a longer file
//! but not what made it longer.

use super::refs::Refcounts;
use super::{Asked, Claim, Run};
use crate::addr::{Geometry, HostCluster};
use crate::error::{Error, ErrorKind, Result};

/// Clusters that the file grows by at least.
const GROWTH_MIN: u64 = 16;
/// The part of itself that the file grows by, so that growing takes no noticeable part of writing ...
const GROWTH_PART: u64 = 8;
/// ... but no more than so many bytes: what is not used is cut off again at the close only.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// Where the next free cluster may be, and where the file has never been written.
#[derive(Debug)]
pub struct Allocator {
    geometry: Geometry,
    /// Every cluster below is in use.
    lowest_free: HostCluster,
    /// No cluster below has become free since a search for free ones began.
    freed_from: HostCluster,
    /// From here on nobody has ever written: these clusters read as zeros.
    fresh_from: HostCluster,
    /// The file reaches up to here at least.
    file_end: HostCluster,
}

impl Allocator {
    /// An allocator for a file of `file_len` bytes, of which nothing is known yet.
    pub fn new(geometry: Geometry, file_len: u64) -> Self {
        let fresh_from = HostCluster::new(geometry.clusters_for(file_len));
        // Cluster 0 is the header, whatever its refcount says.
        let file_end = HostCluster::new(file_len / geometry.cluster_size());
        let freed_from = geometry.host_cluster_end();
        Self { geometry, lowest_free: HostCluster::new(1), freed_from, fresh_from, file_end }
    }

    /// The first `count_max` free clusters in a row, or fewer. Nothing is changed yet but what is known of used ones.
    pub fn find_run(&mut self, refs: &mut Refcounts, count_max: u64) -> Asked<Result<Claim>> {
        loop {
            let first = self.lowest_free;
            if first >= self.geometry.host_cluster_end() {
                return Ok(Err(Error::new(
                    ErrorKind::NoSpace,
                    "the image file cannot grow any more",
                )));
            }
            let Some(free) = refs.free_prefix(first, count_max)? else {
                return Ok(Ok(Claim::MissingBlock(self.geometry.refcount_block_index(first))));
            };
            if free == 0 {
                self.lowest_free = first.plus(refs.used_prefix(first)?);
                continue;
            }
            let left = self.geometry.host_cluster_end().distance_from(first);
            return Ok(Ok(Claim::Run(self.run(first, free.min(left)))));
        }
    }

    /// A run that is fresh as a whole or not at all.
    fn run(&self, first: HostCluster, count: u64) -> Run {
        let fresh = first >= self.fresh_from;
        let until_fresh = self.fresh_from.get().saturating_sub(first.get());
        Run { first, count: if fresh { count } else { count.min(until_fresh) }, fresh }
    }

    /// The first cluster from `lowest` on that may be free, where no block counts what lies from `lowest` on.
    pub fn first_uncounted(&self, lowest: HostCluster) -> HostCluster {
        self.lowest_free.max(lowest)
    }

    /// Takes clusters that no block counts yet, for the blocks that will.
    pub fn take_uncounted(&mut self, lowest: HostCluster, count: u64) -> Run {
        let first = self.first_uncounted(lowest);
        let run = Run { first, count, fresh: first >= self.fresh_from };
        self.claimed(&run);
        run
    }

    /// Notes that a run at the lowest free place is in use now.
    pub fn claimed(&mut self, run: &Run) {
        let end = run.first.plus(run.count);
        if run.first <= self.lowest_free {
            self.lowest_free = self.lowest_free.max(end);
        }
        self.fresh_from = self.fresh_from.max(end);
    }

    /// How far the file is to be made to reach so that it holds `run`; `None` where it does already.
    pub fn growth_for(&self, run: &Run) -> Option<HostCluster> {
        let end = run.first.plus(run.count);
        let growth = (self.file_end.get() / GROWTH_PART)
            .min(self.geometry.clusters_for(GROWTH_BYTES_MAX))
            .max(GROWTH_MIN);
        let grown = self.file_end.plus(growth).min(self.geometry.host_cluster_end());
        (end > self.file_end).then(|| end.max(grown))
    }

    /// Notes that the file reaches up to `end`.
    pub fn grown(&mut self, end: HostCluster) {
        self.file_end = self.file_end.max(end);
    }

    /// The end of what has ever been used of a file that was made longer than that.
    pub fn unused_end(&self) -> Option<HostCluster> {
        (self.file_end > self.fresh_from).then_some(self.fresh_from)
    }

    /// Notes that the file ends at `end`.
    pub fn cut(&mut self, end: HostCluster) {
        self.file_end = end;
    }

    /// Whether `cluster` is part of the file, at least with its first byte.
    pub fn is_inside_file(&self, cluster: HostCluster) -> bool {
        cluster < self.fresh_from
    }

    /// Every cluster below is in use.
    pub fn lowest_free(&self) -> HostCluster {
        self.lowest_free
    }

    /// Where a search for free clusters is to begin. What becomes free from now on, it may miss.
    pub fn begin_search(&mut self) -> HostCluster {
        self.freed_from = self.geometry.host_cluster_end();
        self.lowest_free
    }

    /// Notes that every cluster from `start`, where the search began, to `end` is in use, as far as it knows.
    pub fn used_up_to(&mut self, start: HostCluster, end: HostCluster) {
        if start <= self.lowest_free {
            self.lowest_free = self.lowest_free.max(end.min(self.freed_from));
        }
    }

    /// Notes that the count of `cluster` has become zero.
    pub fn freed(&mut self, cluster: HostCluster) {
        self.lowest_free = self.lowest_free.min(cluster);
        self.freed_from = self.freed_from.min(cluster);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_does_not_pass_over_what_became_free_meanwhile() {
        let cluster = HostCluster::new;
        let mut alloc = Allocator::new(Geometry::new(16, 4), 1 << 30);
        let start = alloc.begin_search();
        alloc.used_up_to(start, cluster(100));
        alloc.freed(cluster(150));
        alloc.used_up_to(start, cluster(200));
        assert_eq!(alloc.lowest_free(), cluster(150));
        alloc.freed(cluster(50));
        alloc.used_up_to(start, cluster(300));
        assert_eq!(alloc.lowest_free(), cluster(50));
        let start = alloc.begin_search();
        alloc.used_up_to(start, cluster(300));
        assert_eq!(alloc.lowest_free(), cluster(300));
    }
}
