//! The counts that the image stores: the refcount table, and what its blocks say.

use super::loose::LooseRefcountTable;
use super::{Target, words};
use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::load::read_bytes;
use crate::error::Result;
use crate::limits::SECTOR_BYTES;
use crate::meta::refs::read_count;

/// What the refcount table says about one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// There is none: all its clusters count zero.
    Missing,
    /// It starts at this byte, at a cluster boundary, perhaps behind the end of the file.
    At(u64),
    /// The entry names no place where a block can be.
    Unreadable,
}

/// The refcount table, and for each cluster of the file whether it is counted exactly once.
pub(super) struct StoredCounts {
    geometry: Geometry,
    table: Vec<LooseRefcountTable>,
    /// A bit per cluster, up to `compared`.
    singles: Vec<u64>,
    /// Clusters whose bits are set.
    compared: ClusterCount,
    /// The sector of a block that was read last, and where it lies.
    sector: Option<(u64, Vec<u8>)>,
}

impl StoredCounts {
    pub(super) async fn read<D: Disk>(target: &Target<'_, D>) -> Result<Self> {
        let (header, geometry) = (&target.header, target.geometry);
        let len = geometry.bytes(header.refcount_table_clusters.into());
        let at = header.refcount_table_offset;
        let bytes = read_bytes(target.disk, at, len, "refcount table").await?;
        // One more than the file has: an unaligned entry can reach into the cluster behind it.
        let singles = vec![0; (target.clusters() + 1).div_ceil(64) as usize];
        let table = words(&bytes).map(LooseRefcountTable).collect();
        Ok(Self { geometry, table, singles, compared: 0, sector: None })
    }

    /// The entries of the refcount table.
    pub(super) fn table(&self) -> &[LooseRefcountTable] {
        &self.table
    }

    /// The block behind entry `index`, which may be past the end of the table.
    pub(super) fn block(&self, index: u64) -> Block {
        let entry = usize::try_from(index).ok().and_then(|index| self.table.get(index));
        match entry.map_or(0, |entry| entry.offset()) {
            0 => Block::Missing,
            offset if !self.geometry.is_cluster_aligned(offset) => Block::Unreadable,
            // No file is that long, and no host takes such an offset.
            offset if offset > i64::MAX as u64 => Block::Unreadable,
            offset => Block::At(offset),
        }
    }

    /// Whether the count of `cluster` can be read.
    pub(super) fn is_readable(&self, cluster: HostCluster) -> bool {
        self.block(self.geometry.refcount_block_index(cluster)) != Block::Unreadable
    }

    /// Records whether the count of `cluster` is exactly one.
    pub(super) fn set_single(&mut self, cluster: HostCluster, single: bool) {
        let (word, bit) = (cluster.get() / 64, cluster.get() % 64);
        self.compared = self.compared.max(cluster.get() + 1);
        let word = &mut self.singles[word as usize];
        *word = *word & !(1 << bit) | u64::from(single) << bit;
    }

    /// Whether the count of `cluster` is one, as far as it has been recorded; `None` behind the end of the file.
    pub(super) fn is_single(&self, cluster: HostCluster) -> Option<bool> {
        let at = cluster.get();
        (at < self.compared).then(|| self.singles[(at / 64) as usize] >> (at % 64) & 1 == 1)
    }

    /// The count of any cluster, in the file or behind it, from the disk; `None` where it cannot be read.
    pub(super) async fn get<D: Disk>(
        &mut self,
        target: &Target<'_, D>,
        cluster: HostCluster,
    ) -> Result<Option<u64>> {
        let start = match self.block(self.geometry.refcount_block_index(cluster)) {
            Block::Missing => return Ok(Some(0)),
            Block::Unreadable => return Ok(None),
            Block::At(start) if start >= target.file_len => return Ok(Some(0)),
            Block::At(start) => start,
        };
        let order = self.geometry.refcount_order();
        let per_sector = (SECTOR_BYTES * 8) >> order;
        let index = self.geometry.index_in_refcount_block(cluster);
        let at = start + index / per_sector * SECTOR_BYTES;
        if self.sector.as_ref().is_none_or(|&(known, _)| known != at) {
            let offset = HostOffset::new(at);
            let bytes = read_bytes(target.disk, offset, SECTOR_BYTES, "refcount block").await?;
            self.sector = Some((at, bytes));
        }
        let count =
            |(_, bytes): &(u64, Vec<u8>)| read_count(bytes, order, (index % per_sector) as usize);
        Ok(self.sector.as_ref().map(count))
    }

    /// Forgets what was read, because blocks have been written.
    pub(super) fn forget_sector(&mut self) {
        self.sector = None;
    }
}
