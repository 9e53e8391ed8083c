//! Letting go of whole L2 tables with everything that they name, without changing a byte of them.

use super::Image;
use super::layer::Qcow2;
use super::options::Discard;
use crate::addr::{HostCluster, L1Index};
use crate::disk::Disk;
use crate::error::Result;
use crate::meta::reclaim::Release;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Makes the L1 entries from `first` on empty. What their tables named goes on its way to being free. Nobody else
    /// changes these tables meanwhile.
    pub(super) async fn drop_tables(&self, qcow2: &Qcow2<D>, first: L1Index) -> Result<()> {
        let count = lock(&qcow2.meta).map.l1().words().len();
        let punch = self.inner.options.discard == Discard::Unmap;
        for index in first.0..count {
            qcow2.guarded(qcow2.drop_table(L1Index(index), punch)).await?;
            if lock(&qcow2.meta).wants_flush() {
                qcow2.write_back().await?;
            }
        }
        Ok(())
    }
}

impl<D: Disk> Qcow2<D> {
    async fn drop_table(&self, l1: L1Index, punch: bool) -> Result<()> {
        let _inside = self.drain.enter();
        loop {
            let table = lock(&self.meta).map.table(l1).map_err(|e| self.named(e))?;
            let Some(table) = table else { return Ok(()) };
            let named = self.named_by(table.cluster, punch).await?;
            // What is in memory of a table that is dropped must not be written any more.
            if lock(&self.meta).drop_table(l1, table.cluster, named) {
                return Ok(());
            }
            self.flush_metadata().await?;
        }
    }

    /// The clusters that the L2 table in `table` names.
    pub(super) async fn named_by(&self, table: HostCluster, punch: bool) -> Result<Vec<Release>> {
        let mut named = Vec::new();
        for slice in 0..self.geometry.slices_per_table() {
            let some = self.ask(|meta| meta.named_by_slice(self.geometry, table, slice, punch));
            named.extend(some.await?);
        }
        Ok(named)
    }
}
