//! From bytes that something names to the clusters they touch, each counted.

use std::ops::Range;

use super::super::fault::Fault;
use super::super::uses::{Used, disjoint};
use super::Collector;
use crate::addr::HostCluster;
use crate::disk::Disk;

impl<D: Disk> Collector<'_, '_, '_, D> {
    /// Counts `times` references to each cluster that `len` bytes at `offset` touch.
    pub(super) fn count_region(&mut self, offset: u64, len: u64, times: u64) {
        if let Some(clusters) = self.clusters_of(offset, len, times) {
            self.count_clusters(clusters, times);
        }
    }

    /// As [`Self::count_region`] for each of `regions`, at a cost that does not grow where they overlap.
    pub(super) fn count_regions(&mut self, regions: &[Used]) {
        let mut clusters = Vec::with_capacity(regions.len());
        for (range, uses) in regions {
            let touched = self.clusters_of(range.start, range.end - range.start, uses.total);
            clusters.extend(touched.map(|touched| (touched, *uses)));
        }
        for (clusters, uses) in disjoint(&clusters) {
            self.count_clusters(clusters, uses.total);
        }
    }

    /// The clusters that a region touches, unless it ends too far behind the end of the file: the last cluster may be
    /// there in part, but no more than that.
    fn clusters_of(&mut self, offset: u64, len: u64, times: u64) -> Option<Range<u64>> {
        let geometry = self.target.geometry;
        if len == 0 {
            return None;
        }
        let end = offset.saturating_add(len);
        if end.saturating_sub(self.target.file_len) >= geometry.cluster_size() {
            self.fault(Fault::PastEnd { offset, len }, times);
            return None;
        }
        Some(self.target.cluster_at(offset).get()..self.target.cluster_at(end - 1).get() + 1)
    }

    fn count_clusters(&mut self, clusters: Range<u64>, times: u64) {
        let geometry = self.target.geometry;
        for cluster in clusters.map(HostCluster::new) {
            let excess = self.counts.add(cluster, times, geometry.refcount_max());
            if excess > 0 {
                let offset = geometry.host_start(cluster).get();
                self.fault(Fault::CountOverflow { offset }, excess);
            }
        }
    }
}
