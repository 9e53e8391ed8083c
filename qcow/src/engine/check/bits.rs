//! A bit for each cluster of a file.

use std::ops::Range;

use crate::addr::ClusterCount;

/// Bits of a word.
const WORD_BITS: u64 = u64::BITS as u64;

/// A bit for each cluster of a file, all clear at first. What was never set takes no memory.
pub(in crate::engine) struct Bits {
    words: Vec<u64>,
    len: ClusterCount,
}

impl Bits {
    /// Bits for `clusters` clusters.
    pub(in crate::engine) fn new(clusters: ClusterCount) -> Self {
        Self { words: vec![0; clusters.div_ceil(WORD_BITS) as usize], len: clusters }
    }

    /// Clusters that have a bit.
    pub(in crate::engine) fn len(&self) -> ClusterCount {
        self.len
    }

    /// The bit of `cluster`, which has one.
    pub(in crate::engine) fn get(&self, cluster: u64) -> bool {
        self.words[(cluster / WORD_BITS) as usize] >> (cluster % WORD_BITS) & 1 == 1
    }

    /// Sets or clears the bit of `cluster`, which has one.
    pub(in crate::engine) fn set(&mut self, cluster: u64, bit: bool) {
        let word = &mut self.words[(cluster / WORD_BITS) as usize];
        *word = *word & !(1 << (cluster % WORD_BITS)) | u64::from(bit) << (cluster % WORD_BITS);
    }

    /// Whether each of `clusters` has a bit, and it is `bit`.
    pub(in crate::engine) fn are(&self, clusters: &Range<u64>, bit: bool) -> bool {
        if clusters.end > self.len {
            return false;
        }
        let wanted = if bit { u64::MAX } else { 0 };
        let mut at = clusters.start;
        while at < clusters.end {
            let end = clusters.end.min((at / WORD_BITS + 1) * WORD_BITS);
            let mask = (u64::MAX >> (WORD_BITS - (end - at))) << (at % WORD_BITS);
            if (self.words[(at / WORD_BITS) as usize] ^ wanted) & mask != 0 {
                return false;
            }
            at = end;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each range of a few words, against a look at each bit.
    #[test]
    fn a_range_is_judged_as_bit_by_bit() {
        const LEN: u64 = 150;
        let is_set = |at: u64| (60..130).contains(&at) && at != 70;
        let mut bits = Bits::new(LEN);
        (0..LEN).for_each(|at| bits.set(at, true));
        (0..LEN).for_each(|at| bits.set(at, is_set(at)));
        assert!((0..LEN).all(|at| bits.get(at) == is_set(at)));
        for start in 0..LEN {
            for end in start..=LEN {
                for bit in [false, true] {
                    let expected = (start..end).all(|at| is_set(at) == bit);
                    assert_eq!(bits.are(&(start..end), bit), expected, "{start}..{end} {bit}");
                }
            }
        }
    }

    #[test]
    fn behind_the_last_cluster_there_is_no_bit() {
        let bits = Bits::new(65);
        assert!(bits.are(&(0..65), false) && !bits.are(&(0..66), false));
        assert!(!Bits::new(0).are(&(0..1), false));
    }
}
