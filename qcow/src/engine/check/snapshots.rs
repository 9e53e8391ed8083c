//! The snapshot table with its length, which is in no header field.

use super::Target;
use crate::disk::Disk;
use crate::engine::open::read_bytes;
use crate::error::Result;
use crate::format::snapshot::{SnapshotEntry, SnapshotTableReader};

/// Bytes of the table that are read at a time.
const PIECE_BYTES: u64 = 64 << 10;

/// The internal snapshots, and how many bytes their table takes.
pub(super) async fn read_table<D: Disk>(
    target: &Target<'_, D>,
) -> Result<(Vec<SnapshotEntry>, u64)> {
    let header = &target.header;
    let mut reader = SnapshotTableReader::new(header.snapshot_count, header.virtual_size())?;
    let mut at = header.snapshots_offset;
    while !reader.is_complete() && at.get() < target.file_len {
        let len = PIECE_BYTES.min(target.file_len - at.get());
        reader.push(&read_bytes(target.disk, at, len, "snapshot table").await?)?;
        at = at.plus(len);
    }
    reader.finish()
}
