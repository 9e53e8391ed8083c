//! Making the L2 table that a write needs: a new one, or a copy of one that a snapshot shares.

use super::layer::Qcow2;
use crate::addr::{HostCluster, L1Index};
use crate::disk::{Buffer, Disk};
use crate::error::{Error, Result};
use crate::format::entry::Owned;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

impl<D: Disk> Qcow2<D> {
    /// Gives the L1 entry a table of its own, unless it has one by now.
    pub(super) async fn make_table(&self, l1: L1Index) -> Result<()> {
        let begun = self.wait(|meta| match meta.map.table(l1) {
            Ok(Some(Owned { copied: true, .. })) => Some(Ok(false)),
            Ok(_) => meta.map.begin_table(l1).then_some(Ok(true)),
            Err(e) => Some(Err(e)),
        });
        if !begun.await.map_err(|e| self.named(e))? {
            return Ok(());
        }
        let making = Making { image: self, l1 };
        let old = lock(&self.meta).map.table(l1).map_err(|e| self.named(e))?;
        if let Some(old) = old
            && Bug::TableReleasedBeforeClaim.is_seeded()
        {
            let claimed = self.claim(1).await.inspect_err(|_| {
                lock(&self.meta).reclaim.unlink(old.cluster, 1, false);
            });
            drop(claimed?);
        }
        let claimed = self.claim(1).await?;
        let table = claimed.run().first;
        match old {
            Some(old) => self.copy_table(old.cluster, table).await?,
            None => self.zero_new(table).await?,
        }
        let linked = lock(&self.meta).link_table(self.geometry, l1, table);
        linked.map_err(|e| self.named(e))?;
        claimed.keep();
        drop(making);
        Ok(())
    }

    /// Copies a table that a snapshot shares, and that therefore nobody changes, byte for byte.
    async fn copy_table(&self, from: HostCluster, to: HostCluster) -> Result<()> {
        let buffer = Buffer::zeroed(self.geometry.cluster_size() as usize);
        let at = self.geometry.host_start(from);
        let read = self.disk.read(at, &buffer.payload()).await;
        read.map_err(|e| self.named(Error::io(format!("read the L2 table at {at}"), &e)))?;
        self.write_new(to, &buffer.to_vec()).await
    }
}

/// The right to make one table; others who need it wait until it is dropped.
struct Making<'a, D: Disk> {
    image: &'a Qcow2<D>,
    l1: L1Index,
}

impl<D: Disk> Drop for Making<'_, D> {
    fn drop(&mut self) {
        lock(&self.image.meta).map.end_table(self.l1);
        self.image.changed.wake_all();
    }
}
