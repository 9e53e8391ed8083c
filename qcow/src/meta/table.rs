//! A table of eight-byte words that is held in memory as a whole: the L1 table, the refcount table.

use std::collections::BTreeSet;

use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::limits::SECTOR_BYTES;

/// Words in one sector.
const WORDS_PER_SECTOR: usize = SECTOR_BYTES as usize / 8;

/// The table's words, and which sectors of it differ from the disk.
#[derive(Debug)]
pub struct WordTable {
    offset: HostOffset,
    words: Vec<u64>,
    dirty: BTreeSet<usize>,
    /// Sectors that a flush is writing.
    writing: BTreeSet<usize>,
}

/// A changed sector of a table, copied for a flush.
#[derive(Debug)]
pub struct TableSector {
    /// Where it goes.
    pub at: HostOffset,
    /// Its words, big-endian.
    pub bytes: Vec<u8>,
    index: usize,
}

impl WordTable {
    /// The table at `offset`, with the words it holds on disk.
    pub fn new(offset: HostOffset, words: Vec<u64>) -> Self {
        Self { offset, words, dirty: BTreeSet::new(), writing: BTreeSet::new() }
    }

    /// All words.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Changes a word, to be written by the next flush.
    pub fn set(&mut self, index: usize, word: u64) {
        self.words[index] = word;
        self.dirty.insert(index / WORDS_PER_SECTOR);
    }

    /// Where it lies: its first cluster, and how many it fills.
    pub fn span(&self, geometry: Geometry) -> (HostCluster, ClusterCount) {
        geometry.host_span(self.offset, self.words.len() as u64 * 8)
    }

    /// Whether any sector waits to be written.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whether the word at `index` may differ from the disk.
    pub fn is_word_dirty(&self, index: usize) -> bool {
        let sector = index / WORDS_PER_SECTOR;
        self.dirty.contains(&sector) || self.writing.contains(&sector)
    }

    /// The changed sectors, for a flush; each must be reported with [`Self::written`].
    pub fn take_dirty(&mut self) -> Vec<TableSector> {
        let dirty = std::mem::take(&mut self.dirty);
        self.writing.extend(&dirty);
        dirty.into_iter().map(|index| self.sector(index)).collect()
    }

    /// Ends the write of a sector; after a failure it is as changed as before.
    pub fn written(&mut self, sector: &TableSector, success: bool) {
        self.writing.remove(&sector.index);
        if !success {
            self.dirty.insert(sector.index);
        }
    }

    fn sector(&self, index: usize) -> TableSector {
        let first = index * WORDS_PER_SECTOR;
        let words = &self.words[first..(first + WORDS_PER_SECTOR).min(self.words.len())];
        let at = self.offset.plus(index as u64 * SECTOR_BYTES);
        TableSector { at, bytes: words.iter().flat_map(|w| w.to_be_bytes()).collect(), index }
    }
}
