//! How often each cluster of a file is used: a byte each, and four where a byte is not enough.

use std::collections::HashMap;
use std::ops::Range;

use crate::addr::{ClusterCount, HostCluster};

/// Clusters that get wide counts together.
const PAGE: u64 = 512;
/// The narrow count that sends the reader to the wide one.
const WIDE: u8 = u8::MAX;
/// The largest count that is told from larger ones; no image of real life gets near it.
const COUNT_MAX: u64 = u32::MAX as u64;

/// A count for each cluster of a file, all zero at first.
///
/// Memory that was never counted in is never touched, so that the holes of a sparse file cost nothing.
#[derive(Debug)]
pub(super) struct Counts {
    narrow: Vec<u8>,
    wide: HashMap<u64, Box<[u32; PAGE as usize]>>,
    len: ClusterCount,
}

impl Counts {
    /// Counts for `clusters` clusters, and for one more that an unaligned entry can reach.
    pub(super) fn new(clusters: ClusterCount) -> Self {
        Self { narrow: vec![0; clusters as usize + 1], wide: HashMap::new(), len: clusters }
    }

    /// How many clusters there are, the one behind the end of the file included once it is counted.
    pub(super) fn len(&self) -> ClusterCount {
        self.len
    }

    /// The count of `cluster`.
    pub(super) fn get(&self, cluster: HostCluster) -> u64 {
        let at = cluster.get();
        match self.narrow[at as usize] {
            WIDE => self.wide[&(at / PAGE)][(at % PAGE) as usize].into(),
            count => count.into(),
        }
    }

    /// Raises the count of `cluster` by `times`, but not above `max`; returns by how much it would have passed it.
    pub(super) fn add(&mut self, cluster: HostCluster, times: u64, max: u64) -> u64 {
        let max = max.min(COUNT_MAX);
        let wanted = self.get(cluster).saturating_add(times);
        self.set(cluster, wanted.min(max) as u32);
        wanted.saturating_sub(max)
    }

    fn set(&mut self, cluster: HostCluster, count: u32) {
        let at = cluster.get();
        self.len = self.len.max(at + 1);
        let narrow = u8::try_from(count).unwrap_or(WIDE);
        self.narrow[at as usize] = narrow;
        if narrow == WIDE {
            let page = self.wide.entry(at / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[(at % PAGE) as usize] = count;
        }
    }

    /// The clusters of `range` that are counted at all.
    pub(super) fn used_in(&self, range: Range<u64>) -> impl Iterator<Item = HostCluster> + '_ {
        let start = range.start;
        let counts = &self.narrow[range.start as usize..range.end as usize];
        let used = counts.iter().enumerate().filter(|&(_, &count)| count != 0);
        used.map(move |(index, _)| HostCluster::new(start + index as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_past_a_byte_and_stop_at_the_maximum() {
        let mut counts = Counts::new(1000);
        let (a, b) = (HostCluster::new(3), HostCluster::new(999));
        assert_eq!(counts.add(a, 254, u64::MAX), 0);
        assert_eq!(counts.add(b, 7, 5), 2);
        for expected in 255..260 {
            assert_eq!(counts.add(a, 1, u64::MAX), 0);
            assert_eq!(counts.get(a), expected);
        }
        assert_eq!(counts.add(a, u64::MAX, u64::MAX), u64::MAX - COUNT_MAX);
        assert_eq!((counts.get(a), counts.get(b)), (COUNT_MAX, 5));
        assert_eq!(counts.used_in(0..1000).collect::<Vec<_>>(), [a, b]);
    }

    #[test]
    fn one_cluster_behind_the_end_counts_once_it_is_used() {
        let mut counts = Counts::new(10);
        assert_eq!(counts.len(), 10);
        counts.add(HostCluster::new(10), 1, 1);
        assert_eq!(counts.len(), 11);
    }
}
