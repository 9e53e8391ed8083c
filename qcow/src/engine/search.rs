//! Looking for the first free cluster of a large file.

use super::layer::Qcow2;
use super::snapshot::batch::Batch;
use crate::addr::HostCluster;
use crate::disk::Disk;
use crate::error::Result;
use crate::sync::lock;

/// Slices of counts that a claim loads one by one before it looks further by [`Qcow2::find_free`]. Where clusters are free
/// here and there, it gets along with fewer.
pub(super) const SLICES_MAX: u32 = 2;

impl<D: Disk> Qcow2<D> {
    /// Tells the allocator where the first free cluster is, of those that refcount blocks count. It would find out itself,
    /// slice by slice; behind what a large file has in use, that takes sixteen times as many reads, one after the other.
    ///
    /// At worst a cluster is passed over until the next open whose lowered count reaches the disk behind the read.
    pub(super) async fn find_free(&self) -> Result<()> {
        let geometry = self.geometry;
        let lowest_before = lock(&self.meta).alloc.lowest_free();
        let _searching = self.searching.acquire().await;
        let (lowest, blocks): (HostCluster, Vec<HostCluster>) = {
            let mut meta = lock(&self.meta);
            if meta.alloc.lowest_free() > lowest_before {
                // Somebody else has found it.
                return Ok(());
            }
            let lowest = meta.alloc.begin_search();
            let block = |index| meta.refs.block_at(index as usize);
            (lowest, (geometry.refcount_block_index(lowest)..).map_while(block).collect())
        };
        let mut batch = Batch::new(geometry.cluster_size());
        let mut from = lowest;
        for part in blocks.chunks(batch.count_max()) {
            batch.read(self, part.iter().copied()).await?;
            let mut meta = lock(&self.meta);
            for (at, &block) in part.iter().enumerate() {
                let index = geometry.refcount_block_index(from);
                from = meta.refs.used_end_in(block, from, batch.cluster(at));
                meta.alloc.used_up_to(lowest, from);
                if geometry.refcount_block_index(from) == index {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
