//! Copying what the top image shows of the images below into itself: copy-on-read.

use super::Image;
use super::layer::Layer;
use super::zero::Otherwise;
use crate::disk::{Buffer, Disk, Payload};
use crate::error::Result;

/// Bytes that are copied in one go, at most.
const COPY_LEN: u64 = 1 << 20;

impl<D: Disk> Image<D> {
    /// Gives the top image the clusters, or subclusters, that `len` bytes at `at` touch, where it does not have them itself.
    /// The disk stays what it is, which is why no bitmap records anything. Meanwhile nobody may write there.
    ///
    /// # Errors
    /// As [`Self::read`] and [`Self::write`].
    pub async fn copy_up(&self, at: u64, len: u64) -> Result<()> {
        self.check_change(at, len)?;
        let Some(unit) = self.subcluster_size() else { return Ok(()) };
        let (mut at, end) = (at / unit * unit, at + len);
        let end = end.next_multiple_of(unit).min(self.virtual_size());
        while at < end {
            let extent = self.map(at, (end - at).min(COPY_LEN)).await?;
            if extent.depth > 0 || !extent.present {
                let bytes = Buffer::zeroed(extent.len as usize).payload();
                self.read(at, &bytes).await?;
                self.store_copy(at, &bytes).await?;
            }
            at += extent.len;
        }
        Ok(())
    }

    /// Gives the top image `bytes`, which the disk shows at `at` already.
    async fn store_copy(&self, at: u64, bytes: &Payload) -> Result<()> {
        let (is_zero, len) = (bytes.is_zero(), bytes.len());
        match self.top() {
            Layer::Qcow2(qcow2) => {
                qcow2.prepare_for_change().await?;
                match is_zero {
                    true => self.zero_range(qcow2, at, len, false, Otherwise::Write).await,
                    false => self.write_clusters(qcow2, at, bytes).await,
                }
            }
            Layer::Sealed(sealed) => match is_zero {
                true => self.zero_sealed(sealed, at, len, false, Otherwise::Write).await,
                false => self.write_sealed(sealed, at, bytes).await,
            },
            Layer::Raw(_) | Layer::Luks(_) => Ok(()),
        }
    }
}
