//! Leaving an image as clean as it can be: everything durable, nothing leaked.

use super::Image;
use super::layer::{Layer, Qcow2};
use crate::disk::Disk;
use crate::error::Result;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Rounds of flushing and freeing after which a close gives up on clusters that cannot be freed.
const ROUNDS_MAX: u32 = 8;

impl<D: Disk> Image<D> {
    /// Writes everything back and frees what was unlinked. No request may be in flight.
    ///
    /// # Errors
    /// The image could not be written back; it is as after a crash.
    pub async fn close(&self) -> Result<()> {
        if !self.is_writable() {
            return Ok(());
        }
        match self.top() {
            Layer::Raw(raw) => raw.flush().await,
            Layer::Luks(luks) => luks.raw().flush().await,
            Layer::Sealed(sealed) => sealed.close().await,
            Layer::Qcow2(qcow2) if Bug::MarkedCleanTooEarly.is_seeded() => {
                qcow2.mark_clean().await?;
                qcow2.settle().await.map(drop)
            }
            Layer::Qcow2(qcow2) => {
                qcow2.settle().await?;
                qcow2.store_bitmaps().await;
                match qcow2.settle().await? {
                    true => qcow2.mark_clean().await,
                    false => Ok(()),
                }
            }
        }
    }
}

impl<D: Disk> Qcow2<D> {
    /// Writes everything back; whether nothing is left on its way.
    pub(super) async fn settle(&self) -> Result<bool> {
        for _ in 0..ROUNDS_MAX {
            self.write_back().await?;
            if !self.is_settled() {
                continue;
            }
            if let Err(e) = self.cut_unused_end().await {
                tracing::warn!("the file stays longer than it has to be: {e}");
            }
            return Ok(true);
        }
        Ok(false)
    }

    pub(super) fn is_settled(&self) -> bool {
        let meta = lock(&self.meta);
        let idle = meta.reclaim.is_idle() && meta.punches.is_idle();
        idle && !meta.map.is_dirty() && !meta.refs.is_dirty()
    }
}
