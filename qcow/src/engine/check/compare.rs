//! Holds the references against the counts that the image stores.

use std::ops::Range;

use super::counts::Counts;
use super::finding::Finding;
use super::stored::{Block, StoredCounts};
use super::tables::TableReader;
use super::tally::Tally;
use super::target::Target;
use crate::addr::{Geometry, HostCluster};
use crate::disk::Disk;
use crate::error::Result;
use crate::meta::refs::read_count;

/// Clusters that are compared at once where all of them are as they should be.
const EIGHT: u64 = 8;

/// Reports every cluster of the file whose count differs from its references.
pub(super) async fn compare<D: Disk>(
    target: &Target<'_, D>,
    references: &Counts,
    stored: &StoredCounts,
    tally: &mut Tally<'_>,
) -> Result<()> {
    let geometry = target.geometry;
    let count_max = geometry.refcount_max();
    let mut comparison = Comparison { references, count_max, tally, highest: HostCluster::new(0) };
    let mut reader = TableReader::new(target);
    for batch in batches::<D>(geometry, references.len(), stored.table().len() as u64) {
        let blocks: Vec<Block> = batch.clone().map(|index| stored.block(index)).collect();
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
    let table_end = geometry.refcount_block_first(stored.table().len() as u64).get();
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

struct Comparison<'c, 'r> {
    references: &'c Counts,
    /// The largest count that the image can store.
    count_max: u64,
    tally: &'c mut Tally<'r>,
    /// The last cluster that is counted or referenced.
    highest: HostCluster,
}

impl Comparison<'_, '_> {
    fn compare_counted(&mut self, geometry: Geometry, clusters: Range<u64>, block: &[u8]) {
        let order = geometry.refcount_order();
        let first = clusters.start;
        let mut at = first;
        while at < clusters.end {
            let index = (at - first) as usize;
            if order == 4
                && at + EIGHT <= clusters.end
                && let Some(counts) = narrow_counts(&block[index * 2..])
                && counts == self.references.eight(at)
            {
                if counts != 0 {
                    let last = at + u64::from(7 - counts.leading_zeros() / 8);
                    self.highest = self.highest.max(HostCluster::new(last));
                }
                at += EIGHT;
                continue;
            }
            // A block holds a multiple of eight counts, but for the widest in the smallest clusters.
            for cluster in at..clusters.end.min(at + EIGHT) {
                let refcount = read_count(block, order, (cluster - first) as usize);
                self.compare_one(HostCluster::new(cluster), refcount);
            }
            at += EIGHT;
        }
    }

    /// The block is missing or all zeros.
    fn compare_uncounted(&mut self, clusters: Range<u64>) {
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
        let reference = self.references.get(cluster).min(self.count_max);
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

/// The first eight of some 16-bit counts, a byte each, the first one in the lowest; `None` where one of them needs more.
fn narrow_counts(counts: &[u8]) -> Option<u64> {
    let (counts, _) = counts.as_chunks::<2>();
    let mut narrow = [0; EIGHT as usize];
    let mut high = 0;
    for (narrow, &[more, low]) in narrow.iter_mut().zip(counts) {
        high |= more | u8::from(low == u8::MAX);
        *narrow = low;
    }
    (high == 0).then(|| u64::from_le_bytes(narrow))
}
