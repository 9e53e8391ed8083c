//! The bits of one dirty bitmap in memory: which parts of the disk have been written to.
//!
//! Bits are kept in chunks, each as many as one cluster of the image file holds. A chunk that is all zeros or all ones
//! costs nothing, and a chunk that has not changed since it was read or stored is not stored again.

use crate::addr::Geometry;

mod chunk;
pub mod measure;
pub mod place;
#[cfg(test)]
mod tests;

use chunk::Chunk;
use measure::bits_needed;

/// A set of parts of the disk, all of the same size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits {
    /// Bytes of the disk.
    size: u64,
    /// log2 of the bytes of the disk that one bit stands for.
    granularity_bits: u8,
    /// Bits of a chunk, but for the last one, which has as many as are left.
    chunk_bits: u64,
    chunks: Vec<Chunk>,
}

/// What a chunk is in the image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// No bit is set.
    Zeros,
    /// All bits are set.
    Ones,
    /// The bits, the lowest of each byte first; as many bytes as a cluster.
    Bytes(Vec<u8>),
}

impl Bits {
    /// No bit is set, and nothing of it is in the image file.
    pub fn new(size: u64, granularity_bits: u8, geometry: Geometry) -> Self {
        let chunk_bits = geometry.cluster_size() * 8;
        let count = bits_needed(size, granularity_bits).div_ceil(chunk_bits);
        let chunks = vec![Chunk::new(); count as usize];
        Self { size, granularity_bits, chunk_bits, chunks }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// log2 of the bytes of the disk that one bit stands for.
    pub fn granularity_bits(&self) -> u8 {
        self.granularity_bits
    }

    /// How many chunks there are: entries of its table.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Sets the bits of all parts that `len` bytes at `at` touch, as far as the disk reaches.
    pub fn set(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len).min(self.size);
        if at < end {
            let first = at >> self.granularity_bits;
            self.set_bits(first, ((end - 1) >> self.granularity_bits) + 1);
        }
    }

    /// Clears all bits.
    pub fn clear(&mut self) {
        self.chunks.iter_mut().for_each(Chunk::clear);
    }

    /// Sets every bit whose part of the disk a set bit of `other`, of a disk of the same size, touches.
    pub fn merge(&mut self, other: &Self) {
        let alike = |bits: &Self| (bits.size, bits.granularity_bits, bits.chunk_bits);
        if alike(self) == alike(other) {
            for index in 0..self.chunks.len() {
                let len = self.len_of(index);
                self.chunks[index].merge(len, &other.chunks[index]);
            }
            return;
        }
        let mut from = 0;
        while let Some((at, len)) = other.next_marked(from) {
            self.set(at, len);
            from = at + len;
        }
    }

    /// Makes them the bits of a disk of `size` bytes: what lies behind its end is cut off, new parts are not set.
    pub fn resize(&mut self, size: u64) {
        if let Some(last) = self.chunks.len().checked_sub(1) {
            let len = self.len_of(last);
            // That all of its bits are set may not be true of a longer one.
            self.chunks[last].spell_out(len);
        }
        self.size = size;
        let old = self.chunks.len();
        let count = self.bits().div_ceil(self.chunk_bits) as usize;
        self.chunks.resize(count, Chunk::new());
        for last in [old.min(count), count].into_iter().filter_map(|count| count.checked_sub(1)) {
            let len = self.len_of(last);
            self.chunks[last].fit(len);
        }
    }

    /// Whether the bit of the part that holds byte `at` is set.
    pub fn is_set(&self, at: u64) -> bool {
        let bit = at >> self.granularity_bits;
        at < self.size && self.next_bit(bit, true) == bit
    }

    /// The first bytes that are marked at `from` or behind it, and how many; parts are cut off at the end of the disk.
    pub fn next_marked(&self, from: u64) -> Option<(u64, u64)> {
        if from >= self.size {
            return None;
        }
        let first = self.next_bit(from >> self.granularity_bits, true);
        let end = self.next_bit(first, false);
        let start = (first << self.granularity_bits).max(from);
        let end = (end << self.granularity_bits).min(self.size);
        (start < end).then(|| (start, end - start))
    }

    /// Whether any chunk differs from the image file.
    pub fn is_changed(&self) -> bool {
        self.chunks.iter().any(Chunk::is_changed)
    }

    /// Takes all chunks for different from the image file.
    pub fn mark_changed(&mut self) {
        self.chunks.iter_mut().for_each(Chunk::mark_changed);
    }

    /// The chunk at `index` as it is to be stored, where it differs from the image file; from now on it does not.
    pub fn take_changed(&mut self, index: usize) -> Option<Stored> {
        let (len, cluster) = (self.len_of(index), (self.chunk_bits / 8) as usize);
        self.chunks[index].take_changed(len, cluster)
    }

    /// Takes `stored` for the chunk at `index`, as the image file has it. Bits behind the end of the disk do not count.
    pub fn load(&mut self, index: usize, stored: &Stored) {
        let len = self.len_of(index);
        self.chunks[index].load(len, stored);
    }

    fn bits(&self) -> u64 {
        bits_needed(self.size, self.granularity_bits)
    }

    /// Bits of the chunk at `index`.
    fn len_of(&self, index: usize) -> u64 {
        (self.bits() - index as u64 * self.chunk_bits).min(self.chunk_bits)
    }

    fn set_bits(&mut self, first: u64, end: u64) {
        let mut at = first;
        while at < end {
            let index = (at / self.chunk_bits) as usize;
            let (base, len) = (index as u64 * self.chunk_bits, self.len_of(index));
            let stop = end.min(base + len);
            self.chunks[index].set(len, at - base, stop - base);
            at = stop;
        }
    }

    /// The first bit from `from` on that is set, or that is not; where there is none, how many bits there are.
    fn next_bit(&self, from: u64, set: bool) -> u64 {
        let mut at = from;
        while at < self.bits() {
            let index = (at / self.chunk_bits) as usize;
            let (base, len) = (index as u64 * self.chunk_bits, self.len_of(index));
            if let Some(found) = self.chunks[index].next(len, at - base, set) {
                return base + found;
            }
            at = base + len;
        }
        self.bits()
    }
}
