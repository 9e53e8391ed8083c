//! A chunk of bits: those that one cluster of the image file holds.
//!
//! Whoever calls says how many bits the chunk has: all have as many as a cluster holds, but the last one fewer.

use super::Stored;

/// Bits of a word.
const WORD_BITS: u64 = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    bits: ChunkBits,
    /// Whether it differs from what the image file has, as far as is known.
    changed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ChunkBits {
    /// None is set.
    Zeros,
    /// All are set.
    Ones,
    /// The lowest bit of each word first; behind the last bit there are zeros.
    Words(Box<[u64]>),
}

impl Chunk {
    /// No bit is set, and nothing of it is in the image file.
    pub(super) fn new() -> Self {
        Self { bits: ChunkBits::Zeros, changed: true }
    }

    pub(super) fn is_changed(&self) -> bool {
        self.changed
    }

    pub(super) fn mark_changed(&mut self) {
        self.changed = true;
    }

    pub(super) fn clear(&mut self) {
        if self.bits != ChunkBits::Zeros {
            *self = Self { bits: ChunkBits::Zeros, changed: true };
        }
    }

    /// Sets the bits from `first` up to `end`.
    pub(super) fn set(&mut self, len: u64, first: u64, end: u64) {
        if self.bits == ChunkBits::Ones {
            return;
        }
        if (first, end) == (0, len) {
            *self = Self { bits: ChunkBits::Ones, changed: true };
            return;
        }
        let mut flipped = 0;
        let words = self.words(len);
        for (index, mask) in masks(first, end) {
            flipped |= mask & !words[index];
            words[index] |= mask;
        }
        self.changed |= flipped != 0;
    }

    /// Sets the bits that are set in `other`, a chunk of as many bits.
    pub(super) fn merge(&mut self, len: u64, other: &Self) {
        match &other.bits {
            ChunkBits::Zeros => {}
            ChunkBits::Ones => self.set(len, 0, len),
            ChunkBits::Words(_) if self.bits == ChunkBits::Ones => {}
            ChunkBits::Words(others) => {
                let mut flipped = 0;
                for (word, other) in self.words(len).iter_mut().zip(others) {
                    flipped |= other & !*word;
                    *word |= other;
                }
                self.changed |= flipped != 0;
            }
        }
    }

    /// Puts words in the place of the statement that all bits are set.
    pub(super) fn spell_out(&mut self, len: u64) {
        if self.bits == ChunkBits::Ones {
            self.words(len);
            self.changed = true;
        }
    }

    /// Makes it `len` bits long; new ones are not set. A chunk of ones only becomes shorter.
    pub(super) fn fit(&mut self, len: u64) {
        let ChunkBits::Words(words) = &mut self.bits else { return };
        let mut fitted = std::mem::take(words).into_vec();
        let is_cut = cut_tail(&mut fitted, len);
        fitted.resize(len.div_ceil(WORD_BITS) as usize, 0);
        *words = fitted.into();
        self.changed |= is_cut;
    }

    /// As it is to be stored in `cluster` bytes, where it differs from the image file; from now on it does not.
    pub(super) fn take_changed(&mut self, len: u64, cluster: usize) -> Option<Stored> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        // Of a last cluster that the disk does not fill QEMU takes "all ones" for more than the disk has, and shows that when
        // the disk grows.
        let is_full = len == cluster as u64 * 8;
        if !is_full && matches!(self.bits, ChunkBits::Ones) {
            self.words(len);
        }
        let words = match &self.bits {
            ChunkBits::Zeros => return Some(Stored::Zeros),
            ChunkBits::Ones => return Some(Stored::Ones),
            ChunkBits::Words(words) => words,
        };
        let count: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
        if count == 0 {
            return Some(Stored::Zeros);
        }
        if count == len && is_full {
            self.bits = ChunkBits::Ones;
            return Some(Stored::Ones);
        }
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(cluster, 0);
        Some(Stored::Bytes(bytes))
    }

    /// Takes `stored`, which the image file has.
    pub(super) fn load(&mut self, len: u64, stored: &Stored) {
        self.changed = false;
        self.bits = match stored {
            Stored::Zeros => ChunkBits::Zeros,
            Stored::Ones => ChunkBits::Ones,
            Stored::Bytes(bytes) => {
                let word = |eight: &[u8]| {
                    eight.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
                };
                ChunkBits::Words(bytes.chunks(8).map(word).collect())
            }
        };
        // Where something lies behind the end, a disk that grows must not find it in the file.
        self.fit(len);
    }

    /// The first bit from `from` on that is set, or that is not.
    pub(super) fn next(&self, len: u64, from: u64, set: bool) -> Option<u64> {
        let words = match &self.bits {
            ChunkBits::Zeros => return (!set).then_some(from),
            ChunkBits::Ones => return set.then_some(from),
            ChunkBits::Words(words) => words,
        };
        let start = (from / WORD_BITS) as usize;
        let mut mask = u64::MAX << (from % WORD_BITS);
        for (index, &word) in words.iter().enumerate().skip(start) {
            let hits = if set { word } else { !word } & mask;
            mask = u64::MAX;
            if hits != 0 {
                let found = index as u64 * WORD_BITS + u64::from(hits.trailing_zeros());
                return (found < len).then_some(found);
            }
        }
        None
    }

    /// The bits as words, whatever they were before.
    fn words(&mut self, len: u64) -> &mut [u64] {
        let count = len.div_ceil(WORD_BITS) as usize;
        match self.bits {
            ChunkBits::Words(_) => {}
            ChunkBits::Zeros => self.bits = ChunkBits::Words(vec![0; count].into()),
            ChunkBits::Ones => {
                let mut words = vec![u64::MAX; count];
                cut_tail(&mut words, len);
                self.bits = ChunkBits::Words(words.into());
            }
        }
        match &mut self.bits {
            ChunkBits::Words(words) => words,
            ChunkBits::Zeros | ChunkBits::Ones => unreachable!("they have just been spelled out"),
        }
    }
}

/// The words that the bits from `first` up to `end` lie in, each with those bits.
fn masks(first: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    (first / WORD_BITS..end.div_ceil(WORD_BITS)).map(move |index| {
        let base = index * WORD_BITS;
        let low = first.saturating_sub(base);
        let high = (end - base).min(WORD_BITS);
        (index as usize, (u64::MAX >> (WORD_BITS - (high - low))) << low)
    })
}

/// Clears what `words` have from bit `len` on; whether anything was set there.
fn cut_tail(words: &mut [u64], len: u64) -> bool {
    let mut was_set = false;
    for (index, word) in words.iter_mut().enumerate().skip((len / WORD_BITS) as usize) {
        let keep = len.saturating_sub(index as u64 * WORD_BITS).min(WORD_BITS);
        let kept = if keep == 0 { 0 } else { *word & (u64::MAX >> (WORD_BITS - keep)) };
        was_set |= kept != *word;
        *word = kept;
    }
    was_set
}
