//! The references of an L2 table: the clusters and the compressed data of the virtual disk.

use std::ops::Range;

use super::super::fault::Fault;
use super::super::loose::{Claim, L2Format, LooseL2, SUBCLUSTERS_ALLOCATED, is_copied};
use super::super::stored::StoredCounts;
use super::super::uses::Uses;
use super::Counter;
use crate::addr::{Geometry, HostCluster, HostOffset};
use crate::format::entry::{COPIED, OFFSET_MASK};

/// What L2 entries are judged by.
#[derive(Clone, Copy)]
pub(super) struct L2Rules {
    pub(super) format: L2Format,
    pub(super) version2: bool,
    /// As in [`super::Means`].
    pub(super) fix: bool,
}

/// How the clusters of one L2 table lie in the file.
#[derive(Default)]
pub(super) struct Layout {
    pub(super) allocated: u64,
    pub(super) compressed: u64,
    pub(super) fragmented: u64,
    /// Where the last cluster ends.
    next: Option<u64>,
    /// Whether a COPIED flag may contradict its cluster's stored count.
    pub(super) flags_in_doubt: bool,
}

/// Counts what the entries of one L2 table name.
pub(super) fn scan(
    counter: &mut Counter<'_>,
    stored: &StoredCounts,
    rules: L2Rules,
    words: &[u64],
    uses: Uses,
) -> Layout {
    let mut scan = Scan { counter, stored, rules, uses, layout: Layout::default() };
    let step = rules.format.words();
    let mut at = 0;
    while at + step <= words.len() {
        let run = scan.run_at(&words[at..]);
        if run > 0 {
            scan.take_run(words[at], run);
            at += run;
            continue;
        }
        let bitmap = if step == 2 { words[at + 1] } else { 0 };
        let entry = LooseL2 { word: words[at], bitmap };
        if entry != (LooseL2 { word: 0, bitmap: 0 }) {
            scan.take(entry, (at / step) as u64);
        }
        at += step;
    }
    scan.layout
}

struct Scan<'s, 'c> {
    counter: &'s mut Counter<'c>,
    stored: &'s StoredCounts,
    rules: L2Rules,
    uses: Uses,
    layout: Layout,
}

impl Scan<'_, '_> {
    /// How many entries at the start of `words` are sound, have the same flag, and name clusters one after the other in
    /// the file; 0 where that is not to be had.
    fn run_at(&self, words: &[u64]) -> usize {
        let geometry = self.rules.format.geometry;
        let first = words[0];
        let offset = first & OFFSET_MASK;
        let is_plain = first & !(COPIED | OFFSET_MASK) == 0
            && offset != 0
            && geometry.is_cluster_aligned(offset)
            && !self.rules.format.extended
            && !self.rules.format.data_file;
        if !is_plain {
            return 0;
        }
        // What would run over into the reserved bits is behind the end of any file.
        let follows = |&(i, &word): &(usize, &u64)| word == first + geometry.bytes(i as u64);
        let len = words.iter().enumerate().take_while(follows).count();
        let clusters = self.clusters(offset, len);
        if self.counter.is_inside(&clusters) { len } else { 0 }
    }

    fn clusters(&self, offset: u64, len: usize) -> Range<u64> {
        let first = self.rules.format.geometry.host_cluster(HostOffset::new(offset)).get();
        first..first + len as u64
    }

    fn take_run(&mut self, first: u64, len: usize) {
        let offset = first & OFFSET_MASK;
        let clusters = self.clusters(offset, len);
        self.layout.add_clusters(offset, len as u64, self.rules.format.geometry);
        if !self.layout.flags_in_doubt {
            self.layout.flags_in_doubt = !self.stored.are_single(&clusters, is_copied(first));
        }
        self.counter.count_run(clusters, self.uses.total);
    }

    fn take(&mut self, entry: LooseL2, index: u64) {
        let (rules, uses) = (self.rules, self.uses);
        let word = entry.word;
        if entry.has_reserved_bits() {
            self.counter.fault(Fault::L2ReservedBits { entry: word }, uses.total);
        }
        if rules.version2 && entry.has_zero_bit() {
            self.counter.fault(Fault::ZeroFlagInVersion2 { entry: word }, uses.total);
        }
        match entry.claim(rules.format) {
            Claim::Nothing => {
                if rules.format.extended && entry.bitmap & SUBCLUSTERS_ALLOCATED != 0 {
                    self.counter.fault(Fault::SubclustersWithoutCluster, uses.total);
                }
            }
            Claim::Compressed { offset, len } => self.take_compressed(entry, index, offset, len),
            Claim::Cluster { offset, reserve } => self.take_cluster(entry, offset, reserve),
        }
    }

    fn take_compressed(&mut self, entry: LooseL2, index: u64, offset: u64, len: u64) {
        let (rules, uses) = (self.rules, self.uses);
        let mut word = entry.word;
        if is_copied(word) {
            self.counter.fault(Fault::CompressedCopied { offset }, uses.total);
            word &= !COPIED;
        }
        if rules.format.data_file {
            let fault = Fault::CompressedWithDataFile { index, entry: word };
            return self.counter.fault(fault, uses.total);
        }
        if entry.bitmap != 0 {
            let fault = Fault::CompressedWithSubclusters { index, entry: word };
            return self.counter.fault(fault, uses.total);
        }
        self.layout.add_compressed();
        self.counter.count_region(offset, len, uses.total);
    }

    fn take_cluster(&mut self, entry: LooseL2, offset: u64, reserve: bool) {
        let (rules, uses) = (self.rules, self.uses);
        let geometry = rules.format.geometry;
        if entry.subclusters_contradict() {
            self.counter.fault(Fault::SubclustersContradict { offset }, uses.total);
        }
        if !geometry.is_cluster_aligned(offset) {
            let repaired = reserve && rules.fix;
            let fault = match reserve {
                true => Fault::PreallocatedUnaligned { offset, repaired },
                false => Fault::DataUnaligned { offset },
            };
            self.counter.fault(fault, uses.total);
            if repaired {
                return;
            }
        }
        self.layout.add_clusters(offset, 1, geometry);
        let copied = is_copied(entry.word);
        if rules.format.data_file {
            self.layout.flags_in_doubt |= !copied;
            return;
        }
        let cluster: HostCluster = geometry.host_cluster(HostOffset::new(offset));
        self.layout.flags_in_doubt |= self.stored.is_single(cluster) != Some(copied);
        self.counter.count_region(offset, geometry.cluster_size(), uses.total);
    }
}

impl Layout {
    /// Adds clusters that lie one after the other from byte `offset` on.
    fn add_clusters(&mut self, offset: u64, count: u64, geometry: Geometry) {
        self.allocated += count;
        self.fragmented += u64::from(self.next.is_some_and(|next| next != offset));
        self.next = Some(offset + geometry.bytes(count));
    }

    /// Compressed clusters share sectors, so each of them costs a read of its own.
    fn add_compressed(&mut self) {
        self.allocated += 1;
        self.compressed += 1;
        self.fragmented += 1;
    }
}
