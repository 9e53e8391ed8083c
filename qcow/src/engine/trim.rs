//! Giving back the end of the file, after much has been freed.
//!
//! The counts say which clusters nobody uses. They may be wrong, in an image that others damaged; so what is cut off must
//! also be a hole: nobody loses a byte that is not zero.

use super::Image;
use super::layer::{Layer, Qcow2};
use crate::addr::HostCluster;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Writes everything back, frees what was unlinked, and cuts off free clusters at the end of the file. No request may be
    /// in flight. What cannot be cut off stays.
    ///
    /// # Errors
    /// The image could not be written back.
    pub async fn trim(&self) -> Result<()> {
        match self.top() {
            Layer::Qcow2(qcow2) if self.is_writable() && qcow2.settle().await? => {
                qcow2.trim().await
            }
            _ => Ok(()),
        }
    }
}

impl<D: Disk> Qcow2<D> {
    async fn trim(&self) -> Result<()> {
        let _structure = self.structure.acquire().await;
        let _growing = self.growing.acquire().await;
        let unknown = |e| self.named(Error::io("find the file's end", &e));
        let len = self.disk.len().map_err(unknown)?;
        let end = self.used_end(HostCluster::new(self.geometry.clusters_for(len))).await?;
        let mut end = self.geometry.host_start(end);
        let mut at = end;
        while at.get() < len {
            let extent = self.disk.extent_at(at).map_err(unknown)?;
            at = at.plus(extent.len.max(1));
            if extent.data {
                let cut = HostCluster::new(self.geometry.clusters_for(at.get()));
                end = self.geometry.host_start(cut);
            }
        }
        let cluster = self.geometry.host_cluster(end);
        {
            let mut meta = lock(&self.meta);
            let tail = self.geometry.clusters_for(len).saturating_sub(cluster.get());
            if tail == 0 || meta.regions().check_clear(cluster, tail).is_err() {
                return Ok(());
            }
            // From here on a claim behind it has to make the file longer again, after this has ended.
            meta.alloc.cut(cluster);
        }
        let cut = self.disk.set_len(end.get()).await;
        cut.map_err(|e| self.named(Error::io(format!("cut the file to {end} bytes"), &e)))
    }

    /// Behind the last cluster below `end` that is counted.
    async fn used_end(&self, end: HostCluster) -> Result<HostCluster> {
        let mut end = end;
        while end > HostCluster::new(1) {
            match self.ask(|meta| meta.refs.last_used(end).map(Ok)).await? {
                (first, None) => end = first,
                (_, Some(last)) => return Ok(last.plus(1)),
            }
        }
        Ok(end)
    }
}
