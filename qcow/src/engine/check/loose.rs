//! Table entries as they are, however wrong: [`crate::format::entry`] refuses what a check has to look at.

use crate::addr::Geometry;
use crate::format::entry::{
    COMPRESSED, COPIED, L1_RESERVED, L2_RESERVED, OFFSET_MASK, REFCOUNT_TABLE_RESERVED, ZERO,
};

/// An L1 entry, or what the two kinds of entry have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LooseL1(pub(super) u64);

impl LooseL1 {
    /// First byte of the L2 table; 0 for none.
    pub(super) fn offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    pub(super) fn has_reserved_bits(self) -> bool {
        self.0 & L1_RESERVED != 0
    }
}

/// Whether an L1 or L2 entry has the COPIED flag.
pub(super) fn is_copied(entry: u64) -> bool {
    entry & COPIED != 0
}

/// The L1 or L2 entry with the COPIED flag as given.
pub(super) fn with_copied(entry: u64, copied: bool) -> u64 {
    if copied { entry | COPIED } else { entry & !COPIED }
}

/// An L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LooseL2(pub(super) u64);

/// What an L2 entry claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// No place in the file.
    Nothing,
    /// A cluster, aligned or not.
    Cluster {
        /// Its first byte.
        offset: u64,
        /// Whether it is only kept in reserve, and reads as zeros.
        zero: bool,
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
    pub(super) fn claim(self, geometry: Geometry) -> Claim {
        if self.is_compressed() {
            let size_bits = geometry.cluster_bits() - 8;
            let offset = self.0 & ((1 << (62 - size_bits)) - 1);
            let more_sectors = (self.0 >> (62 - size_bits)) & ((1 << size_bits) - 1);
            return Claim::Compressed { offset, len: (more_sectors + 1) * 512 - offset % 512 };
        }
        match self.0 & OFFSET_MASK {
            0 => Claim::Nothing,
            offset => Claim::Cluster { offset, zero: self.has_zero_flag() },
        }
    }

    pub(super) fn has_reserved_bits(self) -> bool {
        !self.is_compressed() && self.0 & L2_RESERVED != 0
    }

    /// Whether bit 0 is set where it would be the zero flag of version 3.
    pub(super) fn has_zero_flag(self) -> bool {
        !self.is_compressed() && self.0 & ZERO != 0
    }

    fn is_compressed(self) -> bool {
        self.0 & COMPRESSED != 0
    }
}

/// A refcount table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LooseRefcountTable(pub(super) u64);

impl LooseRefcountTable {
    /// First byte of the refcount block; 0 for none.
    pub(super) fn offset(self) -> u64 {
        self.0 & !REFCOUNT_TABLE_RESERVED
    }

    pub(super) fn has_reserved_bits(self) -> bool {
        self.0 & REFCOUNT_TABLE_RESERVED != 0
    }
}
