//! From bytes that something names to the clusters they touch, each counted.

use std::ops::Range;

use super::super::counts::Counts;
use super::super::fault::Fault;
use super::super::finding::Finding;
use super::super::target::Target;
use super::super::uses::{Used, Uses, disjoint};
use crate::addr::{Geometry, HostCluster};
use crate::disk::Disk;

/// Counts, and keeps what it finds until somebody takes it. Many of them may share the same counts.
pub(in super::super) struct Counter<'c> {
    counts: &'c Counts,
    geometry: Geometry,
    file_len: u64,
    found: Vec<(Finding, u64)>,
}

impl<'c> Counter<'c> {
    pub(in super::super) fn new<D: Disk>(target: &Target<'_, D>, counts: &'c Counts) -> Self {
        let (geometry, file_len) = (target.geometry, target.file_len);
        Self { counts, geometry, file_len, found: Vec::new() }
    }

    pub(in super::super) fn counts(&self) -> &'c Counts {
        self.counts
    }

    /// What has been found since the last time, and how often each applies.
    pub(in super::super) fn take_found(&mut self) -> Vec<(Finding, u64)> {
        std::mem::take(&mut self.found)
    }

    pub(in super::super) fn fault(&mut self, fault: Fault, times: u64) {
        self.found.push((Finding::Fault(fault), times));
    }

    /// Counts an L2 table.
    pub(in super::super) fn count_table(&mut self, offset: u64, uses: Uses) {
        self.count_region(offset, self.geometry.cluster_size(), uses.total);
        if !self.geometry.is_cluster_aligned(offset) {
            self.fault(Fault::L2TableUnaligned { offset }, uses.total);
        }
    }

    /// Counts `times` references to each cluster that `len` bytes at `offset` touch.
    pub(in super::super) fn count_region(&mut self, offset: u64, len: u64, times: u64) {
        if let Some(clusters) = self.clusters_of(offset, len, times) {
            self.count_clusters(clusters, times);
        }
    }

    /// As [`Self::count_region`] for each of `regions`, at a cost that does not grow where they overlap.
    pub(in super::super) fn count_regions(&mut self, regions: &[Used]) {
        let mut clusters = Vec::with_capacity(regions.len());
        for (range, uses) in regions {
            let touched = self.clusters_of(range.start, range.end - range.start, uses.total);
            clusters.extend(touched.map(|touched| (touched, *uses)));
        }
        for (clusters, uses) in disjoint(&clusters) {
            self.count_clusters(clusters, uses.total);
        }
    }

    /// Counts each of `clusters`, which lie in the file, `times`.
    pub(in super::super) fn count_run(&mut self, clusters: Range<u64>, times: u64) {
        let (geometry, found) = (self.geometry, &mut self.found);
        self.counts.add_run(clusters, times, geometry.refcount_max(), |cluster, excess| {
            let offset = geometry.host_start(cluster).get();
            found.push((Finding::Fault(Fault::CountOverflow { offset }), excess));
        });
    }

    /// Whether all of a run of clusters lies in the file.
    pub(in super::super) fn is_inside(&self, clusters: &Range<u64>) -> bool {
        clusters.end <= self.file_len >> self.geometry.cluster_bits()
    }

    /// The clusters that a region touches, unless it ends too far behind the end of the file: the last cluster may be
    /// there in part, but no more than that.
    fn clusters_of(&mut self, offset: u64, len: u64, times: u64) -> Option<Range<u64>> {
        let geometry = self.geometry;
        if len == 0 {
            return None;
        }
        let end = offset.saturating_add(len);
        if end.saturating_sub(self.file_len) >= geometry.cluster_size() {
            self.fault(Fault::PastEnd { offset, len }, times);
            return None;
        }
        let cluster_at = |at| geometry.host_cluster(crate::addr::HostOffset::new(at)).get();
        Some(cluster_at(offset)..cluster_at(end - 1) + 1)
    }

    fn count_clusters(&mut self, clusters: Range<u64>, times: u64) {
        for cluster in clusters.map(HostCluster::new) {
            let excess = self.counts.add(cluster, times, self.geometry.refcount_max());
            if excess > 0 {
                let offset = self.geometry.host_start(cluster).get();
                self.fault(Fault::CountOverflow { offset }, excess);
            }
        }
    }
}
