//! Whole clusters of metadata, read and written many at a time, through memory that is used again and again.

use crate::addr::HostCluster;
use crate::disk::{Buffer, Disk};
use crate::engine::layer::Qcow2;
use crate::error::{Error, Result};
use crate::exec::try_join_all;
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::Run;
use crate::meta::refs::read_count;
use crate::sync::lock;

/// Most bytes of a batch, unless a cluster is larger: few enough to stay in a processor's cache.
const BATCH_BYTES: u64 = 1 << 20;

/// Counts that are searched for a zero at once.
const ZERO_STRIDE: usize = 256;

/// Memory for one batch.
pub(super) struct Batch {
    buffer: Buffer,
    bytes: Vec<u8>,
    cluster_size: usize,
}

impl Batch {
    /// Memory for clusters of `cluster_size` bytes.
    pub fn new(cluster_size: u64) -> Self {
        let len = BATCH_BYTES.max(cluster_size) as usize;
        Self {
            buffer: Buffer::zeroed(len),
            bytes: vec![0; len],
            cluster_size: cluster_size as usize,
        }
    }

    /// Most clusters of a batch.
    pub fn count_max(&self) -> usize {
        self.bytes.len() / self.cluster_size
    }

    /// The bytes of the cluster at `index` of the batch.
    pub fn cluster(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.cluster_size..][..self.cluster_size]
    }

    /// The bytes of the cluster at `index` of the batch, to be changed.
    pub fn cluster_mut(&mut self, index: usize) -> &mut [u8] {
        &mut self.bytes[index * self.cluster_size..][..self.cluster_size]
    }

    /// Reads these clusters of the file, at most [`Self::count_max`]. Neighbours are read together.
    pub async fn read<D: Disk>(
        &mut self,
        image: &Qcow2<D>,
        clusters: impl Iterator<Item = HostCluster>,
    ) -> Result<()> {
        let mut rows: Vec<(u64, Run)> = Vec::new();
        let mut count = 0;
        for cluster in clusters {
            match rows.last_mut() {
                Some((_, row)) if row.first.plus(row.count) == cluster => row.count += 1,
                _ => rows.push((count, Run { first: cluster, count: 1, fresh: false })),
            }
            count += 1;
        }
        let payload = self.buffer.payload();
        let size = self.cluster_size as u64;
        let reads = rows.iter().map(|(index, row)| {
            let at = image.geometry.host_start(row.first);
            let into = payload.slice(index * size, row.count * size);
            async move {
                let read = image.disk.read(at, &into).await;
                read.map_err(|e| image.named(Error::io(format!("read metadata at {at}"), &e)))
            }
        });
        try_join_all(IN_FLIGHT_MAX, reads).await?;
        payload.copy_to(0, &mut self.bytes[..(count * size) as usize]);
        Ok(())
    }

    /// Writes the clusters at these places of the batch to the clusters of the file that go with them. What lies there has
    /// been checked.
    pub async fn write<D: Disk>(
        &self,
        image: &Qcow2<D>,
        clusters: &[(usize, HostCluster)],
    ) -> Result<()> {
        let payload = self.buffer.payload();
        let size = self.cluster_size as u64;
        let writes = clusters.iter().map(|&(index, cluster)| {
            let at = image.geometry.host_start(cluster);
            payload.copy_from(index as u64 * size, self.cluster(index));
            let from = payload.slice(index as u64 * size, size);
            async move {
                let written = image.disk.write(at, &from).await;
                written.map_err(|e| image.named(Error::io(format!("write metadata at {at}"), &e)))
            }
        });
        try_join_all(IN_FLIGHT_MAX, writes).await
    }
}

impl<D: Disk> Qcow2<D> {
    /// Tells the allocator where the first free cluster is. It would find out itself, slice by slice; where all of a large
    /// file is in use, that takes longer than everything else.
    pub(super) async fn find_free(&self) -> Result<()> {
        let geometry = self.geometry;
        let (first, blocks): (u64, Vec<HostCluster>) = {
            let meta = lock(&self.meta);
            let first = geometry.refcount_block_index(meta.alloc.lowest_free());
            let block = |index| meta.refs.block_at(index as usize);
            (first, (first..).map_while(block).collect())
        };
        let mut batch = Batch::new(geometry.cluster_size());
        let mut index = first;
        for part in blocks.chunks(batch.count_max()) {
            batch.read(self, part.iter().copied()).await?;
            for at in 0..part.len() {
                let free = first_zero(batch.cluster(at), geometry.refcount_order());
                let used = free.unwrap_or(geometry.refcounts_per_block());
                let end = geometry.refcount_block_first(index).plus(used);
                lock(&self.meta).alloc.used_up_to(geometry.refcount_block_first(index), end);
                if free.is_some() {
                    return Ok(());
                }
                index += 1;
            }
        }
        Ok(())
    }
}

/// The place of the first count of a block that is zero.
fn first_zero(block: &[u8], order: u32) -> Option<u64> {
    if order == 4 {
        // Many at a time, and only then one by one.
        let (counts, _) = block.as_chunks::<2>();
        let has_zero = |part: &[[u8; 2]]| part.iter().fold(false, |any, c| any | (*c == [0, 0]));
        let (index, part) =
            counts.chunks(ZERO_STRIDE).enumerate().find(|(_, part)| has_zero(part))?;
        let place = part.iter().position(|count| *count == [0, 0])?;
        return Some((index * ZERO_STRIDE + place) as u64);
    }
    let count = (block.len() * 8) >> order;
    (0..count).find(|&at| read_count(block, order, at) == 0).map(|at| at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::refs::set_count;

    #[test]
    fn the_first_free_cluster_is_found_at_any_width() {
        for order in 0..=6 {
            let count = (512 * 8) >> order;
            let mut block = vec![0xff; 512];
            assert_eq!(first_zero(&block, order), None);
            for place in [count - 1, count / 2, 0] {
                set_count(&mut block, order, place, 0);
                assert_eq!(first_zero(&block, order), Some(place as u64), "order {order}");
            }
        }
    }
}
