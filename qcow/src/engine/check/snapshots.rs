//! The table of internal snapshots as a check reads it: what breaks a limit is told, or cut off by a repair.

use super::finding::Finding;
use super::repair::write_header;
use super::tally::{Abort, Tally};
use super::target::Target;
use crate::disk::Disk;
use crate::error::Result;
use crate::format::header::Version;
use crate::format::snapshot::{SnapshotEntry, parse_table};
use crate::limits::{SNAPSHOT_COUNT_MAX, SNAPSHOT_EXTRA_BYTES_MAX, SNAPSHOT_TABLE_BYTES_MAX};

/// Bytes of an entry in front of its extra data.
const FIXED_BYTES: u64 = 40;
/// Bytes of extra data that each entry of a version 3 image has to have.
const EXTRA_BYTES_V3: u64 = 16;
/// Bytes of the file that are read at a time.
const WINDOW_BYTES: u64 = 64 << 10;

/// The snapshots of an image.
#[derive(Default)]
pub(in crate::engine) struct Snapshots {
    pub(in crate::engine) entries: Vec<SnapshotEntry>,
    /// Bytes of the file that their table takes.
    pub(in crate::engine) table_len: u64,
    /// Whether the table is to be written anew, as entries on disk are too long or too short.
    pub(super) is_outdated: bool,
}

/// Reads the table; where `fix` allows, cuts off what passes a limit. `None` where it cannot be used, which has been told.
///
/// # Errors
/// The file cannot be read or written.
pub(super) async fn read<D: Disk>(
    target: &mut Target<'_, D>,
    fix: bool,
    tally: &mut Tally<'_>,
) -> Result<Option<Snapshots>> {
    let wanted = target.header.snapshot_count;
    if wanted > SNAPSHOT_COUNT_MAX && fix {
        let count = wanted - SNAPSHOT_COUNT_MAX;
        tally.note(&Finding::SnapshotsDiscarded { count, too_big: false }, count.into());
        target.header.snapshot_count = SNAPSHOT_COUNT_MAX;
    }
    if let Some((reason, abort)) = unusable_place(target) {
        tally.note(&Finding::SnapshotTableUnusable { reason }, 1);
        tally.summary.aborted = Some(abort);
        return Ok(None);
    }
    let mut reader = TableReader { target, window: (0, Vec::new()) };
    let Some(snapshots) = reader.read(fix, tally).await? else { return Ok(None) };
    if target.header.snapshot_count != wanted {
        // At once: whatever follows counts the snapshots that are left, and those clusters may be leaked meanwhile.
        write_header(target, &target.header).await?;
    }
    Ok(Some(snapshots))
}

fn unusable_place<D: Disk>(target: &Target<'_, D>) -> Option<(String, Abort)> {
    let (count, offset) = (target.header.snapshot_count, target.header.snapshots_offset.get());
    if count > SNAPSHOT_COUNT_MAX {
        let over = count - SNAPSHOT_COUNT_MAX;
        let reason = format!(
            "snapshot table too large\n\
             You can force-remove all {over} overhanging snapshots with qemu-img check -r all"
        );
        return Some((reason, Abort::TooLarge));
    }
    let end = offset.checked_add(u64::from(count) * FIXED_BYTES);
    let fits = end.is_some_and(|end| i64::try_from(end).is_ok());
    if !fits || !target.geometry.is_cluster_aligned(offset) {
        return Some(("snapshot table offset invalid".into(), Abort::Invalid));
    }
    None
}

struct TableReader<'t, 'd, D> {
    target: &'t mut Target<'d, D>,
    /// Bytes read ahead, and where they lie.
    window: (u64, Vec<u8>),
}

impl<D: Disk> TableReader<'_, '_, D> {
    async fn read(&mut self, fix: bool, tally: &mut Tally<'_>) -> Result<Option<Snapshots>> {
        let start = self.target.header.snapshots_offset.get();
        let count = self.target.header.snapshot_count;
        let mut found = Snapshots::default();
        let mut incomplete = Vec::new();
        // Without what is cut off.
        let mut kept_len = 0_u64;
        for index in 0..count {
            let at = start + found.table_len.next_multiple_of(8);
            let entry = self.read_entry(at).await?;
            if entry.has_too_much_extra() {
                let (size, max) = (entry.extra_size, SNAPSHOT_EXTRA_BYTES_MAX);
                if !fix {
                    let reason = format!(
                        "Too much extra metadata in snapshot table entry {index}\n\
                         You can force-remove this extra metadata with qemu-img check -r all"
                    );
                    return Ok(refuse(&reason, tally));
                }
                tally.note(&Finding::SnapshotExtraDiscarded { index, size, max }, 1);
                found.is_outdated = true;
            }
            kept_len = kept_len.next_multiple_of(8) + entry.bytes.len() as u64;
            let end = at + entry.len - start;
            if kept_len > SNAPSHOT_TABLE_BYTES_MAX || end > i32::MAX as u64 {
                let over = count - index;
                if !fix {
                    let reason = format!(
                        "Snapshot table is too big\n\
                         You can force-remove all {over} overhanging snapshots with qemu-img check -r all"
                    );
                    return Ok(refuse(&reason, tally));
                }
                tally
                    .note(&Finding::SnapshotsDiscarded { count: over, too_big: true }, over.into());
                self.target.header.snapshot_count = index;
                break;
            }
            if u64::from(entry.extra_size) < EXTRA_BYTES_V3 {
                incomplete.push(index);
            }
            let (parsed, _) = parse_table(&entry.bytes, 1, self.target.header.virtual_size())?;
            found.entries.extend(parsed);
            found.table_len = end;
        }
        if self.target.header.version >= Version::V3 {
            for index in incomplete {
                tally.note(&Finding::SnapshotIncomplete { index, repaired: fix }, 1);
                found.is_outdated = true;
            }
        }
        Ok(Some(found))
    }

    async fn read_entry(&mut self, at: u64) -> Result<RawEntry> {
        let mut bytes = self.bytes(at, FIXED_BYTES).await?;
        let field = |at: usize, len: usize| {
            bytes[at..at + len].iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let (id_size, name_size, extra_size) = (field(12, 2), field(14, 2), field(36, 4));
        let kept = extra_size.min(SNAPSHOT_EXTRA_BYTES_MAX.into());
        bytes[36..40].copy_from_slice(&(kept as u32).to_be_bytes());
        bytes.extend(self.bytes(at + FIXED_BYTES, kept).await?);
        bytes.extend(self.bytes(at + FIXED_BYTES + extra_size, id_size + name_size).await?);
        let len = FIXED_BYTES + extra_size + id_size + name_size;
        Ok(RawEntry { bytes, extra_size: extra_size as u32, len })
    }

    async fn bytes(&mut self, at: u64, len: u64) -> Result<Vec<u8>> {
        let is_inside =
            |start: u64, window: &[u8]| at >= start && at + len <= start + window.len() as u64;
        if !is_inside(self.window.0, &self.window.1) {
            let len = len.max(WINDOW_BYTES);
            self.window = (at, self.target.read(at, len, "snapshot table").await?);
        }
        let from = (at - self.window.0) as usize;
        Ok(self.window.1[from..from + len as usize].to_vec())
    }
}

/// An entry whose extra data has been cut to what is allowed.
struct RawEntry {
    bytes: Vec<u8>,
    /// As on disk.
    extra_size: u32,
    /// Bytes on disk.
    len: u64,
}

impl RawEntry {
    fn has_too_much_extra(&self) -> bool {
        self.extra_size > SNAPSHOT_EXTRA_BYTES_MAX
    }
}

fn refuse(reason: &str, tally: &mut Tally<'_>) -> Option<Snapshots> {
    let reason = format!("failed to read the snapshot table: {reason}");
    tally.note(&Finding::SnapshotTableUnusable { reason }, 1);
    tally.summary.aborted = Some(Abort::TooLarge);
    None
}
