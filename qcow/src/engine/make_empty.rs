//! Emptying an image: from one moment on it has nothing of its own, and what is below shows through.
//!
//! An L1 table of zeros is written beside the old one and made durable; then the header is pointed at it, in one sector. What
//! the old table named becomes free after that. A crash leaves the full image or the empty one, perhaps with leaks.

use super::Image;
use super::layer::{Layer, Qcow2};
use super::options::Discard;
use crate::addr::HostCluster;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::header::Header;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Takes away all that the top image has of the disk; snapshots keep what they hold. Durable once it succeeds. No other
    /// request may be in flight.
    ///
    /// # Errors
    /// The image is raw (`Unsupported`), read-only or damaged, or the host failed.
    pub async fn make_empty(&self) -> Result<()> {
        self.check_change(0, 0)?;
        let qcow2 = match self.top() {
            Layer::Qcow2(qcow2) => qcow2,
            Layer::Sealed(sealed) => return sealed.make_empty().await,
            Layer::Raw(_) | Layer::Luks(_) => {
                let what = "a raw image cannot be emptied";
                return Err(Error::unsupported(what).in_file(self.top().path()));
            }
        };
        qcow2.prepare_for_change().await?;
        // Nothing of the old tables waits to be written any more.
        qcow2.write_back().await?;
        let tables = qcow2.guarded(qcow2.switch_to_empty_l1()).await?;
        let punch = self.inner.options.discard == Discard::Unmap;
        for table in tables {
            let named = qcow2.guarded(qcow2.named_by(table, punch)).await?;
            lock(&qcow2.meta).leave(table, named);
        }
        qcow2.write_back().await?;
        // The table lies behind what was there; now there is room in front, so that the file can become short.
        qcow2.guarded(qcow2.switch_to_empty_l1()).await?;
        qcow2.write_back().await
    }
}

impl<D: Disk> Qcow2<D> {
    /// Goes on with an L1 table that names nothing; the tables that the old one named.
    async fn switch_to_empty_l1(&self) -> Result<Vec<HostCluster>> {
        // So that a recovery of leaks waits until these claims are linked.
        let _inside = self.drain.enter();
        let entries = lock(&self.meta).map.l1().words().len();
        if entries == 0 {
            return Ok(Vec::new());
        }
        let clusters = self.geometry.clusters_for(entries as u64 * 8);
        let claimed = self.claim_row(clusters).await?;
        let first = claimed.run().first;
        let _structure = self.structure.acquire().await;
        let _alone = self.flush_alone(|_| ()).await?;
        for cluster in claimed.run().clusters() {
            self.zero_new(cluster).await?;
        }
        if !Bug::NoBarrierBeforeEmptyL1.is_seeded() {
            self.barrier().await?;
        }
        // From here on the header may name them.
        claimed.keep();
        let l1_table_offset = self.geometry.host_start(first);
        let header = Header { l1_table_offset, ..lock(&self.header).clone() };
        self.commit_header(header).await?;
        let emptied = lock(&self.meta).empty_l1(self.geometry, l1_table_offset);
        emptied.map_err(|e| self.named(e))
    }
}
