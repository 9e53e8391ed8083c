//! Refcount blocks for clusters in use that no block counts, and a new refcount table that names them.
//!
//! All of it lies behind the end of the file, where no table points. What is new counts itself and nothing else; the
//! counts of the clusters in use are raised once there is a block to hold them. Since new blocks count each other, all of
//! them come into force at once: when everything is durable, the header is pointed at the new table, in one sector. The
//! old table is then a leak like any other.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Target;
use super::compare::clusters_of;
use super::counts::Counts;
use super::repair::{sync, write, write_header};
use super::stored::{Block, StoredCounts};
use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::load::read_bytes;
use crate::error::{Error, Result};
use crate::limits::REFCOUNT_TABLE_BYTES_MAX;
use crate::meta::refs::set_count;

/// Makes the blocks that the counts of clusters in use lack, and durable; says whether there were any to make.
///
/// # Errors
/// The image is full: its refcount table cannot name the new blocks; or the file cannot be read or written.
pub(super) async fn add_missing<D: Disk>(
    target: &Target<'_, D>,
    references: &Counts,
    stored: &StoredCounts,
) -> Result<bool> {
    let Some(plan) = Plan::make(target, references, stored)? else { return Ok(false) };
    plan.count_in_old_blocks(target, stored).await?;
    for (&index, cluster) in plan.indices.iter().zip(plan.blocks()) {
        let block = plan.block(target.geometry, index);
        write(target, target.geometry.host_start(cluster), &block, "refcount block").await?;
    }
    plan.switch_table(target, stored).await?;
    Ok(true)
}

/// What lies behind the end of the file: blocks first, then the new table.
struct Plan {
    first: HostCluster,
    /// Table indices of the new blocks, in the order of their places.
    indices: BTreeSet<u64>,
    /// Clusters of the new table.
    table_clusters: ClusterCount,
}

impl Plan {
    /// `None` if nothing is missing.
    fn make<D: Disk>(
        target: &Target<'_, D>,
        references: &Counts,
        stored: &StoredCounts,
    ) -> Result<Option<Self>> {
        let geometry = target.geometry;
        let is_missing = |index: &u64| stored.block(*index) == Block::Missing;
        let is_used = |index: &u64| {
            let clusters = clusters_of(geometry, *index, references.len());
            references.used_in(clusters).next().is_some()
        };
        let all = 0..references.len().div_ceil(geometry.refcounts_per_block());
        let indices: BTreeSet<u64> = all.filter(is_missing).filter(is_used).collect();
        if indices.is_empty() {
            return Ok(None);
        }
        let first = HostCluster::new(target.clusters().max(references.len()));
        let table_clusters = target.header.refcount_table_clusters.into();
        let mut plan = Self { first, indices, table_clusters };
        // What is added needs counts, too, perhaps in blocks that it takes a larger table to name.
        loop {
            let before = (plan.indices.len(), plan.table_clusters);
            let covering = plan.covering(geometry);
            plan.indices.extend(covering.filter(is_missing));
            let entries = plan.indices.last().map_or(0, |last| last + 1);
            plan.table_clusters = plan.table_clusters.max(geometry.clusters_for(entries * 8));
            if (plan.indices.len(), plan.table_clusters) == before {
                break;
            }
        }
        if geometry.bytes(plan.table_clusters) > REFCOUNT_TABLE_BYTES_MAX {
            return Err(Error::limit(format!(
                "cannot be repaired: its refcount table would exceed {REFCOUNT_TABLE_BYTES_MAX} bytes"
            )));
        }
        Ok(Some(plan))
    }

    /// The clusters that are added.
    fn clusters(&self) -> Range<u64> {
        let first = self.first.get();
        first..first + self.indices.len() as u64 + self.table_clusters
    }

    /// The places of the new blocks.
    fn blocks(&self) -> impl Iterator<Item = HostCluster> + '_ {
        (0..self.indices.len() as u64).map(|i| self.first.plus(i))
    }

    fn table_offset(&self, geometry: Geometry) -> HostOffset {
        geometry.host_start(self.first.plus(self.indices.len() as u64))
    }

    /// Table indices of the blocks, old and new, that count what is added.
    fn covering(&self, geometry: Geometry) -> Range<u64> {
        let clusters = self.clusters();
        let index = |cluster: u64| geometry.refcount_block_index(HostCluster::new(cluster));
        index(clusters.start)..index(clusters.end - 1) + 1
    }

    /// Counts one for each added cluster that the block at table entry `index` counts.
    fn count_added(&self, geometry: Geometry, index: u64, block: &mut [u8]) {
        let added = self.clusters();
        let counted = clusters_of(geometry, index, added.end);
        for cluster in counted.start.max(added.start)..counted.end {
            let at = geometry.index_in_refcount_block(HostCluster::new(cluster));
            set_count(block, geometry.refcount_order(), at as usize, 1);
        }
    }

    /// The bytes of the new block for table entry `index`.
    fn block(&self, geometry: Geometry, index: u64) -> Vec<u8> {
        let mut block = vec![0; geometry.cluster_size() as usize];
        self.count_added(geometry, index, &mut block);
        block
    }

    /// Counts what is added in blocks that exist already; until it is named, those clusters are leaked, no more.
    async fn count_in_old_blocks<D: Disk>(
        &self,
        target: &Target<'_, D>,
        stored: &StoredCounts,
    ) -> Result<()> {
        let geometry = target.geometry;
        for index in self.covering(geometry) {
            let Some(place) = stored.block(index).place() else { continue };
            let at = HostOffset::new(place);
            let len = geometry.cluster_size();
            let mut block = read_bytes(target.disk, at, len, "refcount block").await?;
            self.count_added(geometry, index, &mut block);
            write(target, at, &block, "refcount block").await?;
        }
        Ok(())
    }

    /// Writes a table that names old and new blocks, and points the header to it.
    async fn switch_table<D: Disk>(
        &self,
        target: &Target<'_, D>,
        stored: &StoredCounts,
    ) -> Result<()> {
        let geometry = target.geometry;
        let mut entries: Vec<u64> = stored.table().iter().map(|entry| entry.0).collect();
        entries.resize((geometry.bytes(self.table_clusters) / 8) as usize, 0);
        for (&index, cluster) in self.indices.iter().zip(self.blocks()) {
            entries[index as usize] = geometry.host_start(cluster).get();
        }
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let at = self.table_offset(geometry);
        write(target, at, &bytes, "refcount table").await?;
        sync(target).await?;
        let mut header = target.header.clone();
        header.refcount_table_offset = at;
        header.refcount_table_clusters = self.table_clusters as u32;
        write_header(target, &header).await
    }
}
