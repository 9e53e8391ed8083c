//! Whole clusters of metadata, read and written many at a time, through memory that is used again and again.

use crate::addr::HostCluster;
use crate::disk::{Buffer, Disk};
use crate::engine::layer::Qcow2;
use crate::error::{Error, Result};
use crate::exec::try_join_all;
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::Run;

/// Most bytes of a batch, unless a cluster is larger: few enough to stay in a processor's cache.
const BATCH_BYTES: u64 = 1 << 20;

/// Memory for one batch.
pub(in crate::engine) struct Batch {
    buffer: Buffer,
    len: usize,
    cluster_size: usize,
}

impl Batch {
    /// Memory for clusters of `cluster_size` bytes.
    pub fn new(cluster_size: u64) -> Self {
        let len = BATCH_BYTES.max(cluster_size) as usize;
        Self { buffer: Buffer::zeroed(len), len, cluster_size: cluster_size as usize }
    }

    /// Most clusters of a batch.
    pub fn count_max(&self) -> usize {
        self.len / self.cluster_size
    }

    /// The bytes of the cluster at `index` of the batch.
    pub fn cluster(&mut self, index: usize) -> &mut [u8] {
        &mut self.buffer.make_mut()[index * self.cluster_size..][..self.cluster_size]
    }

    /// Reads these clusters of the file, at most [`Self::count_max`]. Neighbours are read together.
    pub async fn read<D: Disk>(
        &mut self,
        image: &Qcow2<D>,
        clusters: impl Iterator<Item = HostCluster>,
    ) -> Result<()> {
        let mut rows: Vec<(u64, Run)> = Vec::new();
        for (index, cluster) in (0..).zip(clusters) {
            match rows.last_mut() {
                Some((_, row)) if row.first.plus(row.count) == cluster => row.count += 1,
                _ => rows.push((index, Run { first: cluster, count: 1, fresh: false })),
            }
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
        try_join_all(IN_FLIGHT_MAX, reads).await
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
            let from = payload.slice(index as u64 * size, size);
            async move {
                let written = image.disk.write(at, &from).await;
                written.map_err(|e| image.named(Error::io(format!("write metadata at {at}"), &e)))
            }
        });
        try_join_all(IN_FLIGHT_MAX, writes).await
    }
}
