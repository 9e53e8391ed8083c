//! Entries of the L1, L2 and refcount tables: the raw words, and what they mean.
//!
//! Clauses "The L1 table", "Standard Cluster Descriptor" and "Compressed Clusters Descriptor" of the specification.

use crate::addr::{Geometry, HostCluster, HostOffset};
use crate::error::{Error, Result};

/// Bit 63: the refcount of what the entry names is exactly one. Only meaningful in the active tables.
pub(crate) const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: the cluster is compressed.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of an L2 entry (version 3): the cluster reads as zeros.
pub(crate) const ZERO: u64 = 1;
/// Bits 9 to 55: a host offset.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that must be zero.
pub(crate) const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits of a standard L2 entry that must be zero.
pub(crate) const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Bits of a refcount table entry that must be zero.
pub(crate) const REFCOUNT_TABLE_RESERVED: u64 = 0x1ff;

/// A raw entry of an L1 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(pub u64);

/// A cluster that a table points to, and whether the pointer is its only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The cluster pointed to.
    pub cluster: HostCluster,
    /// The entry's COPIED flag: the refcount is one, so the cluster may be changed in place.
    pub copied: bool,
}

impl L1Entry {
    /// The entry of a stretch without an L2 table.
    pub const EMPTY: Self = Self(0);

    /// The entry that points to the L2 table at `table`.
    pub fn to_table(geometry: Geometry, table: HostCluster, copied: bool) -> Self {
        Self(geometry.host_start(table).get() | if copied { COPIED } else { 0 })
    }

    /// The L2 table this entry points to, if any; an error names what is wrong with the entry.
    pub fn parse(self, geometry: Geometry) -> Result<Option<Owned>> {
        let offset = self.0 & OFFSET_MASK;
        if self.0 & L1_RESERVED != 0 {
            return Err(Error::corrupt(format!("L1 entry {:#x} has reserved bits set", self.0)));
        }
        if offset == 0 {
            return Ok(None);
        }
        if !geometry.is_cluster_aligned(offset) {
            return Err(Error::corrupt(format!("L2 table offset {offset:#x} unaligned")));
        }
        let cluster = geometry.host_cluster(HostOffset::new(offset));
        Ok(Some(Owned { cluster, copied: self.0 & COPIED != 0 }))
    }
}

/// A raw entry of an L2 table with standard (8-byte) entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry(pub u64);

/// Where compressed data lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedExtent {
    /// First byte of the compressed data; not aligned to anything.
    pub offset: HostOffset,
    /// Upper bound of its length in bytes: it ends with a 512-byte sector of the file.
    pub len: u64,
}

/// What an L2 entry says about a guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nothing here: the backing file shows through, or zeros.
    Unallocated,
    /// Reads as zeros; `preallocated` is a host cluster kept for the next write.
    Zero {
        /// The cluster kept in reserve, if any.
        preallocated: Option<Owned>,
    },
    /// The cluster's data lies at this host cluster.
    Data(Owned),
    /// The cluster's data is compressed.
    Compressed(CompressedExtent),
}

impl L2Entry {
    /// The raw word for `mapping`.
    pub fn from_mapping(geometry: Geometry, mapping: Mapping) -> Self {
        let owned =
            |o: Owned| geometry.host_start(o.cluster).get() | if o.copied { COPIED } else { 0 };
        match mapping {
            Mapping::Unallocated => Self(0),
            Mapping::Zero { preallocated: None } => Self(ZERO),
            Mapping::Zero { preallocated: Some(o) } => Self(owned(o) | ZERO),
            Mapping::Data(o) => Self(owned(o)),
            Mapping::Compressed(extent) => {
                let shift = compressed_shift(geometry);
                let first = extent.offset.get() / 512;
                let last = (extent.offset.get() + extent.len - 1) / 512;
                Self(COMPRESSED | (last - first) << shift | extent.offset.get())
            }
        }
    }

    /// What this entry means; an error names what is wrong with it.
    ///
    /// `zero_flag` tells whether bit 0 has a meaning: version 3 without extended L2 entries.
    pub fn parse(self, geometry: Geometry, zero_flag: bool) -> Result<Mapping> {
        if self.0 & COMPRESSED != 0 {
            return self.parse_compressed(geometry);
        }
        let reserved = if zero_flag { L2_RESERVED } else { L2_RESERVED | ZERO };
        if self.0 & reserved != 0 {
            return Err(Error::corrupt(format!("L2 entry {:#x} has reserved bits set", self.0)));
        }
        let offset = self.0 & OFFSET_MASK;
        if !geometry.is_cluster_aligned(offset) {
            return Err(Error::corrupt(format!("Cluster allocation offset {offset:#x} unaligned")));
        }
        let copied = self.0 & COPIED != 0;
        if offset == 0 && copied && self.0 & ZERO == 0 {
            // Host offset 0 is the header; only an external data file may map data there.
            return Err(Error::corrupt(format!("L2 entry {:#x} maps the header cluster", self.0)));
        }
        let owned = Owned { cluster: geometry.host_cluster(HostOffset::new(offset)), copied };
        Ok(match (self.0 & ZERO != 0, offset) {
            (true, 0) => Mapping::Zero { preallocated: None },
            (true, _) => Mapping::Zero { preallocated: Some(owned) },
            (false, 0) => Mapping::Unallocated,
            (false, _) => Mapping::Data(owned),
        })
    }

    fn parse_compressed(self, geometry: Geometry) -> Result<Mapping> {
        if self.0 & COPIED != 0 {
            return Err(Error::corrupt(format!(
                "compressed L2 entry {:#x} has COPIED set",
                self.0
            )));
        }
        let shift = compressed_shift(geometry);
        let offset = self.0 & ((1 << shift) - 1);
        let sectors = (self.0 & (COMPRESSED - 1)) >> shift;
        let len = (sectors + 1) * 512 - offset % 512;
        if offset < geometry.cluster_size() || offset.checked_add(len).is_none() {
            return Err(Error::corrupt(format!(
                "compressed L2 entry {:#x} points into the header cluster",
                self.0
            )));
        }
        Ok(Mapping::Compressed(CompressedExtent { offset: HostOffset::new(offset), len }))
    }
}

/// Width of the host offset in a compressed descriptor (the specification's `x`).
const fn compressed_shift(geometry: Geometry) -> u32 {
    62 - (geometry.cluster_bits() - 8)
}

/// A raw entry of the refcount table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// The entry that points to the refcount block at `block`.
    pub fn to_block(geometry: Geometry, block: HostCluster) -> Self {
        Self(geometry.host_start(block).get())
    }

    /// The refcount block this entry points to, if any; an error names what is wrong with the entry.
    pub fn parse(self, geometry: Geometry) -> Result<Option<HostCluster>> {
        let offset = self.0 & !REFCOUNT_TABLE_RESERVED;
        if self.0 == 0 {
            return Ok(None);
        }
        if offset == 0
            || self.0 & REFCOUNT_TABLE_RESERVED != 0
            || !geometry.is_cluster_aligned(offset)
            || !geometry.is_addressable(HostOffset::new(offset), geometry.cluster_size())
        {
            return Err(Error::corrupt(format!("refcount block offset {:#x} unaligned", self.0)));
        }
        Ok(Some(geometry.host_cluster(HostOffset::new(offset))))
    }
}
