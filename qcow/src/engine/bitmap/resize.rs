//! Bitmaps of a disk that changes its size: what lies behind the new end is cut off, and a new part is not marked.
//!
//! A table is as long as the disk's size demands, and the two cannot change in one sector. So all bitmaps are in use, for
//! anybody who looks, from before the size changes until their new tables are named.

use std::sync::atomic::Ordering;

use super::load::check_recording;
use super::{Bitmap, Content};
use crate::disk::Disk;
use crate::engine::layer::Qcow2;
use crate::error::{Error, Result};
use crate::limits::BITMAP_BYTES_MAX;
use crate::meta::bitmap::measure::bytes_needed;
use crate::seeded_bugs::Bug;
use crate::sync::{ExclusiveGuard, lock};

impl<D: Disk> Qcow2<D> {
    /// Fails where a bitmap keeps the disk from having `size` bytes.
    pub(in crate::engine) fn check_bitmaps_resizable(&self, size: u64) -> Result<()> {
        let list = lock(&self.bitmaps.list);
        for bitmap in list.iter() {
            bitmap.check_usable()?;
            bitmap.check_size(size)?;
        }
        let recording = list.iter().filter(|bitmap| bitmap.enabled);
        check_recording(recording.map(|b| bytes_needed(size, b.granularity_bits)).sum())
    }

    /// Makes the file say of all bitmaps, durably, that they are in use; the right to change them, where there are any.
    pub(in crate::engine) async fn begin_resize_of_bitmaps(
        &self,
    ) -> Result<Option<ExclusiveGuard<'_>>> {
        if !self.bitmaps.exist() {
            return Ok(None);
        }
        let changing = self.bitmaps.changing.acquire().await;
        let count = lock(&self.bitmaps.list).len();
        for index in 0..count {
            self.load_bits(index).await?;
        }
        if Bug::BitmapValidWhileResized.is_seeded() {
            return Ok(Some(changing));
        }
        let _structure = self.structure.acquire().await;
        if self.set_in_use(|bitmap| matches!(bitmap.content, Content::Loaded(_))).await? {
            self.barrier().await?;
        }
        Ok(Some(changing))
    }

    /// Makes the bits in memory those of a disk of `size` bytes, as the header is about to say.
    pub(in crate::engine) fn resize_bitmaps(&self, size: u64) {
        for bitmap in lock(&self.bitmaps.list).iter_mut() {
            if let Content::Loaded(bits) = &mut bitmap.content {
                bits.resize(size);
            }
        }
    }

    /// Stores the bitmaps that are not being recorded, now that the size has changed. Where that fails, they stay in use
    /// until the image is closed.
    pub(in crate::engine) async fn end_resize_of_bitmaps(
        &self,
        changing: Option<ExclusiveGuard<'_>>,
    ) {
        let Some(_changing) = changing else { return };
        let in_session = self.prepared.load(Ordering::Acquire);
        if let Err(e) = self.guarded(self.commit_bitmaps(in_session, None)).await {
            tracing::warn!("bitmaps stay in use until the image is closed: {e}");
        }
    }
}

impl Bitmap {
    fn check_size(&self, size: u64) -> Result<()> {
        let name = self.name.display();
        if size == 0 {
            return Err(Error::unsupported(format!(
                "a disk without any bytes cannot keep its bitmap '{name}': remove it first"
            )));
        }
        if bytes_needed(size, self.granularity_bits) > BITMAP_BYTES_MAX {
            return Err(Error::limit(format!("Bitmap '{name}' is too big")));
        }
        Ok(())
    }
}
