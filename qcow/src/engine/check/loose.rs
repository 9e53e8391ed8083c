//! Table entries as they are, however wrong: [`crate::format::entry`] refuses what a check has to look at.

use super::target::Target;
use crate::addr::Geometry;
use crate::disk::Disk;
use crate::format::entry::{
    COMPRESSED, COPIED, L1_RESERVED, L2_RESERVED, OFFSET_MASK, REFCOUNT_TABLE_RESERVED, ZERO,
};

/// The subclusters of an extended L2 entry that are allocated.
pub(in crate::engine) const SUBCLUSTERS_ALLOCATED: u64 = 0xffff_ffff;

/// An L1 entry, or what the two kinds of entry have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct LooseL1(pub(in crate::engine) u64);

impl LooseL1 {
    /// First byte of the L2 table; 0 for none.
    pub(in crate::engine) fn offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    pub(in crate::engine) fn has_reserved_bits(self) -> bool {
        self.0 & L1_RESERVED != 0
    }

    /// The entry without the bits that must be zero.
    pub(in crate::engine) fn without_reserved_bits(self) -> Self {
        Self(self.0 & !L1_RESERVED)
    }

    /// The entry that names the table at `offset` instead.
    pub(in crate::engine) fn to(self, offset: u64) -> Self {
        Self(self.0 & !OFFSET_MASK | offset)
    }
}

/// Whether an L1 or L2 entry has the COPIED flag.
pub(in crate::engine) fn is_copied(entry: u64) -> bool {
    entry & COPIED != 0
}

/// The L1 or L2 entry with the COPIED flag as given.
pub(in crate::engine) fn with_copied(entry: u64, copied: bool) -> u64 {
    if copied { entry | COPIED } else { entry & !COPIED }
}

/// How the L2 entries of an image are to be read.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct L2Format {
    pub(in crate::engine) geometry: Geometry,
    /// Each entry has a second word that tells of 32 subclusters.
    pub(in crate::engine) extended: bool,
    /// Clusters lie in a file of their own.
    pub(in crate::engine) data_file: bool,
}

impl L2Format {
    pub(in crate::engine) fn of<D: Disk>(target: &Target<'_, D>) -> Self {
        Self {
            geometry: target.geometry,
            extended: target.has_extended_l2(),
            data_file: target.has_data_file(),
        }
    }

    /// Words of an entry.
    pub(in crate::engine) fn words(self) -> usize {
        if self.extended { 2 } else { 1 }
    }

    /// The entries in the words of a table.
    pub(in crate::engine) fn entries(self, words: &[u64]) -> impl Iterator<Item = LooseL2> + '_ {
        let entry =
            |words: &[u64]| LooseL2 { word: words[0], bitmap: words.get(1).copied().unwrap_or(0) };
        words.chunks_exact(self.words()).map(entry)
    }
}

/// An L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct LooseL2 {
    pub(in crate::engine) word: u64,
    /// The subclusters of an extended entry: allocated ones in the low half, those that read as zeros in the high half.
    pub(in crate::engine) bitmap: u64,
}

/// What an L2 entry claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Claim {
    /// No place in the file.
    Nothing,
    /// A cluster, aligned or not.
    Cluster {
        /// Its first byte.
        offset: u64,
        /// Whether it is only kept in reserve: nothing in it is read.
        reserve: bool,
    },
    /// Compressed data.
    Compressed {
        /// Its first byte.
        offset: u64,
        /// Upper bound of its length in bytes.
        len: u64,
    },
}

impl LooseL2 {
    pub(in crate::engine) fn claim(self, format: L2Format) -> Claim {
        if self.is_compressed() {
            let size_bits = format.geometry.cluster_bits() - 8;
            let offset = self.word & ((1 << (62 - size_bits)) - 1);
            let more_sectors = (self.word >> (62 - size_bits)) & ((1 << size_bits) - 1);
            return Claim::Compressed { offset, len: (more_sectors + 1) * 512 - offset % 512 };
        }
        let reserve = match format.extended {
            true => self.bitmap & SUBCLUSTERS_ALLOCATED == 0,
            false => self.has_zero_bit(),
        };
        let is_plain_zero = !format.extended && reserve;
        // A data file of its own has data at its start, too.
        let is_start = format.data_file && is_copied(self.word) && !is_plain_zero;
        match self.word & OFFSET_MASK {
            0 if !is_start => Claim::Nothing,
            offset => Claim::Cluster { offset, reserve },
        }
    }

    pub(in crate::engine) fn has_reserved_bits(self) -> bool {
        !self.is_compressed() && self.word & L2_RESERVED != 0
    }

    /// Whether bit 0 is set where it would be the zero flag of version 3.
    pub(in crate::engine) fn has_zero_bit(self) -> bool {
        !self.is_compressed() && self.word & ZERO != 0
    }

    pub(in crate::engine) fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    /// Whether a subcluster is said to be allocated and to read as zeros.
    pub(in crate::engine) fn subclusters_contradict(self) -> bool {
        self.bitmap >> 32 & self.bitmap != 0
    }
}

/// A refcount table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct LooseRefcountTable(pub(super) u64);

impl LooseRefcountTable {
    /// First byte of the refcount block; 0 for none.
    pub(in crate::engine) fn offset(self) -> u64 {
        self.0 & !REFCOUNT_TABLE_RESERVED
    }

    pub(in crate::engine) fn has_reserved_bits(self) -> bool {
        self.0 & REFCOUNT_TABLE_RESERVED != 0
    }
}
