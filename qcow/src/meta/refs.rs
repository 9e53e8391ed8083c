//! Reference counts of host clusters: the refcount table in memory, its blocks in a slice cache.

use std::collections::{BTreeSet, HashSet};

use super::cache::{Lookup, SliceCache};
use super::{Asked, Need};
use crate::addr::{Geometry, HostCluster, HostOffset};
use crate::error::{Error, Result};
use crate::format::entry::RefcountTableEntry;
use crate::limits::SECTOR_BYTES;

/// The counts of all host clusters.
#[derive(Debug)]
pub struct Refcounts {
    geometry: Geometry,
    table_offset: HostOffset,
    table: Vec<Option<HostCluster>>,
    /// Sectors of the table that differ from the disk.
    dirty: BTreeSet<u64>,
    slices: SliceCache,
}

/// Entries of the refcount table in one sector.
const ENTRIES_PER_SECTOR: u64 = SECTOR_BYTES / 8;

impl Refcounts {
    /// The counts behind the table at `table_offset`, given its raw entries.
    pub fn new(
        geometry: Geometry,
        table_offset: HostOffset,
        table: &[u64],
        cache_bytes: u64,
    ) -> Result<Self> {
        let table = parse_table(geometry, table)?;
        let slices = SliceCache::new(cache_bytes, geometry.slice_bytes());
        Ok(Self { geometry, table_offset, table, dirty: BTreeSet::new(), slices })
    }

    /// The count of `cluster`; `None` where no block counts it, which means zero.
    pub fn get(&mut self, cluster: HostCluster) -> Asked<Option<u64>> {
        let Some(block) = self.block_of(cluster) else { return Ok(None) };
        let (key, index) = self.geometry.refcount_slice(block, cluster);
        let order = self.geometry.refcount_order();
        match self.slices.lookup(key) {
            Lookup::Hit(slice) => Ok(Some(read_count(slice.bytes(), order, index))),
            Lookup::Loading | Lookup::Miss => Err(Need::Refcounts(key)),
        }
    }

    /// Sets the count of `cluster`, which a block counts and which fits the width.
    pub fn set(&mut self, cluster: HostCluster, count: u64) -> Asked<()> {
        let block = self.block_of(cluster).expect("a refcount block for a cluster that is counted");
        assert!(count <= self.geometry.refcount_max(), "a refcount that fits its width");
        let (key, index) = self.geometry.refcount_slice(block, cluster);
        let order = self.geometry.refcount_order();
        let Some(slice) = self.slices.get(key) else { return Err(Need::Refcounts(key)) };
        let (at, bytes) = write_count(slice.bytes(), order, index, count);
        self.slices.change(key, at, &bytes);
        Ok(())
    }

    /// How many of the clusters from `first` on are counted zero and share a slice with it, up to `count_max`.
    ///
    /// `None` where no block counts `first`.
    pub fn free_prefix(&mut self, first: HostCluster, count_max: u64) -> Asked<Option<u64>> {
        let Some(block) = self.block_of(first) else { return Ok(None) };
        let (key, index) = self.geometry.refcount_slice(block, first);
        let order = self.geometry.refcount_order();
        let left = self.geometry.refcounts_per_slice() - index as u64;
        let Some(slice) = self.slices.get(key) else { return Err(Need::Refcounts(key)) };
        let bytes = slice.bytes();
        let free = (0..left.min(count_max))
            .take_while(|i| read_count(bytes, order, index + *i as usize) == 0)
            .count();
        Ok(Some(free as u64))
    }

    /// How many of the clusters from `first` on are counted above zero and share a slice with it.
    pub fn used_prefix(&mut self, first: HostCluster) -> Asked<u64> {
        let Some(block) = self.block_of(first) else { return Ok(0) };
        let (key, index) = self.geometry.refcount_slice(block, first);
        let order = self.geometry.refcount_order();
        let left = self.geometry.refcounts_per_slice() - index as u64;
        let Some(slice) = self.slices.get(key) else { return Err(Need::Refcounts(key)) };
        let bytes = slice.bytes();
        let used =
            (0..left).take_while(|i| read_count(bytes, order, index + *i as usize) != 0).count();
        Ok(used as u64)
    }

    /// Entries that the table has room for.
    pub fn table_len(&self) -> u64 {
        self.table.len() as u64
    }

    /// Where the table lies: its first cluster, and how many it fills.
    pub fn table_span(&self) -> (HostCluster, u64) {
        self.geometry.host_span(self.table_offset, self.table_len() * 8)
    }

    /// All refcount blocks.
    pub fn blocks(&self) -> impl Iterator<Item = HostCluster> + '_ {
        self.table.iter().filter_map(|b| *b)
    }

    /// The raw table, for a copy in a new place.
    pub fn raw_table(&self) -> Vec<u64> {
        let raw = |b: &Option<HostCluster>| {
            b.map_or(0, |block| RefcountTableEntry::to_block(self.geometry, block).0)
        };
        self.table.iter().map(raw).collect()
    }

    /// Hooks a new block in, whose zeros are on disk already, and counts the block itself.
    pub fn add_block(&mut self, index: u64, block: HostCluster) {
        let entry = &mut self.table[index as usize];
        assert!(entry.is_none(), "a refcount block is made once");
        *entry = Some(block);
        self.dirty.insert(index / ENTRIES_PER_SECTOR);
        let (key, _) = self.geometry.refcount_slice(block, block);
        self.slices.insert_zeroed(key);
        self.set(block, 1).expect("the slice was just inserted");
    }

    /// Goes on with the table at `offset`, which is on disk and in use.
    pub fn switch_table(&mut self, offset: HostOffset, table: &[u64]) -> Result<()> {
        assert!(self.dirty.is_empty(), "a table is replaced only when it is clean");
        self.table = parse_table(self.geometry, table)?;
        self.table_offset = offset;
        Ok(())
    }

    /// The slice cache, for loading and flushing.
    pub fn slices(&self) -> &SliceCache {
        &self.slices
    }

    /// The slice cache, for loading and flushing.
    pub fn slices_mut(&mut self) -> &mut SliceCache {
        &mut self.slices
    }

    /// Whether anything waits to be written.
    pub fn is_dirty(&self) -> bool {
        self.slices.is_dirty() || !self.dirty.is_empty()
    }

    /// The changed sectors of the table, for a flush.
    pub fn take_dirty_table(&mut self) -> Vec<(u64, HostOffset, Vec<u8>)> {
        let sectors = std::mem::take(&mut self.dirty);
        sectors.into_iter().map(|sector| self.table_sector(sector)).collect()
    }

    /// Marks a sector of the table as changed again, after its write failed.
    pub fn redirty_table(&mut self, sector: u64) {
        self.dirty.insert(sector);
    }

    fn table_sector(&self, sector: u64) -> (u64, HostOffset, Vec<u8>) {
        let first = (sector * ENTRIES_PER_SECTOR) as usize;
        let entries =
            &self.table[first..(first + ENTRIES_PER_SECTOR as usize).min(self.table.len())];
        let raw = |b: &Option<HostCluster>| {
            b.map_or(0, |block| RefcountTableEntry::to_block(self.geometry, block).0).to_be_bytes()
        };
        let bytes = entries.iter().flat_map(raw).collect();
        (sector, self.table_offset.plus(sector * SECTOR_BYTES), bytes)
    }

    fn block_of(&self, cluster: HostCluster) -> Option<HostCluster> {
        let index = usize::try_from(self.geometry.refcount_block_index(cluster)).ok()?;
        self.table.get(index).copied().flatten()
    }

    /// Whether the table has a block at `index`.
    pub fn has_block(&self, index: u64) -> bool {
        usize::try_from(index).ok().and_then(|i| self.table.get(i)).is_some_and(Option::is_some)
    }
}

/// The blocks that the raw entries of a table name. A block that two entries name would count two places at once, and a
/// small file could pretend to be full up to any size.
fn parse_table(geometry: Geometry, raw: &[u64]) -> Result<Vec<Option<HostCluster>>> {
    let mut seen = HashSet::new();
    let parse = |&raw: &u64| match RefcountTableEntry(raw).parse(geometry)? {
        Some(block) if !seen.insert(block) => {
            let at = geometry.host_start(block);
            Err(Error::corrupt(format!("the refcount table names the block at {at} twice")))
        }
        block => Ok(block),
    };
    raw.iter().map(parse).collect()
}

/// The count at `index` of a slice, for entries of `1 << order` bits.
///
/// Clause "Refcounts": entries narrower than a byte fill it from its least significant bit on.
pub fn read_count(bytes: &[u8], order: u32, index: usize) -> u64 {
    if order < 3 {
        let (per_byte, bits) = (8 >> order, 1 << order);
        let shift = index % per_byte * bits;
        return u64::from(bytes[index / per_byte] >> shift) & ((1 << bits) - 1);
    }
    let width = 1 << (order - 3);
    let at = index * width;
    bytes[at..at + width].iter().fold(0, |count, &byte| count << 8 | u64::from(byte))
}

/// The bytes that set the count at `index` of a slice, and where they go.
fn write_count(
    bytes: &[u8],
    order: u32,
    index: usize,
    count: u64,
) -> (usize, smallvec::SmallVec<[u8; 8]>) {
    if order < 3 {
        let (per_byte, bits) = (8 >> order, 1 << order);
        let shift = index % per_byte * bits;
        let mask = (((1u16 << bits) - 1) as u8) << shift;
        let byte = bytes[index / per_byte] & !mask | (count as u8) << shift;
        return (index / per_byte, smallvec::smallvec![byte]);
    }
    let width = 1 << (order - 3);
    (index * width, count.to_be_bytes()[8 - width..].into())
}

/// Sets the count at `index` of a refcount block in memory.
pub fn set_count(block: &mut [u8], order: u32, index: usize, count: u64) {
    let (at, new) = write_count(block, order, index, count);
    block[at..at + new.len()].copy_from_slice(&new);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_round_trips_and_disturbs_no_neighbour() {
        for order in 0..=6 {
            let max = u64::MAX >> (64 - (1u32 << order));
            for index in 0..9 {
                let mut block = vec![0xff; 128];
                set_count(&mut block, order, index, max / 2);
                for other in 0..10 {
                    let expected = if other == index { max / 2 } else { max };
                    assert_eq!(read_count(&block, order, other), expected, "order {order}");
                }
            }
        }
    }

    #[test]
    fn narrow_counts_start_at_the_least_significant_bit() {
        let mut block = vec![0; 8];
        set_count(&mut block, 1, 0, 3);
        assert_eq!(block[0], 0b11);
        set_count(&mut block, 0, 7, 1);
        assert_eq!(block[0], 0b1000_0011);
    }
}
