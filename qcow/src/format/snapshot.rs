//! The table of internal snapshots: entries of varying length, one after the other at 8-byte boundaries.
//!
//! How long the table is shows only as it is read, so [`SnapshotTableReader`] takes it in pieces.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::bytes::{Reader, pad_to, until_nul};
use super::table::TableClaim;
use crate::addr::{Geometry, HostOffset};
use crate::error::{Error, Result};
use crate::limits::{
    L1_BYTES_MAX, SNAPSHOT_COUNT_MAX, SNAPSHOT_EXTRA_BYTES_MAX, SNAPSHOT_TABLE_BYTES_MAX,
};

/// Bytes of an entry's fixed part, and so of the shortest entry.
pub(super) const ENTRY_BYTES_MIN: u64 = 40;
/// Bytes of the extra data this engine understands: VM state size, disk size, instruction count.
const KNOWN_EXTRA_BYTES: usize = 24;
/// The on-disk instruction count of a snapshot without one.
const NO_ICOUNT: u64 = u64::MAX;

/// One internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Where the snapshot's L1 table starts. Unchecked: see [`SnapshotEntry::check_l1`].
    pub l1_table_offset: HostOffset,
    /// Entries of the snapshot's L1 table. Unchecked: see [`SnapshotEntry::check_l1`].
    pub l1_size: u32,
    /// The identifier, at most 65535 bytes; QEMU counts from `1`. Not always unique.
    pub id: OsString,
    /// The name, at most 65535 bytes. Not always unique.
    pub name: OsString,
    /// When it was taken, in seconds since 1970.
    pub date_seconds: u32,
    /// The nanoseconds that belong to `date_seconds`.
    pub date_nanoseconds: u32,
    /// How long the virtual machine had run, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// Bytes of saved VM state; 0 for a snapshot of the disk alone.
    pub vm_state_size: u64,
    /// The disk's size in bytes at that time.
    pub disk_size: u64,
    /// Instructions executed, where the machine counted them.
    pub icount: Option<u64>,
    /// Extra data behind what this engine knows, kept for programs that know more. At most 1000 bytes.
    pub unknown_extra: Vec<u8>,
}

/// What other programs make of `stored`, an id or a name in the table: it ends at its first NUL byte, if it has one.
pub fn as_shown(stored: &OsStr) -> &OsStr {
    OsStr::from_bytes(until_nul(stored.as_bytes()))
}

/// Reads a snapshot table in pieces of any size.
#[derive(Debug)]
pub struct SnapshotTableReader {
    wanted: usize,
    current_disk_size: u64,
    entries: Vec<SnapshotEntry>,
    /// Bytes that do not make up a whole entry yet.
    pending: Vec<u8>,
    /// Padding of the last entry that has not arrived yet.
    padding_due: usize,
    /// Table bytes up to the end of the last entry, without padding.
    table_len: u64,
}

impl SnapshotTableReader {
    /// Starts on a table of `count` entries of a disk that has `current_disk_size` bytes now: the size of snapshots so
    /// old that they do not say theirs.
    ///
    /// # Errors
    /// More snapshots than the engine handles.
    pub fn new(count: u32, current_disk_size: u64) -> Result<Self> {
        if count > SNAPSHOT_COUNT_MAX {
            return Err(Error::limit(format!("Snapshot table too large ({count} snapshots)")));
        }
        Ok(Self {
            wanted: count as usize,
            current_disk_size,
            entries: Vec::new(),
            pending: Vec::new(),
            padding_due: 0,
            table_len: 0,
        })
    }

    /// Takes the next `bytes` of the table; those behind its end are ignored. Returns whether it is complete.
    ///
    /// # Errors
    /// Names the entry that breaks a limit.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool> {
        let padding = self.padding_due.min(bytes.len());
        self.padding_due -= padding;
        self.pending.extend_from_slice(&bytes[padding..]);
        let mut at = 0;
        while let Some(len) = self.take_entry(at)? {
            at += len.next_multiple_of(8);
        }
        self.padding_due += at.saturating_sub(self.pending.len());
        self.pending.drain(..at.min(self.pending.len()));
        Ok(self.is_complete())
    }

    /// Moves the entry at `at` of the pending bytes, if one is due and all of it is there; returns its length.
    fn take_entry(&mut self, at: usize) -> Result<Option<usize>> {
        let number = self.entries.len();
        if number == self.wanted {
            return Ok(None);
        }
        let rest = self.pending.get(at..).unwrap_or_default();
        let Some((entry, len)) = read_entry(rest, number, self.current_disk_size)? else {
            return Ok(None);
        };
        self.table_len = self.table_len.next_multiple_of(8) + len as u64;
        if self.table_len > SNAPSHOT_TABLE_BYTES_MAX {
            return Err(Error::limit(format!("Snapshot table is too big (entry {number})")));
        }
        self.entries.push(entry);
        Ok(Some(len))
    }

    /// Whether all entries are there.
    pub fn is_complete(&self) -> bool {
        self.entries.len() == self.wanted
    }

    /// The entries, and the bytes of the file they take.
    ///
    /// # Errors
    /// The bytes ended before the table did.
    pub fn finish(self) -> Result<(Vec<SnapshotEntry>, u64)> {
        if !self.is_complete() {
            return Err(Error::corrupt(format!(
                "the snapshot table ends in entry {} of {}: it lies past the end of the file",
                self.entries.len(),
                self.wanted
            )));
        }
        Ok((self.entries, self.table_len))
    }
}

/// The `count` entries at the start of `bytes`, and how many of the bytes they take; see [`SnapshotTableReader`].
///
/// # Errors
/// As [`SnapshotTableReader`].
pub fn parse_table(
    bytes: &[u8],
    count: u32,
    current_disk_size: u64,
) -> Result<(Vec<SnapshotEntry>, u64)> {
    let mut reader = SnapshotTableReader::new(count, current_disk_size)?;
    reader.push(bytes)?;
    reader.finish()
}

/// The bytes of a table of these entries, as QEMU writes them.
///
/// # Errors
/// A name, the extra data, the table or the number of snapshots is larger than the format or the engine allows.
pub fn encode_table(entries: &[SnapshotEntry]) -> Result<Vec<u8>> {
    if entries.len() > SNAPSHOT_COUNT_MAX as usize {
        return Err(Error::limit(format!(
            "{} internal snapshots are too many (at most {SNAPSHOT_COUNT_MAX})",
            entries.len()
        )));
    }
    let mut out = Vec::new();
    for entry in entries {
        pad_to(&mut out, 8);
        entry.encode_into(&mut out)?;
        if out.len() as u64 > SNAPSHOT_TABLE_BYTES_MAX {
            return Err(Error::limit("Snapshot table is too big"));
        }
    }
    Ok(out)
}

impl SnapshotEntry {
    /// Refuses an L1 table that is too large, misplaced, or not wholly inside a file of `file_len` bytes. To be asked
    /// before the table is read or freed: `info` and `check` list even entries that fail it.
    ///
    /// # Errors
    /// Names the snapshot and what is wrong with its table.
    pub fn check_l1(&self, geometry: Geometry, file_len: u64) -> Result<()> {
        let l1 = TableClaim {
            name: "Snapshot L1 table",
            field: "l1_table_offset",
            offset: self.l1_table_offset,
            len: u64::from(self.l1_size) * 8,
            len_max: L1_BYTES_MAX,
        };
        l1.check(geometry, file_len)
            .map_err(|error| error.context(format!("snapshot '{}'", self.name.display())))
    }

    fn encode_into(&self, out: &mut Vec<u8>) -> Result<()> {
        let extra_size = KNOWN_EXTRA_BYTES + self.unknown_extra.len();
        if extra_size > SNAPSHOT_EXTRA_BYTES_MAX as usize {
            return Err(self.too_long("extra data"));
        }
        let id_size = u16::try_from(self.id.len()).map_err(|_| self.too_long("id"))?;
        let name_size = u16::try_from(self.name.len()).map_err(|_| self.too_long("name"))?;
        out.extend(self.l1_table_offset.get().to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend(id_size.to_be_bytes());
        out.extend(name_size.to_be_bytes());
        out.extend(self.date_seconds.to_be_bytes());
        out.extend(self.date_nanoseconds.to_be_bytes());
        out.extend(self.vm_clock_nanoseconds.to_be_bytes());
        // A size that does not fit stands in the extra data alone.
        out.extend(u32::try_from(self.vm_state_size).unwrap_or(0).to_be_bytes());
        out.extend((extra_size as u32).to_be_bytes());
        out.extend(self.vm_state_size.to_be_bytes());
        out.extend(self.disk_size.to_be_bytes());
        out.extend(self.icount.unwrap_or(NO_ICOUNT).to_be_bytes());
        out.extend_from_slice(&self.unknown_extra);
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(self.name.as_bytes());
        Ok(())
    }

    fn too_long(&self, what: &str) -> Error {
        Error::invalid(format!("the {what} of snapshot '{}' is too long", self.name.display()))
    }
}

/// The entry at the start of `bytes` and its length without padding; `None` if it is not all there.
fn read_entry(
    bytes: &[u8],
    number: usize,
    current_disk_size: u64,
) -> Result<Option<(SnapshotEntry, usize)>> {
    let mut reader = Reader::new(bytes);
    let Some(fixed) = FixedPart::read(&mut reader) else {
        return Ok(None);
    };
    if fixed.extra_size > SNAPSHOT_EXTRA_BYTES_MAX {
        return Err(Error::limit(format!(
            "Too much extra metadata in snapshot table entry {number} ({} bytes, at most \
             {SNAPSHOT_EXTRA_BYTES_MAX})",
            fixed.extra_size
        )));
    }
    let entry = read_varying_part(&fixed, &mut reader, current_disk_size);
    Ok(entry.map(|entry| (entry, bytes.len() - reader.remaining())))
}

/// The first 40 bytes of an entry.
struct FixedPart {
    l1_table_offset: u64,
    l1_size: u32,
    id_size: u16,
    name_size: u16,
    date_seconds: u32,
    date_nanoseconds: u32,
    vm_clock_nanoseconds: u64,
    vm_state_size: u32,
    extra_size: u32,
}

impl FixedPart {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            l1_table_offset: reader.u64()?,
            l1_size: reader.u32()?,
            id_size: reader.u16()?,
            name_size: reader.u16()?,
            date_seconds: reader.u32()?,
            date_nanoseconds: reader.u32()?,
            vm_clock_nanoseconds: reader.u64()?,
            vm_state_size: reader.u32()?,
            extra_size: reader.u32()?,
        })
    }
}

fn read_varying_part(
    fixed: &FixedPart,
    reader: &mut Reader<'_>,
    current_disk_size: u64,
) -> Option<SnapshotEntry> {
    let extra = reader.take(fixed.extra_size as usize)?;
    let id = OsStr::from_bytes(reader.take(fixed.id_size.into())?).to_owned();
    let name = OsStr::from_bytes(reader.take(fixed.name_size.into())?).to_owned();
    // Old programs wrote fewer of the extra fields, or none.
    let mut known = Reader::new(extra);
    let vm_state_size = known.u64().unwrap_or(fixed.vm_state_size.into());
    let disk_size = known.u64().unwrap_or(current_disk_size);
    let icount = known.u64().filter(|&icount| icount != NO_ICOUNT);
    Some(SnapshotEntry {
        l1_table_offset: HostOffset::new(fixed.l1_table_offset),
        l1_size: fixed.l1_size,
        id,
        name,
        date_seconds: fixed.date_seconds,
        date_nanoseconds: fixed.date_nanoseconds,
        vm_clock_nanoseconds: fixed.vm_clock_nanoseconds,
        vm_state_size,
        disk_size,
        icount,
        unknown_extra: extra.get(KNOWN_EXTRA_BYTES..).unwrap_or_default().to_vec(),
    })
}

#[cfg(test)]
mod tests;
