//! Persistent bitmaps: the directory that lists them, and the tables that say where their bits lie.
//!
//! The bitmaps header extension names the directory. Nothing here is trusted: an entry that fails a check is refused
//! with its number or name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::bytes::{Reader, pad_to};
use super::table::TableClaim;
use crate::addr::{Geometry, HostCluster, HostOffset};
use crate::error::{Error, Result};
use crate::limits::{
    BITMAP_BYTES_MAX, BITMAP_COUNT_MAX, BITMAP_DIRECTORY_BYTES_MAX, BITMAP_GRANULARITY_BITS,
    BITMAP_NAME_BYTES_MAX,
};

/// Bytes of a directory entry in front of extra data and name.
const ENTRY_BYTES: u64 = 24;
/// The only type of bitmap there is: dirty tracking.
const TYPE_DIRTY_TRACKING: u8 = 1;
/// Bits of a table entry that must be zero.
const TABLE_ENTRY_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// Bits of a table entry that hold a host offset.
const TABLE_ENTRY_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Flags of a bitmap; only those the specification defines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitmapFlags(pub u32);

impl BitmapFlags {
    /// The bitmap was not saved properly: its content means nothing.
    pub const IN_USE: Self = Self(1 << 0);
    /// The bitmap is to record all writes to the disk.
    pub const AUTO: Self = Self(1 << 1);
    /// A program may keep the bitmap even though it does not know its extra data.
    pub const EXTRA_DATA_COMPATIBLE: Self = Self(1 << 2);

    const KNOWN: u32 = 0b111;

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags with `other` set or not.
    #[must_use]
    pub const fn with(self, other: Self, set: bool) -> Self {
        Self(if set { self.0 | other.0 } else { self.0 & !other.0 })
    }
}

/// One bitmap of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapEntry {
    /// The name, 1 to 1023 bytes, unique in its directory.
    pub name: OsString,
    /// What is known of its state.
    pub flags: BitmapFlags,
    /// log2 of the bytes of the disk that one bit stands for, 9 to 31.
    pub granularity_bits: u8,
    /// Where its table starts, at a cluster boundary; the whole table lies inside the file.
    pub table_offset: HostOffset,
    /// Entries of its table: clusters of bitmap data, at most 512 MiB of them.
    pub table_size: u32,
    /// Extra data, which no program is known to write.
    pub extra: Vec<u8>,
}

impl BitmapEntry {
    /// Bytes of one bit's part of the disk.
    pub const fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Bytes that it takes in the directory.
    pub fn directory_len(&self) -> u64 {
        directory_len(self.name.len(), self.extra.len())
    }
}

/// Bytes that a bitmap with a name of `name_len` bytes and `extra_len` bytes of extra data takes in the directory.
pub fn directory_len(name_len: usize, extra_len: usize) -> u64 {
    (ENTRY_BYTES + name_len as u64 + extra_len as u64).next_multiple_of(8)
}

/// What an entry of a bitmap's table says about one cluster of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapCluster {
    /// No bit is set.
    Zeros,
    /// All bits are set.
    Ones,
    /// The bits lie in this host cluster, the lowest bit of each byte first.
    Data(HostCluster),
}

/// The `count` bitmaps in `directory`, all of its bytes, of an image of `file_len` bytes.
///
/// # Errors
/// The directory does not hold exactly `count` entries, or names the entry that is broken.
pub fn parse_directory(
    directory: &[u8],
    count: u32,
    geometry: Geometry,
    file_len: u64,
) -> Result<Vec<BitmapEntry>> {
    let mut entries: Vec<BitmapEntry> = Vec::new();
    let mut names = std::collections::HashSet::new();
    let mut reader = Reader::new(directory);
    while reader.remaining() > 0 {
        let number = entries.len();
        if number as u64 >= u64::from(count.min(BITMAP_COUNT_MAX)) {
            return Err(Error::corrupt("More bitmaps found than specified in header extension"));
        }
        let entry = read_entry(&mut reader).ok_or_else(|| {
            Error::corrupt(format!("Broken bitmap directory (entry {number} ends behind it)"))
        })?;
        let entry = entry.check(geometry, file_len)?;
        if !names.insert(entry.name.clone()) {
            return Err(broken(&entry.name, "another bitmap has the same name"));
        }
        entries.push(entry);
    }
    if entries.len() as u64 != u64::from(count) {
        return Err(Error::corrupt("Less bitmaps found than specified in header extension"));
    }
    Ok(entries)
}

/// The directory that lists `entries`.
///
/// # Errors
/// It would be too large.
pub fn encode_directory(entries: &[BitmapEntry]) -> Result<Vec<u8>> {
    let len: u64 = entries.iter().map(BitmapEntry::directory_len).sum();
    if entries.len() as u64 > u64::from(BITMAP_COUNT_MAX) || len > BITMAP_DIRECTORY_BYTES_MAX {
        return Err(Error::limit("Not enough space in the bitmap directory"));
    }
    let mut out = Vec::with_capacity(len as usize);
    for entry in entries {
        out.extend_from_slice(&entry.table_offset.get().to_be_bytes());
        out.extend_from_slice(&entry.table_size.to_be_bytes());
        out.extend_from_slice(&entry.flags.0.to_be_bytes());
        out.extend_from_slice(&[TYPE_DIRTY_TRACKING, entry.granularity_bits]);
        // Both lengths were checked when the bitmap was made or read.
        out.extend_from_slice(&(entry.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&(entry.extra.len() as u32).to_be_bytes());
        out.extend_from_slice(&entry.extra);
        out.extend_from_slice(entry.name.as_bytes());
        pad_to(&mut out, 8);
    }
    Ok(out)
}

/// The table whose clusters of bits are `clusters`.
pub fn encode_table(clusters: &[BitmapCluster], geometry: Geometry) -> Vec<u8> {
    let word = |cluster: &BitmapCluster| match *cluster {
        BitmapCluster::Zeros => 0,
        BitmapCluster::Ones => 1,
        BitmapCluster::Data(cluster) => geometry.host_start(cluster).get(),
    };
    clusters.iter().flat_map(|cluster| word(cluster).to_be_bytes()).collect()
}

/// The table entry `raw`, as read from a bitmap's table.
///
/// # Errors
/// The entry has reserved bits set or an offset that no cluster has.
pub fn parse_table_entry(raw: u64, geometry: Geometry) -> Result<BitmapCluster> {
    let offset = raw & TABLE_ENTRY_OFFSET;
    if raw & TABLE_ENTRY_RESERVED != 0 || (offset != 0 && raw & 1 != 0) {
        return Err(Error::corrupt(format!("bitmap table entry {raw:#x} has reserved bits set")));
    }
    if offset == 0 {
        return Ok(if raw & 1 == 0 { BitmapCluster::Zeros } else { BitmapCluster::Ones });
    }
    let start = HostOffset::new(offset);
    if !geometry.is_cluster_aligned(offset)
        || !geometry.is_addressable(start, geometry.cluster_size())
    {
        return Err(Error::corrupt(format!("bitmap cluster offset {offset:#x} unaligned")));
    }
    Ok(BitmapCluster::Data(geometry.host_cluster(start)))
}

/// An entry as it lies on disk, its name and extra data cut out.
struct RawEntry<'a> {
    table_offset: u64,
    table_size: u32,
    flags: u32,
    kind: u8,
    granularity_bits: u8,
    name: &'a [u8],
    extra: &'a [u8],
}

fn read_entry<'a>(reader: &mut Reader<'a>) -> Option<RawEntry<'a>> {
    let before = reader.remaining();
    let (table_offset, table_size, flags) = (reader.u64()?, reader.u32()?, reader.u32()?);
    let (kind, granularity_bits) = (reader.u8()?, reader.u8()?);
    let (name_size, extra_size) = (reader.u16()?, reader.u32()?);
    let extra = reader.take(usize::try_from(extra_size).ok()?)?;
    let name = reader.take(name_size.into())?;
    let len = before - reader.remaining();
    reader.take(len.next_multiple_of(8) - len)?;
    Some(RawEntry { table_offset, table_size, flags, kind, granularity_bits, name, extra })
}

impl RawEntry<'_> {
    fn check(&self, geometry: Geometry, file_len: u64) -> Result<BitmapEntry> {
        let name = OsStr::from_bytes(self.name);
        if self.name.is_empty() || self.name.len() > BITMAP_NAME_BYTES_MAX.into() {
            return Err(broken(name, "its name has a length that is not allowed"));
        }
        if self.kind != TYPE_DIRTY_TRACKING {
            return Err(broken(name, "its type is unknown"));
        }
        if self.flags & !BitmapFlags::KNOWN != 0 {
            return Err(broken(name, "it has unknown flags"));
        }
        if !BITMAP_GRANULARITY_BITS.contains(&self.granularity_bits) {
            return Err(broken(name, "its granularity is not between 2^9 and 2^31 bytes"));
        }
        let data_bytes = u64::from(self.table_size) * geometry.cluster_size();
        if self.table_size == 0 || data_bytes > BITMAP_BYTES_MAX {
            return Err(broken(name, "its table is empty or stands for more than 512 MiB"));
        }
        let table = TableClaim {
            name: "bitmap table",
            field: "table_offset",
            offset: HostOffset::new(self.table_offset),
            len: u64::from(self.table_size) * 8,
            len_max: BITMAP_BYTES_MAX,
        };
        table.check(geometry, file_len).map_err(|error| broken(name, error.message()))?;
        Ok(BitmapEntry {
            name: name.to_owned(),
            flags: BitmapFlags(self.flags),
            granularity_bits: self.granularity_bits,
            table_offset: table.offset,
            table_size: self.table_size,
            extra: self.extra.to_vec(),
        })
    }
}

fn broken(name: &OsStr, why: &str) -> Error {
    let name = name.display();
    Error::corrupt(format!("Bitmap '{name}' doesn't satisfy the constraints: {why}"))
}

#[cfg(test)]
mod tests;
