//! Copying what the top image shows of the images below into itself: copy-on-read.

use super::Image;
use super::layer::Layer;
use super::zero::Otherwise;
use crate::disk::{Buffer, Disk};
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
        let Layer::Qcow2(qcow2) = self.top() else { return Ok(()) };
        let unit = qcow2.geometry.subcluster_size();
        let (mut at, end) = (at / unit * unit, at + len);
        let end = end.next_multiple_of(unit).min(self.virtual_size());
        while at < end {
            let extent = self.map(at, (end - at).min(COPY_LEN)).await?;
            if extent.depth > 0 || !extent.present {
                let bytes = Buffer::zeroed(extent.len as usize).payload();
                self.read(at, &bytes).await?;
                qcow2.prepare_for_change().await?;
                match bytes.is_zero() {
                    true => {
                        self.zero_range(qcow2, at, extent.len, false, Otherwise::Write).await?;
                    }
                    false => self.write_clusters(qcow2, at, &bytes).await?,
                }
            }
            at += extent.len;
        }
        Ok(())
    }
}
