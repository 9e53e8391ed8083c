//! Entries of the L1, L2 and refcount tables: the raw words, and what they mean.
//!
//! Clauses "The L1 table", "Standard Cluster Descriptor", "Compressed Clusters Descriptor" and "Extended L2 Entries" of
//! the specification.

use smallvec::SmallVec;

use super::subcluster::Subclusters;
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

/// A raw entry of an L2 table with extended (16-byte) entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtendedL2Entry {
    /// The first word, which is as a standard entry but for bit 0.
    pub descriptor: u64,
    /// The second word: see [`Subclusters`].
    pub bitmap: u64,
}

/// Where compressed data lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedExtent {
    /// First byte of the compressed data; not aligned to anything.
    pub offset: HostOffset,
    /// Upper bound of its length in bytes: it ends with a 512-byte sector of the file.
    pub len: u64,
}

impl CompressedExtent {
    /// Whether an L2 entry can name it: the larger the clusters, the fewer bits are left for the offset.
    pub fn is_addressable(self, geometry: Geometry) -> bool {
        let end = self.offset.get().checked_add(self.len);
        geometry.is_addressable(self.offset, self.len)
            && end.is_some_and(|end| end <= 1 << compressed_shift(geometry))
    }
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
    /// The cluster's subclusters are not all alike, or none has anything and yet a host cluster is kept for them. Only with
    /// extended entries.
    Divided(Divided),
}

/// A cluster whose subclusters differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divided {
    host: Option<Owned>,
    subclusters: Subclusters,
}

impl Divided {
    /// The host cluster, where each subcluster has its place; if there is none, no subcluster is allocated.
    pub fn host(self) -> Option<Owned> {
        self.host
    }

    /// What each subcluster is.
    pub fn subclusters(self) -> Subclusters {
        self.subclusters
    }
}

impl Mapping {
    /// The mapping of a cluster with these subclusters, in an image with extended L2 entries; whatever can be said of
    /// the cluster as a whole is. Without a host cluster no subcluster may be allocated.
    pub fn of_subclusters(host: Option<Owned>, subclusters: Subclusters) -> Self {
        assert!(host.is_some() || subclusters.allocated_span().is_none(), "allocated nowhere");
        match (host, subclusters) {
            (host, Subclusters::ZERO) => Self::Zero { preallocated: host },
            (Some(host), Subclusters::ALLOCATED) => Self::Data(host),
            (None, Subclusters::UNALLOCATED) => Self::Unallocated,
            (host, subclusters) => Self::Divided(Divided { host, subclusters }),
        }
    }

    /// A cluster that was given its place before anything was written to it. Extended entries can say that it holds
    /// nothing yet; of others the place has to read as what the cluster is to hold.
    pub fn preallocated(geometry: Geometry, place: Owned) -> Self {
        if geometry.has_extended_l2() {
            return Self::of_subclusters(Some(place), Subclusters::UNALLOCATED);
        }
        Self::Data(place)
    }

    /// What the cluster's subclusters are. A compressed cluster counts as allocated as a whole.
    pub fn subclusters(self) -> Subclusters {
        match self {
            Self::Unallocated => Subclusters::UNALLOCATED,
            Self::Zero { .. } => Subclusters::ZERO,
            Self::Data(_) | Self::Compressed(_) => Subclusters::ALLOCATED,
            Self::Divided(divided) => divided.subclusters,
        }
    }

    /// The host cluster that is named as a whole, for data or for a write to come.
    pub fn host(self) -> Option<Owned> {
        match self {
            Self::Unallocated | Self::Compressed(_) => None,
            Self::Zero { preallocated } => preallocated,
            Self::Data(owned) => Some(owned),
            Self::Divided(divided) => divided.host,
        }
    }

    /// The bytes of the entry that says this: 8, or 16 in an image with extended entries.
    pub fn encode(self, geometry: Geometry) -> SmallVec<[u8; 16]> {
        let words = self.words(geometry).map(u64::to_be_bytes);
        SmallVec::from_slice(&words.as_flattened()[..geometry.l2_entry_bytes() as usize])
    }

    /// The words of the entry that says this; the second one is 0 in an image without extended entries.
    pub fn words(self, geometry: Geometry) -> [u64; 2] {
        if !geometry.has_extended_l2() {
            return [L2Entry::from_mapping(geometry, self).0, 0];
        }
        let entry = ExtendedL2Entry::from_mapping(geometry, self);
        [entry.descriptor, entry.bitmap]
    }
}

impl ExtendedL2Entry {
    /// The raw words for `mapping`.
    pub fn from_mapping(geometry: Geometry, mapping: Mapping) -> Self {
        if let Mapping::Compressed(_) = mapping {
            return Self { descriptor: L2Entry::from_mapping(geometry, mapping).0, bitmap: 0 };
        }
        let descriptor = mapping.host().map_or(0, |host| standard_descriptor(geometry, host));
        Self { descriptor, bitmap: mapping.subclusters().bitmap() }
    }

    /// What this entry means; an error names what is wrong with it.
    pub fn parse(self, geometry: Geometry) -> Result<Mapping> {
        self.divide(L2Entry(self.descriptor).parse(geometry, false)?)
    }

    /// As [`Self::parse`], of an image whose data lies in an external file: see [`L2Entry::parse_external`].
    pub fn parse_external(self, geometry: Geometry) -> Result<Mapping> {
        self.divide(L2Entry(self.descriptor).parse_external(geometry, false)?)
    }

    /// What becomes of `whole`, which the first word says of the cluster, by what the second says of its parts.
    fn divide(self, whole: Mapping) -> Result<Mapping> {
        let invalid = |why| {
            let Self { descriptor, bitmap } = self;
            let what =
                format!("extended L2 entry {descriptor:#x} with subcluster bitmap {bitmap:#x}");
            Err(Error::corrupt(format!("{what} {why}")))
        };
        if let Mapping::Compressed(_) = whole {
            let sound = self.bitmap == 0;
            return if sound { Ok(whole) } else { invalid("divides a compressed cluster") };
        }
        let subclusters = Subclusters::parse(self.bitmap)?;
        let host = whole.host();
        if host.is_none() && subclusters.allocated_span().is_some() {
            return invalid("has allocated subclusters and no cluster");
        }
        Ok(Mapping::of_subclusters(host, subclusters))
    }
}

/// The word of an entry that names `host` as a whole.
fn standard_descriptor(geometry: Geometry, host: Owned) -> u64 {
    geometry.host_start(host.cluster).get() | if host.copied { COPIED } else { 0 }
}

impl L2Entry {
    /// The raw word for `mapping`, which is not [`Mapping::Divided`].
    pub fn from_mapping(geometry: Geometry, mapping: Mapping) -> Self {
        let owned = |o| standard_descriptor(geometry, o);
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
            Mapping::Divided(_) => unreachable!("only an extended entry divides a cluster"),
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

    /// As [`Self::parse`], of an image whose data lies in an external file: there cluster 0 is data like any other, told
    /// from nothing by its COPIED flag, and nothing is compressed.
    pub fn parse_external(self, geometry: Geometry, zero_flag: bool) -> Result<Mapping> {
        if self.0 & COMPRESSED != 0 {
            return Err(Error::corrupt(
                "Compressed cluster entry found in image with external data file",
            ));
        }
        if self.0 == COPIED {
            return Ok(Mapping::Data(Owned { cluster: HostCluster::new(0), copied: true }));
        }
        self.parse(geometry, zero_flag)
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u64 = 0x50000;

    fn geometry() -> Geometry {
        Geometry::new(16, 4).with_extended_l2(true)
    }

    fn parse(descriptor: u64, bitmap: u64) -> Result<Mapping> {
        ExtendedL2Entry { descriptor, bitmap }.parse(geometry())
    }

    fn place() -> Owned {
        Owned { cluster: geometry().host_cluster(HostOffset::new(HOST)), copied: true }
    }

    #[test]
    fn extended_entries_are_read_and_written_back() {
        let all = u64::from(u32::MAX);
        for (descriptor, bitmap) in [
            (0, 0),
            (0, all << 32),
            (0, 5 << 32),
            (HOST | COPIED, 0),
            (HOST | COPIED, all),
            (HOST, all << 32),
            (HOST, 0x8000_0001_0000_0102),
            (COMPRESSED | 1 << 54 | 0x5_1234, 0),
        ] {
            let mapping = parse(descriptor, bitmap).expect("a sound entry");
            let entry = ExtendedL2Entry { descriptor, bitmap };
            assert_eq!(ExtendedL2Entry::from_mapping(geometry(), mapping), entry, "{mapping:?}");
            let bytes = [descriptor.to_be_bytes(), bitmap.to_be_bytes()].concat();
            assert_eq!(mapping.encode(geometry())[..], bytes);
        }
    }

    #[test]
    fn subclusters_that_are_all_alike_are_told_as_a_cluster() {
        let all = u64::from(u32::MAX);
        let whole = [
            (parse(HOST | COPIED, all), Mapping::Data(place())),
            (parse(HOST | COPIED, all << 32), Mapping::Zero { preallocated: Some(place()) }),
            (parse(0, all << 32), Mapping::Zero { preallocated: None }),
            (parse(0, 0), Mapping::Unallocated),
        ];
        for (parsed, expected) in whole {
            assert_eq!(parsed.expect("sound"), expected);
        }
        let kept = parse(HOST | COPIED, 0).expect("sound");
        assert_eq!(kept, Mapping::preallocated(geometry(), place()));
        assert!(matches!(kept, Mapping::Divided(_)));
    }

    #[test]
    fn extended_entries_that_contradict_themselves_are_corrupt() {
        for (descriptor, bitmap, why) in [
            (HOST | COPIED, 1 | 1 << 32, "a subcluster is both"),
            (0, 1, "allocated nowhere"),
            (COPIED, 1, "allocated in the header"),
            (COMPRESSED | 0x5_1234, 1, "a compressed cluster has no subclusters"),
            (HOST | ZERO, 0, "bit 0 is reserved"),
            (HOST | 1 << 60, 0, "reserved"),
            (HOST + 512, 0, "unaligned"),
        ] {
            parse(descriptor, bitmap).expect_err(why);
        }
    }
}
