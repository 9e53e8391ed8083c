//! How often each cluster of a file is used: a byte each, and four where a byte is not enough.
//!
//! Many threads count at once. Eight clusters share a word, so that a run of clusters costs one operation for eight.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

use crate::addr::{ClusterCount, HostCluster};
use crate::sync::lock;

/// Clusters that get their memory together.
const PAGE: u64 = 4096;
/// The narrow count that sends the reader to the wide one.
const WIDE: u8 = u8::MAX;
/// The largest count that is told from larger ones; no image of real life gets near it.
const COUNT_MAX: u64 = u32::MAX as u64;
/// Clusters whose narrow counts share a word.
const LANES: u64 = 8;
/// Words of a page.
const PAGE_WORDS: usize = (PAGE / LANES) as usize;
/// One in each lane.
const ONES: u64 = 0x0101_0101_0101_0101;

/// A count for each cluster of a file, all zero at first.
///
/// What was never counted in takes no memory, so that the holes of a sparse file cost nothing.
#[derive(Debug)]
pub(in crate::engine) struct Counts {
    narrow: Vec<OnceLock<Box<Words>>>,
    wide: Mutex<HashMap<u64, u32>>,
    /// Clusters of the file; one more once the one behind its end is counted.
    len: AtomicU64,
}

/// The narrow counts of a page.
type Words = [AtomicU64; PAGE_WORDS];

impl Counts {
    /// Counts for `clusters` clusters, and for one more that an unaligned entry can reach.
    pub(in crate::engine) fn new(clusters: ClusterCount) -> Self {
        let mut counts = Self { narrow: Vec::new(), wide: Mutex::default(), len: 0.into() };
        counts.grow(clusters);
        counts
    }

    /// How many clusters there are, the one behind the end of the file included once it is counted.
    pub(in crate::engine) fn len(&self) -> ClusterCount {
        self.len.load(Relaxed)
    }

    /// Makes room for `clusters` clusters.
    pub(in crate::engine) fn grow(&mut self, clusters: ClusterCount) {
        let pages = (clusters + 1).div_ceil(PAGE) as usize;
        self.narrow.resize_with(pages.max(self.narrow.len()), OnceLock::new);
        let len = self.len.get_mut();
        *len = (*len).max(clusters);
    }

    /// The count of `cluster`.
    pub(in crate::engine) fn get(&self, cluster: HostCluster) -> u64 {
        let at = cluster.get();
        match self.lane(at) {
            WIDE => self.wide_count(at),
            count => count.into(),
        }
    }

    /// Raises the count of `cluster` by `times`; returns how many of them passed `max`.
    pub(in crate::engine) fn add(&self, cluster: HostCluster, times: u64, max: u64) -> u64 {
        let at = cluster.get();
        self.len.fetch_max(at + 1, Relaxed);
        let before = self.raise(at, times);
        let past = |count: u64| count.saturating_sub(max);
        past(before.saturating_add(times)) - past(before)
    }

    /// Counts each cluster of `clusters`, none of which lies behind the end of the file, `times` more; tells `passed` how
    /// many of them passed `max`, where any did.
    pub(in crate::engine) fn add_run(
        &self,
        clusters: Range<u64>,
        times: u64,
        max: u64,
        mut passed: impl FnMut(HostCluster, u64),
    ) {
        // Eight counts that are still zero are raised at once.
        let eight = (times <= max && times < WIDE.into()).then(|| ONES * times);
        let raise_eight = |at: u64| {
            let is_word = at.is_multiple_of(LANES) && at + LANES <= clusters.end;
            let raise = |eight| self.word(at).compare_exchange(0, eight, Relaxed, Relaxed);
            is_word && eight.is_some_and(|eight| raise(eight).is_ok())
        };
        let mut at = clusters.start;
        while at < clusters.end {
            if raise_eight(at) {
                at += LANES;
                continue;
            }
            let excess = self.add(HostCluster::new(at), times, max);
            if excess > 0 {
                passed(HostCluster::new(at), excess);
            }
            at += 1;
        }
    }

    /// Counts `cluster` as unused.
    pub(in crate::engine) fn clear(&self, cluster: HostCluster) {
        let at = cluster.get();
        self.word(at).fetch_and(!(u64::from(u8::MAX) << shift(at)), Relaxed);
    }

    /// The clusters of `range` that are counted at all.
    pub(in crate::engine) fn used_in(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = HostCluster> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            while at < range.end {
                let left = self.eight(at) >> shift(at);
                if left == 0 {
                    at = (at / LANES + 1) * LANES;
                    continue;
                }
                let found = at + u64::from(left.trailing_zeros() / 8);
                at = found + 1;
                return (found < range.end).then(|| HostCluster::new(found));
            }
            None
        })
    }

    /// The last cluster before `end` that is counted at all.
    pub(in crate::engine) fn last_used_before(&self, end: u64) -> Option<HostCluster> {
        let mut end = end;
        while end > 0 {
            let at = end - 1;
            if self.page(at).is_none() {
                end = at / PAGE * PAGE;
                continue;
            }
            let up_to = self.eight(at) & u64::MAX >> (u64::BITS as u64 - 8 - shift(at));
            if up_to != 0 {
                let lane = 7 - u64::from(up_to.leading_zeros() / 8);
                return Some(HostCluster::new(at / LANES * LANES + lane));
            }
            end = at / LANES * LANES;
        }
        None
    }

    /// The first cluster from `at` on that is not counted.
    pub(in crate::engine) fn first_free_from(&self, at: u64) -> HostCluster {
        let mut at = at;
        while self.lane(at) != 0 {
            at += 1;
        }
        HostCluster::new(at)
    }

    /// The narrow counts of the eight clusters around `at`, from a multiple of eight on, the first one in the lowest byte;
    /// 255 stands for more.
    pub(in crate::engine) fn eight(&self, at: u64) -> u64 {
        self.page(at).map_or(0, |page| page[word_in_page(at)].load(Relaxed))
    }

    fn page(&self, at: u64) -> Option<&Words> {
        self.narrow.get((at / PAGE) as usize).and_then(OnceLock::get).map(|page| &**page)
    }

    /// Raises a count, and returns what it was.
    fn raise(&self, at: u64, times: u64) -> u64 {
        let word = self.word(at);
        let mut seen = word.load(Relaxed);
        loop {
            let before = (seen >> shift(at)) as u8;
            let after = u64::from(before).saturating_add(times);
            if before == WIDE || after >= WIDE.into() {
                return self.raise_wide(at, times);
            }
            let raised = seen & !(0xff << shift(at)) | after << shift(at);
            match word.compare_exchange_weak(seen, raised, Relaxed, Relaxed) {
                Ok(_) => return before.into(),
                Err(now) => seen = now,
            }
        }
    }

    /// As [`Self::raise`], where a byte is not enough. From then on the count only changes under the lock.
    fn raise_wide(&self, at: u64, times: u64) -> u64 {
        let mut wide = lock(&self.wide);
        let narrow = self.word(at).fetch_or(u64::from(WIDE) << shift(at), Relaxed);
        let narrow = (narrow >> shift(at)) as u8;
        let count = wide.entry(at).or_default();
        let before = if narrow == WIDE { u64::from(*count) } else { narrow.into() };
        *count = before.saturating_add(times).min(COUNT_MAX) as u32;
        before
    }

    fn wide_count(&self, at: u64) -> u64 {
        lock(&self.wide).get(&at).copied().unwrap_or(0).into()
    }

    fn lane(&self, at: u64) -> u8 {
        (self.eight(at) >> shift(at)) as u8
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        let page = self.narrow[(at / PAGE) as usize]
            .get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        &page[word_in_page(at)]
    }
}

/// Which word of its page holds the count of a cluster.
const fn word_in_page(at: u64) -> usize {
    (at % PAGE / LANES) as usize
}

/// Where the lane of a cluster starts in its word.
const fn shift(at: u64) -> u64 {
    at % LANES * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_past_a_byte_and_tell_what_passes_the_maximum() {
        let counts = Counts::new(1000);
        let (a, b) = (HostCluster::new(3), HostCluster::new(999));
        assert_eq!(counts.add(a, 254, u64::MAX), 0);
        assert_eq!(counts.add(b, 7, 5), 2);
        assert_eq!(counts.add(b, 1, 5), 1);
        for expected in 255..260 {
            assert_eq!(counts.add(a, 1, u64::MAX), 0);
            assert_eq!(counts.get(a), expected);
        }
        counts.add(a, u64::MAX, u64::MAX);
        assert_eq!((counts.get(a), counts.get(b)), (COUNT_MAX, 8));
        assert_eq!(counts.used_in(0..1000).collect::<Vec<_>>(), [a, b]);
        counts.clear(a);
        assert_eq!(counts.used_in(0..1000).collect::<Vec<_>>(), [b]);
    }

    #[test]
    fn a_run_counts_each_of_its_clusters() {
        let counts = Counts::new(100);
        let mut passed = Vec::new();
        let mut note = |cluster: HostCluster, excess| passed.push((cluster.get(), excess));
        counts.add_run(3..30, 1, 2, &mut note);
        counts.add_run(8..17, 1, 2, &mut note);
        counts.add_run(16..18, 1, 2, &mut note);
        counts.add_run(40..48, 2, 2, &mut note);
        counts.add_run(48..56, 3, 2, &mut note);
        assert_eq!(passed[0], (16, 1));
        assert_eq!(passed[1..], (48..56).map(|at| (at, 1)).collect::<Vec<_>>());
        let of = |at| counts.get(HostCluster::new(at));
        assert_eq!([of(2), of(3), of(8), of(16), of(17), of(18), of(30)], [0, 1, 2, 3, 2, 1, 0]);
        assert_eq!(counts.eight(16), 0x0101_0101_0101_0203);
        assert_eq!((counts.eight(40), counts.eight(48)), (2 * ONES, 3 * ONES));
        counts.add_run(64..72, 300, u64::MAX, |_, _| ());
        assert_eq!((of(64), of(71), of(72)), (300, 300, 0));
    }

    #[test]
    fn used_and_free_clusters_are_found_from_both_ends() {
        let counts = Counts::new(20_000);
        for used in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 9000] {
            counts.add(HostCluster::new(used), 1, 1);
        }
        let last = |end| counts.last_used_before(end).map(HostCluster::get);
        let found = [20_000, 9001, 9000, 11, 10, 8, 1, 0].map(last);
        let expected = [9000, 9000, 11, 9, 9, 7, 0].map(Some);
        assert_eq!(found[..7], expected);
        assert_eq!(found[7], None);
        let free = |at| counts.first_free_from(at).get();
        assert_eq!(
            [free(0), free(10), free(11), free(9000), free(30_000)],
            [10, 10, 12, 9001, 30_000]
        );
    }

    #[test]
    fn one_cluster_behind_the_end_counts_once_it_is_used() {
        let mut counts = Counts::new(10);
        assert_eq!(counts.len(), 10);
        counts.add(HostCluster::new(10), 1, 1);
        assert_eq!(counts.len(), 11);
        counts.grow(10_000);
        counts.add(HostCluster::new(9999), 1, 1);
        assert_eq!((counts.len(), counts.get(HostCluster::new(9999))), (10_000, 1));
    }

    #[test]
    fn threads_count_together() {
        let counts = Counts::new(64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| counts.add_run(0..64, 1, 900, |_, _| ())));
            }
        });
        for cluster in 0..64 {
            assert_eq!(counts.get(HostCluster::new(cluster)), 800);
        }
    }
}
