//! Telling in the file that a bitmap is in use, before anything changes that it does not have.

use super::{Bitmap, Content};
use crate::disk::Disk;
use crate::engine::layer::Qcow2;
use crate::error::Result;
use crate::exec::try_join_all;
use crate::format::bitmap::{BitmapEntry, BitmapFlags, encode_directory};
use crate::limits::{IN_FLIGHT_MAX, SECTOR_BYTES};
use crate::meta::regions::Kind;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

impl Bitmap {
    /// Whether writes to the disk change it, or would have to.
    fn follows_writes(&self) -> bool {
        match self.content {
            Content::Loaded(_) | Content::Foreign => self.enabled,
            Content::InFile | Content::Inconsistent => false,
        }
    }
}

impl<D: Disk> Qcow2<D> {
    /// Marks the bitmaps in use that follow what is written; durable with the next barrier, which the answer says is needed.
    /// The caller holds `Bitmaps::changing` and `structure`.
    pub(in crate::engine) async fn use_recording_bitmaps(&self) -> Result<bool> {
        if Bug::BitmapInUseTooLate.is_seeded() {
            return Ok(false);
        }
        self.set_in_use(Bitmap::follows_writes).await
    }

    /// Marks in use those bitmaps that `which` chooses; durable with the next barrier, which the answer says is needed.
    /// A bitmap's flags lie in one sector, and one bitmap more that is in use is no harm: each of these writes may come
    /// alone. The caller holds `Bitmaps::changing` and `structure`.
    pub(super) async fn set_in_use(&self, which: impl Fn(&Bitmap) -> bool) -> Result<bool> {
        let Some(extension) = lock(&self.header).extensions.bitmaps else { return Ok(false) };
        let (before, after) = {
            let mut list = lock(&self.bitmaps.list);
            let chosen: Vec<bool> = list.iter().map(which).collect();
            let mut flagged = |set| {
                let bitmaps = list.iter_mut().zip(&chosen);
                let entries = bitmaps.filter_map(|(bitmap, &chosen)| bitmap.flag(chosen, set));
                encode_directory(&entries.collect::<Vec<_>>())
            };
            // Whatever memory has it for: a write of the flag may have failed after it had reached the disk, or before.
            (flagged(false)?, flagged(true)?)
        };
        let writes = changed_sectors(before, after).map(|(offset, sector)| async move {
            let at = extension.directory_offset.plus(offset);
            self.write_metadata(Kind::BitmapDirectory, at, &sector).await
        });
        let writes: Vec<_> = writes.collect();
        let any = !writes.is_empty();
        try_join_all(IN_FLIGHT_MAX, writes).await?;
        Ok(any)
    }
}

impl Bitmap {
    /// Sets its flag where it is `chosen`; its directory entry.
    fn flag(&mut self, chosen: bool, set: bool) -> Option<BitmapEntry> {
        let on_disk = self.on_disk.as_mut()?;
        if chosen {
            on_disk.flags = on_disk.flags.with(BitmapFlags::IN_USE, set);
            if matches!(self.content, Content::Foreign) && set {
                self.content = Content::Inconsistent;
            }
        }
        let (flags, offset, size) = (on_disk.flags, on_disk.table_offset, on_disk.table.len());
        Some(self.entry(flags, offset, size))
    }
}

/// The sectors of `after` that `before`, of the same length, does not have: where each starts, and its bytes.
fn changed_sectors(
    mut before: Vec<u8>,
    mut after: Vec<u8>,
) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let sector = SECTOR_BYTES as usize;
    for directory in [&mut before, &mut after] {
        directory.resize(directory.len().next_multiple_of(sector), 0);
    }
    let starts = (0..after.len()).step_by(sector);
    starts.filter_map(move |at| {
        let range = at..at + sector;
        (before[range.clone()] != after[range.clone()]).then(|| (at as u64, after[range].to_vec()))
    })
}
