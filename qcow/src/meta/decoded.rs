//! A bounded cache of compressed clusters in decompressed form, so that small reads of one cluster unpack it once.
//!
//! What a cluster was unpacked to is true until its place in the file is used for something else, which is not before that
//! place is free: [`DecodedClusters::forget`] is told of every cluster of the file that becomes free. Nobody who still reads
//! what lay there is in flight by then, so nothing stale comes in afterwards.
//!
//! A cluster that is read for the first time may be unpacked only as far as it takes; whoever reads on has all of it
//! unpacked. What has been asked for once only is thrown out first, so that a scan does not empty the cache.

use std::collections::{BTreeMap, VecDeque};

use crate::addr::{Geometry, HostCluster, HostOffset};
use crate::disk::Buffer;
use crate::format::entry::CompressedExtent;

/// The first byte of compressed data, and the upper bound of its length: an image may name the same bytes in two ways.
type Key = (HostOffset, u64);

/// Decompressed clusters by the place of their compressed bytes.
#[derive(Debug)]
pub struct DecodedClusters {
    geometry: Geometry,
    entries: BTreeMap<Key, Entry>,
    /// Eviction order: second chance.
    queue: VecDeque<Key>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
enum Entry {
    /// Somebody is unpacking it.
    Unpacking,
    Ready {
        /// The cluster's bytes from its start on, perhaps not all.
        bytes: Buffer,
        recently_used: bool,
    },
}

/// What the cache has of a cluster.
#[derive(Clone, Debug)]
pub enum Decoded {
    /// Bytes from the cluster's start on, at least as many as were asked for.
    Ready(Buffer),
    /// The caller is to unpack it and to report with [`DecodedClusters::finish`].
    Unpack {
        /// All of it, as some of it was not enough.
        whole: bool,
    },
}

impl DecodedClusters {
    /// An empty cache of at most `bytes_max` bytes.
    pub fn new(geometry: Geometry, bytes_max: usize) -> Self {
        let (entries, queue) = (BTreeMap::new(), VecDeque::new());
        Self { geometry, entries, queue, bytes: 0, bytes_max }
    }

    /// The first `len` bytes of the cluster at `extent`, or the task of unpacking them; `None` while somebody else is at it.
    pub fn get(&mut self, extent: CompressedExtent, len: usize) -> Option<Decoded> {
        let key = (extent.offset, extent.len);
        let whole = match self.entries.get_mut(&key) {
            Some(Entry::Unpacking) => return None,
            Some(Entry::Ready { bytes, recently_used }) if bytes.len() >= len => {
                *recently_used = true;
                return Some(Decoded::Ready(bytes.clone()));
            }
            Some(Entry::Ready { .. }) => true,
            None => false,
        };
        self.remove(key);
        self.entries.insert(key, Entry::Unpacking);
        Some(Decoded::Unpack { whole })
    }

    /// Ends an unpacking: with the cluster's bytes from its start on, or with nothing where it failed.
    pub fn finish(&mut self, extent: CompressedExtent, bytes: Option<Buffer>) {
        let key = (extent.offset, extent.len);
        // It may have been forgotten meanwhile.
        if !matches!(self.entries.remove(&key), Some(Entry::Unpacking)) {
            return;
        }
        let Some(bytes) = bytes else { return };
        self.make_room(bytes.len());
        self.bytes += bytes.len();
        self.entries.insert(key, Entry::Ready { bytes, recently_used: false });
        self.queue.push_back(key);
    }

    /// Forgets everything whose compressed bytes touch `cluster` of the file.
    pub fn forget(&mut self, cluster: HostCluster) {
        if self.entries.is_empty() {
            return;
        }
        let start = self.geometry.host_start(cluster);
        let end = start.plus(self.geometry.cluster_size());
        // Compressed bytes take less than two clusters, so nothing that starts earlier than that reaches up to here.
        let earliest = start.get().saturating_sub(2 * self.geometry.cluster_size());
        let range = (HostOffset::new(earliest), 0)..(end, 0);
        let touched = self.entries.range(range).map(|(key, _)| *key);
        let touched: Vec<Key> = touched.filter(|(offset, len)| offset.plus(*len) > start).collect();
        touched.into_iter().for_each(|key| self.remove(key));
    }

    fn remove(&mut self, key: Key) {
        if let Some(Entry::Ready { bytes, .. }) = self.entries.remove(&key) {
            self.bytes -= bytes.len();
            self.queue.retain(|queued| *queued != key);
        }
    }

    fn make_room(&mut self, len: usize) {
        while self.bytes + len > self.bytes_max {
            let Some(key) = self.queue.pop_front() else { return };
            match self.entries.get_mut(&key) {
                Some(Entry::Ready { recently_used, .. }) if *recently_used => {
                    *recently_used = false;
                    self.queue.push_back(key);
                }
                _ => self.remove(key),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 512;

    fn cache(bytes_max: usize) -> DecodedClusters {
        DecodedClusters::new(Geometry::new(9, 4), bytes_max)
    }

    fn extent(offset: u64) -> CompressedExtent {
        CompressedExtent { offset: HostOffset::new(offset), len: 100 }
    }

    fn fill(cache: &mut DecodedClusters, offset: u64, len: usize) {
        assert!(matches!(cache.get(extent(offset), len), Some(Decoded::Unpack { .. })));
        cache.finish(extent(offset), Some(Buffer::from_bytes(&vec![7; len])));
    }

    fn has(cache: &mut DecodedClusters, offset: u64) -> bool {
        let found = cache.get(extent(offset), LEN);
        if let Some(Decoded::Unpack { .. }) = found {
            cache.finish(extent(offset), None);
        }
        matches!(found, Some(Decoded::Ready(_)))
    }

    #[test]
    fn one_unpacks_and_the_others_wait() {
        let mut cache = cache(10 * LEN);
        assert!(matches!(cache.get(extent(0), LEN), Some(Decoded::Unpack { whole: false })));
        assert!(cache.get(extent(0), 1).is_none());
        cache.finish(extent(0), None);
        fill(&mut cache, 0, 100);
        assert!(matches!(cache.get(extent(0), 100), Some(Decoded::Ready(_))));
        assert!(matches!(cache.get(extent(0), 101), Some(Decoded::Unpack { whole: true })));
    }

    #[test]
    fn what_was_asked_for_twice_outlives_a_scan() {
        let mut cache = cache(4 * LEN);
        fill(&mut cache, 0, LEN);
        for offset in 1..40 {
            assert!(has(&mut cache, 0), "before {offset}");
            fill(&mut cache, offset * 1000, LEN);
            assert!(cache.bytes <= 4 * LEN && cache.queue.len() <= 4);
        }
        assert!(!has(&mut cache, 1000));
    }

    #[test]
    fn what_touches_a_freed_cluster_is_forgotten() {
        let mut cache = cache(100 * LEN);
        let offsets = [300, 412, 413, 600, 1023, 1024];
        offsets.into_iter().for_each(|offset| fill(&mut cache, offset, LEN));
        cache.forget(HostCluster::new(1));
        let left: Vec<_> = offsets.into_iter().filter(|&offset| has(&mut cache, offset)).collect();
        assert_eq!(left, [300, 412, 1024]);
        assert_eq!(cache.bytes, 3 * LEN);
    }

    #[test]
    fn what_is_forgotten_while_it_is_unpacked_stays_out() {
        let mut cache = cache(100 * LEN);
        assert!(cache.get(extent(600), LEN).is_some());
        cache.forget(HostCluster::new(1));
        cache.finish(extent(600), Some(Buffer::from_bytes(&[7; LEN])));
        assert!(!has(&mut cache, 600));
    }
}
