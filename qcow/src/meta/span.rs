//! Consecutive subclusters of the virtual disk: what requests hold, and what they change of a cluster.
//!
//! In images without extended L2 entries a cluster is its own and only subcluster.

use std::ops::Range;

use crate::addr::{ClusterCount, Geometry, GuestCluster, GuestOffset, GuestSubcluster};

/// Consecutive subclusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first one.
    pub first: GuestSubcluster,
    /// How many.
    pub count: u64,
}

impl Span {
    /// What `len` bytes at `at` touch, at least one byte.
    pub fn touched(geometry: Geometry, at: GuestOffset, len: u64) -> Self {
        let first = geometry.guest_subcluster(at);
        let last = geometry.guest_subcluster(at.plus(len - 1));
        Self { first, count: last.distance_from(first) + 1 }
    }

    /// All subclusters of `count` clusters from `first` on.
    pub fn of_clusters(geometry: Geometry, first: GuestCluster, count: ClusterCount) -> Self {
        let per_cluster = u64::from(geometry.subclusters_per_cluster());
        Self { first: geometry.first_subcluster(first), count: count * per_cluster }
    }

    /// The subcluster behind the last one.
    pub fn end(self) -> GuestSubcluster {
        self.first.plus(self.count)
    }

    /// The first byte behind the last subcluster.
    pub fn end_offset(self, geometry: Geometry) -> GuestOffset {
        geometry.subcluster_start(self.end())
    }

    /// The first `count` of them, or all.
    #[must_use]
    pub fn truncated(self, count: u64) -> Self {
        Self { count: self.count.min(count), ..self }
    }

    /// All but the first `count` of them.
    #[must_use]
    pub fn after(self, count: u64) -> Self {
        Self { first: self.first.plus(count), count: self.count - count }
    }

    /// Clusters that these touch.
    pub fn cluster_count(self, geometry: Geometry) -> ClusterCount {
        let last = geometry.cluster_of(self.first.plus(self.count - 1));
        last.distance_from(geometry.cluster_of(self.first)) + 1
    }

    /// The indexes of those that belong to `cluster`; empty where none does.
    pub fn within(self, geometry: Geometry, cluster: GuestCluster) -> Range<u32> {
        let whole = Self::of_clusters(geometry, cluster, 1);
        let start = self.first.max(whole.first);
        let end = self.end().min(whole.end()).max(start);
        let index = |subcluster: GuestSubcluster| {
            subcluster.get().saturating_sub(whole.first.get()).min(whole.count) as u32
        };
        index(start)..index(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_knows_its_part_of_each_cluster() {
        let geometry = Geometry::new(16, 4).with_extended_l2(true);
        let span = Span::touched(geometry, GuestOffset::new(0x1_0000 + 2047), 0x1_0000);
        assert_eq!((span.first.get(), span.count), (32, 33));
        assert_eq!(span.cluster_count(geometry), 2);
        let within = |cluster| span.within(geometry, GuestCluster::new(cluster));
        assert_eq!([within(1), within(2)], [0..32, 0..1]);
        assert!(within(0).is_empty() && within(3).is_empty());
        assert_eq!(span.end_offset(geometry).get(), 0x2_0000 + 2048);
    }

    #[test]
    fn without_subclusters_it_is_clusters() {
        let geometry = Geometry::new(9, 4);
        let span = Span::touched(geometry, GuestOffset::new(1000), 100);
        assert_eq!(span, Span::of_clusters(geometry, GuestCluster::new(1), 2));
        assert_eq!(span.within(geometry, GuestCluster::new(2)), 0..1);
    }
}
