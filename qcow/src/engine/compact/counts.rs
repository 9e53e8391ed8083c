//! Refcount blocks and the refcount table, written as they should be by now.

use std::collections::BTreeSet;

use super::layout::Layout;
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::check::parts::{encode_block, write};
use crate::error::Result;
use crate::exec::try_join_all;
use crate::limits::{IN_FLIGHT_MAX, SECTOR_BYTES};

/// Entries of the refcount table in a sector.
const ENTRIES: usize = SECTOR_BYTES as usize / 8;

impl<D: Disk> Layout<'_, D> {
    /// The table entries of the blocks that count `runs` of clusters: first clusters and lengths.
    pub(super) fn blocks_of(&self, runs: impl Iterator<Item = (u64, u64)>) -> BTreeSet<u64> {
        let geometry = self.target.geometry;
        let index = |cluster| geometry.refcount_block_index(HostCluster::new(cluster));
        runs.flat_map(|(first, len)| index(first)..=index(first + len - 1)).collect()
    }

    /// Writes the blocks behind these table entries; those that are not there count nothing.
    pub(super) async fn write_blocks(&self, indices: &BTreeSet<u64>) -> Result<()> {
        let writes = indices.iter().map(|&index| async move {
            let Some(&Some(cluster)) = self.blocks.get(index as usize) else { return Ok(()) };
            let block = encode_block(self.target.geometry, &self.counts, index);
            let at = HostOffset::new(self.start_of(cluster));
            write(&self.target, at, &block, "refcount block").await
        });
        try_join_all(IN_FLIGHT_MAX, writes).await
    }

    /// Writes these entries of the refcount table.
    pub(super) async fn write_table_entries(&self, indices: &BTreeSet<u64>) -> Result<()> {
        let table = self.target.header.refcount_table_offset;
        let sectors: BTreeSet<usize> = indices.iter().map(|&i| i as usize / ENTRIES).collect();
        let writes = sectors.into_iter().map(|sector| async move {
            let entries = &self.blocks[sector * ENTRIES..];
            let entries = &entries[..entries.len().min(ENTRIES)];
            let word = |block: &Option<u64>| block.map_or(0, |cluster| self.start_of(cluster));
            let bytes: Vec<u8> = entries.iter().flat_map(|b| word(b).to_be_bytes()).collect();
            let at = table.plus(sector as u64 * SECTOR_BYTES);
            write(&self.target, at, &bytes, "refcount table").await
        });
        try_join_all(IN_FLIGHT_MAX, writes).await
    }
}
