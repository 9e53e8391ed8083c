//! Refcount structures made anew, from nothing but the references.
//!
//! What is new lies where no table points. When all of it is durable, the header is pointed at it in one sector - together
//! with whatever else a repair has put aside. The old structures are counted once more, and so become leaks like any other.

use std::collections::BTreeMap;
use std::ops::Range;

use super::compare::clusters_of;
use super::counts::Counts;
use super::finding::Finding;
use super::repair::{sync, write, write_header};
use super::tally::Tally;
use super::target::Target;
use crate::addr::{Geometry, HostCluster, HostOffset};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::header::{Header, Version};
use crate::limits::{REFCOUNT_ORDER_MAX, REFCOUNT_TABLE_BYTES_MAX};
use crate::meta::refs::set_count;

/// Writes structures that store `references`, and makes `header` that of the image, with them. What is new goes to
/// clusters from `floor` on that are not referenced.
///
/// # Errors
/// The refcount table would be too large, or the file cannot be written.
pub(super) async fn rebuild<D: Disk>(
    target: &Target<'_, D>,
    mut header: Header,
    references: Counts,
    floor: HostCluster,
    tally: &mut Tally<'_>,
) -> Result<()> {
    let order = wide_enough(&header, &references);
    if order != header.refcount_order {
        header.refcount_order = order;
        tally.note(&Finding::CountsWidened { bits: header.geometry().refcount_bits() }, 1);
    }
    let mut plan = Plan {
        geometry: header.geometry(),
        references,
        floor,
        blocks: BTreeMap::new(),
        table: 0..0,
    };
    plan.make()?;
    plan.write(target).await?;
    header.refcount_table_offset = plan.geometry.host_start(HostCluster::new(plan.table.start));
    header.refcount_table_clusters = (plan.table.end - plan.table.start) as u32;
    sync(target).await?;
    write_header(target, &header).await
}

/// The width of counts that can tell all references, where the version has a choice.
fn wide_enough(header: &Header, references: &Counts) -> u32 {
    let (geometry, order) = (header.geometry(), header.refcount_order);
    if header.version == Version::V2 || order >= 5 {
        return order;
    }
    let used = references.used_in(0..references.len());
    let highest = used.map(|cluster| references.get(cluster)).max().unwrap_or(0);
    let fits = |order: u32| highest <= u64::MAX >> (64 - (1 << order));
    match highest <= geometry.refcount_max() {
        true => order,
        false => {
            (order..REFCOUNT_ORDER_MAX).find(|&order| fits(order)).unwrap_or(REFCOUNT_ORDER_MAX)
        }
    }
}

/// Where the new structures go.
struct Plan {
    geometry: Geometry,
    /// The new structures included, once they have a place.
    references: Counts,
    floor: HostCluster,
    /// Places of the blocks, by table index.
    blocks: BTreeMap<u64, HostCluster>,
    /// Clusters of the table.
    table: Range<u64>,
}

impl Plan {
    fn make(&mut self) -> Result<()> {
        self.place_blocks();
        loop {
            let entries = self.blocks.keys().next_back().map_or(1, |last| last + 1);
            let clusters = self.geometry.clusters_for(entries * 8);
            if self.geometry.bytes(clusters) > REFCOUNT_TABLE_BYTES_MAX {
                return Err(Error::limit(format!(
                    "cannot be repaired: its refcount table would exceed {REFCOUNT_TABLE_BYTES_MAX} bytes"
                )));
            }
            if clusters <= self.table.end - self.table.start {
                return Ok(());
            }
            self.table.clone().for_each(|old| self.references.clear(HostCluster::new(old)));
            self.table = self.free_run(clusters);
            self.references.grow(self.table.end);
            for cluster in self.table.clone() {
                self.references.add(HostCluster::new(cluster), 1, u64::MAX);
            }
            // The table needs counts, too, perhaps in blocks that it takes a larger table to name.
            self.place_blocks();
        }
    }

    /// Gives each block that is needed a place among the clusters that it or a later one counts.
    fn place_blocks(&mut self) {
        let per_block = self.geometry.refcounts_per_block();
        let (mut index, mut free) = (0, self.floor.get());
        // Blocks at the end of the file make for more clusters to count.
        while index * per_block < self.references.len() {
            let clusters = clusters_of(self.geometry, index, self.references.len());
            let is_used = self.references.used_in(clusters).next().is_some();
            if is_used && !self.blocks.contains_key(&index) {
                free = self.next_free(free.max(index * per_block));
                self.references.grow(free + 1);
                self.references.add(HostCluster::new(free), 1, u64::MAX);
                self.blocks.insert(index, HostCluster::new(free));
            }
            index += 1;
        }
    }

    /// The first cluster from `at` on that nothing refers to.
    fn next_free(&self, at: u64) -> u64 {
        let used = self.references.used_in(at..self.references.len().max(at));
        let mut next = at;
        for cluster in used {
            if cluster.get() > next {
                break;
            }
            next = cluster.get() + 1;
        }
        next
    }

    /// The first `count` clusters in a row that nothing refers to.
    fn free_run(&self, count: u64) -> Range<u64> {
        let mut start = self.next_free(self.floor.get());
        for cluster in self.references.used_in(start..self.references.len().max(start)) {
            if cluster.get() - start >= count {
                break;
            }
            start = cluster.get() + 1;
        }
        start..start + count
    }

    async fn write<D: Disk>(&self, target: &Target<'_, D>) -> Result<()> {
        let geometry = self.geometry;
        let mut table = vec![0; geometry.bytes(self.table.end - self.table.start) as usize];
        for (&index, &cluster) in &self.blocks {
            let at = geometry.host_start(cluster);
            let block = encode_block(geometry, &self.references, index);
            write(target, at, &block, "refcount block").await?;
            let entry = index as usize * 8;
            table[entry..entry + 8].copy_from_slice(&at.get().to_be_bytes());
        }
        let at: HostOffset = geometry.host_start(HostCluster::new(self.table.start));
        write(target, at, &table, "refcount table").await
    }
}

/// The refcount block behind table entry `index` that says what `references` say.
pub(in crate::engine) fn encode_block(
    geometry: Geometry,
    references: &Counts,
    index: u64,
) -> Vec<u8> {
    let mut block = vec![0; geometry.cluster_size() as usize];
    for cluster in references.used_in(clusters_of(geometry, index, references.len())) {
        let count = references.get(cluster).min(geometry.refcount_max());
        let at = geometry.index_in_refcount_block(cluster) as usize;
        set_count(&mut block, geometry.refcount_order(), at, count);
    }
    block
}
