//! Reference counts of host clusters: the refcount table in memory, its blocks in a slice cache.

use super::cache::{Lookup, SliceCache};
use super::table::WordTable;
use super::{Asked, Need};
use crate::addr::{Geometry, HostCluster};
use crate::error::Result;
use crate::format::entry::RefcountTableEntry;
use crate::seeded_bugs::Bug;

/// log2 of the width of the counts of almost every image, in bits.
pub const USUAL_ORDER: u32 = 4;

/// Counts that are searched for a zero at once.
const ZERO_STRIDE: usize = 256;

/// The counts of all host clusters.
#[derive(Debug)]
pub struct Refcounts {
    geometry: Geometry,
    table: WordTable,
    slices: SliceCache,
}

impl Refcounts {
    /// The counts behind `table`.
    ///
    /// # Errors
    /// An entry is malformed.
    pub fn new(geometry: Geometry, table: WordTable, cache_bytes: u64) -> Result<Self> {
        for &raw in table.words() {
            RefcountTableEntry(raw).parse(geometry)?;
        }
        let slices = SliceCache::new(cache_bytes, geometry.slice_bytes());
        Ok(Self { geometry, table, slices })
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

    /// The counts of `count` clusters from `first` on, which share a slice.
    pub fn counts(
        &mut self,
        first: HostCluster,
        count: u64,
    ) -> Asked<impl Iterator<Item = (HostCluster, u64)> + use<>> {
        let order = self.geometry.refcount_order();
        let mut counts: Vec<u64> = Vec::new();
        if let Some(block) = self.block_of(first) {
            let (key, index) = self.geometry.refcount_slice(block, first);
            let Some(slice) = self.slices.get(key) else { return Err(Need::Refcounts(key)) };
            counts.extend((0..count).map(|i| read_count(slice.bytes(), order, index + i as usize)));
        }
        counts.resize(count as usize, 0);
        Ok((0..).map(move |i| first.plus(i)).zip(counts))
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
            .take_while(|i| is_free(read_count(bytes, order, index + *i as usize)))
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
        let zero = first_zero(slice.bytes(), order, index);
        Ok(zero.map_or(left, |at| (at - index) as u64))
    }

    /// The first cluster from `first` on whose count is zero, or else the one behind the last that `block` counts. Slices
    /// that are not in memory are as in `bytes`, which were read from the block.
    pub fn used_end_in(&self, block: HostCluster, first: HostCluster, bytes: &[u8]) -> HostCluster {
        let order = self.geometry.refcount_order();
        let len = self.geometry.slice_bytes() as usize;
        let mut from = first;
        loop {
            let (key, index) = self.geometry.refcount_slice(block, from);
            let stored = &bytes[key.index as usize * len..][..len];
            let slice = self.slices.peek(key).unwrap_or(stored);
            if let Some(zero) = first_zero(slice, order, index) {
                return from.plus((zero - index) as u64);
            }
            from = from.plus(self.geometry.refcounts_per_slice() - index as u64);
            if self.geometry.index_in_refcount_block(from) == 0 {
                return from;
            }
        }
    }

    /// The last cluster below `end`, of those that share a slice with the one before `end`, that is counted above zero;
    /// and the first of all that were looked at.
    pub fn last_used(&mut self, end: HostCluster) -> Asked<(HostCluster, Option<HostCluster>)> {
        let last = end.get().saturating_sub(1);
        if self.block_of(HostCluster::new(last)).is_none() {
            let block = self.geometry.refcount_block_index(HostCluster::new(last));
            return Ok((self.geometry.refcount_block_first(block), None));
        }
        let first =
            last / self.geometry.refcounts_per_slice() * self.geometry.refcounts_per_slice();
        let counts = self.counts(HostCluster::new(first), last + 1 - first)?;
        let used = counts.filter(|(_, count)| *count > 0).last();
        Ok((HostCluster::new(first), used.map(|(cluster, _)| cluster)))
    }

    /// How many of the clusters from `first` on are, or are not, in their last reference, up to `count_max` and no
    /// further than the slice.
    pub fn same_fate(&mut self, first: HostCluster, count_max: u64) -> Asked<(u64, bool)> {
        let is_last = |count: Option<u64>| count == Some(1);
        let last = is_last(self.get(first)?);
        let left = self.geometry.refcounts_per_slice()
            - self.geometry.index_in_refcount_block(first) % self.geometry.refcounts_per_slice();
        let mut count = 1;
        while count < count_max.min(left) && is_last(self.get(first.plus(count))?) == last {
            count += 1;
        }
        Ok((count, last))
    }

    /// The table.
    pub fn table(&self) -> &WordTable {
        &self.table
    }

    /// The table, for flushing.
    pub fn table_mut(&mut self) -> &mut WordTable {
        &mut self.table
    }

    /// All refcount blocks.
    pub fn blocks(&self) -> impl Iterator<Item = HostCluster> + '_ {
        (0..self.table.words().len()).filter_map(|index| self.block_at(index))
    }

    /// Hooks a new block in, whose zeros are on disk already, and counts the block itself.
    pub fn add_block(&mut self, index: u64, block: HostCluster) {
        self.hook_in(index, block);
        let (key, _) = self.geometry.refcount_slice(block, block);
        self.slices.insert_zeroed(key);
        if !Bug::BlockDoesNotCountItself.is_seeded() {
            self.set(block, 1).expect("the slice was just inserted");
        }
    }

    /// Hooks a new block in, whose zeros are on disk already. Whoever counts it is to do so at once.
    pub fn hook_in(&mut self, index: u64, block: HostCluster) {
        let index = index as usize;
        assert!(self.block_at(index).is_none(), "a refcount block is made once");
        self.table.set(index, RefcountTableEntry::to_block(self.geometry, block).0);
    }

    /// Sets the count of `cluster` in a block that has just been hooked in, and of which nothing has been loaded yet.
    pub fn set_in_new_block(&mut self, cluster: HostCluster, count: u64) {
        if let Err(need) = self.set(cluster, count) {
            let Need::Refcounts(key) = need else { unreachable!("a count lies in a block") };
            self.slices.insert_zeroed(key);
            self.set(cluster, count).expect("the slice was just inserted");
        }
    }

    /// Behind the last index of the table that has a block.
    pub fn blocks_end(&self) -> u64 {
        let words = self.table.words();
        words.iter().rposition(|&word| word != 0).map_or(0, |last| last as u64 + 1)
    }

    /// Forgets the counts: they have changed on disk. Nobody is using any of them.
    pub fn restart(&mut self) {
        assert!(!self.is_dirty(), "counts are read anew when they are clean");
        self.slices.clear();
    }

    /// Goes on with another table, which is on disk and in use.
    pub fn switch_table(&mut self, table: WordTable) {
        assert!(!self.table.is_dirty(), "a table is replaced only when it is clean");
        self.table = table;
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
        self.slices.is_dirty() || self.table.is_dirty()
    }

    /// Whether the table has a block at `index`.
    pub fn has_block(&self, index: u64) -> bool {
        usize::try_from(index).is_ok_and(|index| self.block_at(index).is_some())
    }

    fn block_of(&self, cluster: HostCluster) -> Option<HostCluster> {
        self.block_at(usize::try_from(self.geometry.refcount_block_index(cluster)).ok()?)
    }

    /// The block at `index` of the table.
    pub fn block_at(&self, index: usize) -> Option<HostCluster> {
        let raw = *self.table.words().get(index)?;
        RefcountTableEntry(raw).parse(self.geometry).ok().flatten()
    }
}

/// Whether a cluster with this count may be handed out.
fn is_free(count: u64) -> bool {
    count == 0 || Bug::UsedClusterIsClaimed.is_seeded() && count == 2
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

/// The place of the first count from `from` on in part of a block that is zero.
pub fn first_zero(bytes: &[u8], order: u32, from: usize) -> Option<usize> {
    if order == USUAL_ORDER {
        // Many at a time, and only then one by one.
        let counts = &bytes.as_chunks::<2>().0[from..];
        let has_zero = |part: &[[u8; 2]]| part.iter().fold(false, |any, c| any | (*c == [0, 0]));
        let (index, part) =
            counts.chunks(ZERO_STRIDE).enumerate().find(|(_, part)| has_zero(part))?;
        let place = part.iter().position(|count| *count == [0, 0])?;
        return Some(from + index * ZERO_STRIDE + place);
    }
    let count = (bytes.len() * 8) >> order;
    (from..count).find(|&at| read_count(bytes, order, at) == 0)
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
    use crate::addr::SliceKey;

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
    fn the_first_zero_is_found_at_any_width() {
        for order in 0..=6 {
            let count = (512 * 8) >> order;
            let mut block = vec![0xff; 512];
            assert_eq!(first_zero(&block, order, 0), None);
            for place in [count - 1, count / 2, 0] {
                set_count(&mut block, order, place, 0);
                assert_eq!(first_zero(&block, order, 0), Some(place), "order {order}");
            }
            assert_eq!(first_zero(&block, order, 1), Some(count / 2), "order {order}");
            assert_eq!(first_zero(&block, order, count / 2 + 1), Some(count - 1), "order {order}");
        }
    }

    #[test]
    fn counts_in_memory_are_right_and_stored_ones_perhaps_not() {
        let geometry = Geometry::new(16, 4);
        let block = HostCluster::new(7);
        let table = RefcountTableEntry::to_block(geometry, block).0;
        let table = WordTable::new(geometry.host_start(HostCluster::new(1)), vec![table]);
        let mut refs = Refcounts::new(geometry, table, 1 << 20).expect("a sound table");
        let end = |refs: &Refcounts, first, stored: &[u8]| {
            refs.used_end_in(block, HostCluster::new(first), stored).get()
        };
        let (per_slice, per_block) =
            (geometry.refcounts_per_slice(), geometry.refcounts_per_block());
        let mut stored = vec![1; 65536];
        assert_eq!(end(&refs, 5, &stored), per_block, "all are in use");
        refs.slices.insert_zeroed(SliceKey { table: block, index: 1 });
        assert_eq!(end(&refs, 5, &stored), per_slice, "free in memory");
        for cluster in per_slice..2 * per_slice {
            refs.set(HostCluster::new(cluster), 1).expect("in memory");
        }
        stored[4096..8192].fill(0);
        set_count(&mut stored, 4, per_block as usize - 1, 0);
        assert_eq!(end(&refs, 5, &stored), per_block - 1, "in use in memory");
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
