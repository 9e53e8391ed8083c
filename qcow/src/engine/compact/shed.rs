//! Giving back what is not needed: refcount blocks that count nothing, the end of the refcount table, the end of the file,
//! and the space of free clusters in front of it.

use std::collections::BTreeSet;

use super::layout::Layout;
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::check::parts::{sync, write_header};
use crate::error::{Error, Result};

/// Bytes that hosts allocate together: no part of them is worth a hole.
const HOST_BLOCK: u64 = 4096;

impl<D: Disk> Layout<'_, D> {
    /// Refcount blocks that count no more than each other: their table entries.
    pub(super) fn needless_blocks(&self) -> BTreeSet<u64> {
        let mut needless: BTreeSet<u64> = (0..self.blocks.len() as u64)
            .filter(|&index| self.blocks[index as usize].is_some())
            .collect();
        loop {
            let places: BTreeSet<u64> =
                needless.iter().filter_map(|&index| self.blocks[index as usize]).collect();
            let count_before = needless.len();
            needless.retain(|&index| {
                let geometry = self.target.geometry;
                let first = geometry.refcount_block_first(index).get();
                let clusters = first..first + geometry.refcounts_per_block();
                self.counts.used_in(clusters).all(|cluster| places.contains(&cluster.get()))
            });
            if needless.len() == count_before {
                return needless;
            }
        }
    }

    /// Takes refcount blocks out of the table, and frees them.
    pub(super) async fn drop_blocks(&mut self, indices: &BTreeSet<u64>) -> Result<()> {
        let places: Vec<u64> =
            indices.iter().filter_map(|&index| self.blocks[index as usize].take()).collect();
        self.write_table_entries(indices).await?;
        sync(&self.target).await?;
        for &cluster in &places {
            self.remove_metadata(cluster);
            self.counts.clear(HostCluster::new(cluster));
        }
        self.write_blocks(&self.blocks_of(places.into_iter().map(|cluster| (cluster, 1)))).await?;
        sync(&self.target).await
    }

    /// Clusters of the refcount table behind its last entry.
    pub(super) fn needless_table_clusters(&self) -> u64 {
        let entries = self.blocks.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let needed = self.target.geometry.clusters_for(entries as u64 * 8).max(1);
        u64::from(self.target.header.refcount_table_clusters).saturating_sub(needed)
    }

    /// Makes the refcount table shorter.
    pub(super) async fn shorten_table(&mut self, clusters: u64) -> Result<()> {
        let geometry = self.target.geometry;
        let header = &mut self.target.header;
        header.refcount_table_clusters -= clusters as u32;
        let left = u64::from(header.refcount_table_clusters);
        let table = geometry.host_cluster(header.refcount_table_offset).get();
        write_header(&self.target, &self.target.header).await?;
        self.resize_metadata(table, geometry.bytes(left));
        self.blocks.truncate(geometry.bytes(left) as usize / 8);
        for cluster in table + left..table + left + clusters {
            self.counts.clear(HostCluster::new(cluster));
        }
        let freed = std::iter::once((table + left, clusters));
        self.write_blocks(&self.blocks_of(freed)).await?;
        sync(&self.target).await
    }

    /// Cuts the file off behind the last cluster in use.
    pub(super) async fn cut_file(&self) -> Result<()> {
        let disk = self.target.disk;
        let len = disk.len().map_err(|e| Error::io("find the length", &e))?;
        let end = self.start_of(self.end());
        if end < len {
            let cut = disk.set_len(end).await;
            cut.map_err(|e| Error::io("Could not make the file shorter", &e))?;
        }
        Ok(())
    }

    /// Gives the host the space of free clusters.
    pub(super) async fn punch_free(&self) -> Result<()> {
        let end = self.end();
        let mut at = self.counts.first_free_from(0).get();
        while at < end {
            let next = self.counts.used_in(at..end).next().map_or(end, HostCluster::get);
            let start = self.start_of(at).next_multiple_of(HOST_BLOCK);
            let len = (self.start_of(next) / HOST_BLOCK * HOST_BLOCK).saturating_sub(start);
            if len > 0 {
                let punched = self.target.disk.punch_hole(HostOffset::new(start), len).await;
                punched.map_err(|e| {
                    Error::io(format!("Could not give back the space at {start:#x}"), &e)
                })?;
            }
            at = self.counts.first_free_from(next).get();
        }
        Ok(())
    }
}
