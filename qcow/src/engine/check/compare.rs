//! Holds the references against the counts that the image stores.

use std::ops::Range;

use super::Target;
use super::counts::Counts;
use super::finding::Finding;
use super::stored::{Block, StoredCounts};
use super::tables::TableReader;
use super::tally::Tally;
use crate::addr::{Geometry, HostCluster};
use crate::disk::Disk;
use crate::error::Result;
use crate::meta::refs::read_count;

/// Reports every cluster of the file whose count differs from its references, and records in `stored` which clusters
/// count exactly one.
pub(super) async fn compare<D: Disk>(
    target: &Target<'_, D>,
    references: &Counts,
    stored: &mut StoredCounts,
    tally: &mut Tally<'_>,
) -> Result<()> {
    let mut comparison = Comparison { references, stored, tally, highest: HostCluster::new(0) };
    let geometry = target.geometry;
    let mut reader = TableReader::new(target);
    for batch in batches::<D>(geometry, references.len(), comparison.stored.table().len() as u64) {
        let blocks: Vec<Block> =
            batch.clone().map(|index| comparison.stored.block(index)).collect();
        let places: Vec<u64> = blocks.iter().filter_map(Block::place).collect();
        let mut read = reader.read(&places, geometry.cluster_size()).await?.into_iter();
        for (index, block) in batch.zip(blocks) {
            let bytes = block.place().and_then(|_| read.next().flatten());
            let clusters = clusters_of(geometry, index, references.len());
            match (block, bytes) {
                (Block::Unreadable, _) => comparison.skip_unreadable(&clusters),
                (_, Some(bytes)) => comparison.compare_counted(geometry, clusters, &bytes),
                (_, None) => comparison.compare_uncounted(clusters),
            }
        }
    }
    let table_end = geometry.refcount_block_first(comparison.stored.table().len() as u64).get();
    if table_end < references.len() {
        comparison.compare_uncounted(table_end..references.len());
    }
    let end = comparison.highest.get() + 1;
    tally.summary.image_end_offset = geometry.bytes(end);
    Ok(())
}

/// The refcount table's entries that count clusters below `clusters`, in batches that are read at once.
pub(super) fn batches<D: Disk>(
    geometry: Geometry,
    clusters: u64,
    table_len: u64,
) -> impl Iterator<Item = Range<u64>> {
    let step = TableReader::<D>::batch_for(geometry.cluster_size());
    let end = clusters.div_ceil(geometry.refcounts_per_block()).min(table_len);
    (0..end).step_by(step).map(move |start| start..end.min(start + step as u64))
}

/// The clusters below `end` that the block behind table entry `index` counts.
pub(super) fn clusters_of(geometry: Geometry, index: u64, end: u64) -> Range<u64> {
    let first = geometry.refcount_block_first(index).get();
    first..end.min(first + geometry.refcounts_per_block())
}

impl Block {
    /// Where the block starts, if it is anywhere.
    pub(super) fn place(&self) -> Option<u64> {
        match self {
            Self::At(offset) => Some(*offset),
            Self::Missing | Self::Unreadable => None,
        }
    }
}

struct Comparison<'c, 'r> {
    references: &'c Counts,
    stored: &'c mut StoredCounts,
    tally: &'c mut Tally<'r>,
    /// The last cluster that is counted or referenced.
    highest: HostCluster,
}

impl Comparison<'_, '_> {
    fn compare_counted(&mut self, geometry: Geometry, clusters: Range<u64>, block: &[u8]) {
        for (index, cluster) in clusters.map(HostCluster::new).enumerate() {
            let refcount = read_count(block, geometry.refcount_order(), index);
            self.stored.set_single(cluster, refcount == 1);
            self.compare_one(cluster, refcount);
        }
    }

    /// The block is missing or all zeros.
    fn compare_uncounted(&mut self, clusters: Range<u64>) {
        if let Some(last) = clusters.clone().next_back() {
            self.stored.set_single(HostCluster::new(last), false);
        }
        let references = self.references;
        for cluster in references.used_in(clusters) {
            self.compare_one(cluster, 0);
        }
    }

    fn skip_unreadable(&mut self, clusters: &Range<u64>) {
        let count = clusters.end - clusters.start;
        let first = HostCluster::new(clusters.start);
        self.tally.note(&Finding::RefcountUnknown { first, count }, count);
    }

    fn compare_one(&mut self, cluster: HostCluster, refcount: u64) {
        let reference = self.references.get(cluster);
        if refcount > 0 || reference > 0 {
            self.highest = self.highest.max(cluster);
        }
        if refcount > reference {
            let repaired = false;
            self.tally.note(&Finding::Leaked { cluster, refcount, reference, repaired }, 1);
        } else if refcount < reference {
            let repaired = false;
            self.tally.note(&Finding::Undercounted { cluster, refcount, reference, repaired }, 1);
        }
    }
}
