//! Refcount blocks in memory, for counts that change by the million: each block is read once and written once.

use crate::addr::{ClusterCount, Geometry, HostCluster};
use crate::error::{Error, Result};
use crate::meta::refs::{USUAL_ORDER, read_count, set_count};

/// Counts that are compared at once.
const STRIDE: usize = 64;

/// The blocks that a change touches, by their index in the refcount table.
#[derive(Debug)]
pub struct Blocks {
    geometry: Geometry,
    blocks: Vec<Option<Block>>,
}

#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    /// The bytes before any count was lowered, where they differ from those on disk.
    raised: Option<Box<[u8]>>,
    /// The bytes differ from what was last taken for writing.
    changed: bool,
}

impl Blocks {
    /// No blocks yet, of a refcount table with `table_len` entries.
    pub fn new(geometry: Geometry, table_len: usize) -> Self {
        let blocks = std::iter::repeat_with(|| None).take(table_len).collect();
        Self { geometry, blocks }
    }

    /// `index`, if the table has it and its block is not in memory.
    pub fn missing(&self, index: u64) -> Option<u64> {
        let known = usize::try_from(index).ok().and_then(|index| self.blocks.get(index));
        known.is_some_and(Option::is_none).then_some(index)
    }

    /// Takes in the block at `index`, one of the table's.
    pub fn put(&mut self, index: u64, bytes: Vec<u8>) {
        let bytes = bytes.into_boxed_slice();
        self.blocks[index as usize] = Some(Block { bytes, raised: None, changed: false });
    }

    /// The count of `cluster`, whose block is in memory if there is one.
    #[inline]
    pub fn get(&self, cluster: HostCluster) -> u64 {
        let index = self.geometry.refcount_block_index(cluster) as usize;
        let at = self.geometry.index_in_refcount_block(cluster) as usize;
        let order = self.geometry.refcount_order();
        let block = self.blocks.get(index).and_then(Option::as_ref);
        block.map_or(0, |block| read(&block.bytes, order, at))
    }

    /// How many of the `count` clusters from `first` on, one at least, all count one, or all do not; and which. Their blocks
    /// are in memory if there are any.
    pub fn same_fate(&self, first: HostCluster, count: ClusterCount) -> (ClusterCount, bool) {
        let single = self.get(first) == 1;
        let at = self.geometry.index_in_refcount_block(first);
        let here = count.min(self.geometry.refcounts_per_block() - at);
        let index = self.geometry.refcount_block_index(first) as usize;
        let usual = self.geometry.refcount_order() == USUAL_ORDER;
        let Some(block) = self.blocks.get(index).and_then(Option::as_ref).filter(|_| usual) else {
            let differs = |&i: &u64| (self.get(first.plus(i)) == 1) != single;
            return ((1..here).find(differs).unwrap_or(here), single);
        };
        let counts = &block.bytes.as_chunks::<2>().0[at as usize..(at + here) as usize];
        let differs = |count: &[u8; 2]| (*count == [0, 1]) != single;
        // Without a way out halfway, many are looked at in one go.
        let is_mixed = |part: &[[u8; 2]]| part.iter().fold(false, |any, c| any | differs(c));
        let Some(stride) = counts.chunks(STRIDE).position(is_mixed) else { return (here, single) };
        let start = stride * STRIDE;
        let place = counts[start..].iter().position(differs);
        (place.map_or(here, |place| (start + place) as u64), single)
    }

    /// Raises the counts of `count` clusters from `first` on, which are referenced already.
    ///
    /// # Errors
    /// One counts zero (`Corrupt`), or the sum does not fit the image's counts (`Invalid`).
    pub fn raise(&mut self, first: HostCluster, count: ClusterCount, by: u64) -> Result<()> {
        self.for_each_block(first, count, |blocks, first, count| {
            if blocks.raise_usual(first, count, by) {
                return Ok(());
            }
            let max = blocks.geometry.refcount_max();
            blocks.change(first, count, |cluster, count| {
                let sum = count.checked_add(by).filter(|&sum| sum <= max);
                sum.ok_or_else(|| {
                    let number = cluster.get();
                    let what = format!("the refcount of cluster {number} would exceed {max}");
                    Error::invalid(format!("{what}: the image needs wider refcounts"))
                })
            })
        })
    }

    /// Does the same where it is simple, or nothing: where all counts are fit to be raised.
    fn raise_usual(&mut self, first: HostCluster, count: ClusterCount, by: u64) -> bool {
        let Ok(by) = u16::try_from(by) else { return false };
        let fit = |count: u16| (count > 0) & (count <= u16::MAX - by);
        self.change_usual(first, count, fit, |count| count.wrapping_add(by))
    }

    /// Lowers counts where it is simple, or does nothing: where something is left of every one.
    fn lower_usual(&mut self, first: HostCluster, count: ClusterCount, by: u64) -> bool {
        let Ok(by) = u16::try_from(by) else { return false };
        self.change_usual(first, count, |count| count > by, |count| count.wrapping_sub(by))
    }

    /// Changes a row in one block with counts of the usual width, if all of them are `fit`; whether it did.
    fn change_usual(
        &mut self,
        first: HostCluster,
        count: ClusterCount,
        fit: impl Fn(u16) -> bool,
        change: impl Fn(u16) -> u16,
    ) -> bool {
        if self.geometry.refcount_order() != USUAL_ORDER {
            return false;
        }
        let at = self.geometry.index_in_refcount_block(first);
        let index = self.geometry.refcount_block_index(first) as usize;
        let Some(block) = self.blocks.get_mut(index).and_then(Option::as_mut) else { return false };
        let (counts, _) = block.bytes.as_chunks_mut::<2>();
        let counts = &mut counts[at as usize..(at + count) as usize];
        // Without a way out halfway, many are looked at in one go.
        if !counts.iter().fold(true, |all, &count| all & fit(u16::from_be_bytes(count))) {
            return false;
        }
        block.changed = true;
        for count in counts {
            *count = change(u16::from_be_bytes(*count)).to_be_bytes();
        }
        true
    }

    /// Lowers the counts of `count` clusters from `first` on, which are referenced; tells `freed` of those that have lost
    /// their last reference.
    ///
    /// # Errors
    /// One counts too little for that.
    pub fn lower(
        &mut self,
        first: HostCluster,
        count: ClusterCount,
        by: u64,
        mut freed: impl FnMut(HostCluster),
    ) -> Result<()> {
        self.for_each_block(first, count, |blocks, first, count| {
            if blocks.lower_usual(first, count, by) {
                return Ok(());
            }
            blocks.change(first, count, |cluster, count| {
                let left = count.checked_sub(by).ok_or_else(|| {
                    let number = cluster.get();
                    let what = format!("cluster {number} has a refcount of {count} and loses {by}");
                    Error::corrupt(what)
                })?;
                if left == 0 {
                    freed(cluster);
                }
                Ok(left)
            })
        })
    }

    /// Divides a row where another block begins.
    fn for_each_block(
        &mut self,
        first: HostCluster,
        count: ClusterCount,
        mut change: impl FnMut(&mut Self, HostCluster, ClusterCount) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < count {
            let first = first.plus(done);
            let left =
                self.geometry.refcounts_per_block() - self.geometry.index_in_refcount_block(first);
            let here = left.min(count - done);
            change(self, first, here)?;
            done += here;
        }
        Ok(())
    }

    /// Changes a row in one block.
    fn change(
        &mut self,
        first: HostCluster,
        count: ClusterCount,
        mut change: impl FnMut(HostCluster, u64) -> Result<u64>,
    ) -> Result<()> {
        let order = self.geometry.refcount_order();
        let index = self.geometry.refcount_block_index(first) as usize;
        let at = self.geometry.index_in_refcount_block(first) as usize;
        let Some(block) = self.blocks.get_mut(index).and_then(Option::as_mut) else {
            return Err(uncounted(first));
        };
        for (i, at) in (at..at + count as usize).enumerate() {
            let cluster = first.plus(i as u64);
            match read(&block.bytes, order, at) {
                0 => return Err(uncounted(cluster)),
                count => write(&mut block.bytes, order, at, change(cluster, count)?),
            }
        }
        block.changed = true;
        Ok(())
    }

    /// Keeps the blocks that have changed as they are now, to be written before those with lowered counts.
    pub fn hold_raised(&mut self) {
        for block in self.blocks.iter_mut().flatten().filter(|block| block.changed) {
            block.raised = Some(block.bytes.clone());
            block.changed = false;
        }
    }

    /// The blocks with what [`Self::hold_raised`] has kept.
    pub fn raised(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.loaded().filter_map(|(index, block)| Some((index, &**block.raised.as_ref()?)))
    }

    /// The blocks that have changed since then.
    pub fn changed(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.loaded()
            .filter(|(_, block)| block.changed)
            .map(|(index, block)| (index, &*block.bytes))
    }

    fn loaded(&self) -> impl Iterator<Item = (u64, &Block)> {
        (0..).zip(&self.blocks).filter_map(|(index, block)| Some((index, block.as_ref()?)))
    }
}

fn uncounted(cluster: HostCluster) -> Error {
    let number = cluster.get();
    Error::corrupt(format!("cluster {number} is referenced but its refcount is zero"))
}

#[inline]
fn read(block: &[u8], order: u32, at: usize) -> u64 {
    if order == USUAL_ORDER {
        return u16::from_be_bytes([block[2 * at], block[2 * at + 1]]).into();
    }
    read_count(block, order, at)
}

#[inline]
fn write(block: &mut [u8], order: u32, at: usize, count: u64) {
    if order == USUAL_ORDER {
        block[2 * at..2 * at + 2].copy_from_slice(&(count as u16).to_be_bytes());
        return;
    }
    set_count(block, order, at, count);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(number: u64) -> HostCluster {
        HostCluster::new(number)
    }

    /// One block, in which cluster 5 counts one.
    fn blocks(order: u32) -> Blocks {
        let mut blocks = Blocks::new(Geometry::new(9, order), 2);
        assert_eq!(blocks.missing(0), Some(0));
        let mut bytes = vec![0; 512];
        set_count(&mut bytes, order, 5, 1);
        blocks.put(0, bytes);
        assert_eq!((blocks.missing(0), blocks.missing(2)), (None, None));
        blocks
    }

    #[test]
    fn counts_go_up_to_their_width_and_down_to_zero() {
        for order in 0..=6 {
            let mut blocks = blocks(order);
            let max = Geometry::new(9, order).refcount_max();
            blocks.raise(cluster(5), 1, max - 1).expect("fits");
            blocks.raise(cluster(5), 1, 1).expect_err("does not fit");
            assert_eq!(blocks.get(cluster(5)), max);
            blocks.hold_raised();
            let mut freed = Vec::new();
            blocks.lower(cluster(5), 1, max - 1, |cluster| freed.push(cluster)).expect("enough");
            assert_eq!(freed, [], "one is left");
            blocks.lower(cluster(5), 1, 1, |cluster| freed.push(cluster)).expect("enough");
            assert_eq!(freed, [cluster(5)]);
            assert_eq!(blocks.changed().count(), 1);
            let raised: Vec<_> = blocks.raised().collect();
            assert_eq!(read_count(raised[0].1, order, 5), max, "order {order}");
        }
    }

    #[test]
    fn neighbours_of_one_fate_go_together() {
        for order in 2..=6 {
            let geometry = Geometry::new(12, order);
            let mut bytes = vec![0; 4096];
            for at in (10..300).filter(|at| *at != 200) {
                set_count(&mut bytes, order, at, 1);
            }
            let mut blocks = Blocks::new(geometry, 2);
            blocks.put(0, bytes);
            for (first, count, expected) in [
                (0, 50, (10, false)),
                (10, 50, (50, true)),
                (10, 500, (190, true)),
                (200, 9, (1, false)),
                (201, 999, (99, true)),
                (300, 9, (9, false)),
            ] {
                assert_eq!(blocks.same_fate(cluster(first), count), expected, "order {order}");
            }
            let per_block = geometry.refcounts_per_block();
            assert_eq!(blocks.same_fate(cluster(per_block - 3), 7), (3, false));
            assert_eq!(blocks.same_fate(cluster(per_block + 3), 7), (7, false), "no block");
        }
    }

    #[test]
    fn what_is_referenced_counts_something() {
        let mut blocks = blocks(4);
        for (number, count) in [(4, 1), (5, 2), (4, 2), (256, 1), (100_000, 1)] {
            let first = cluster(number);
            blocks.raise(first, count, 1).expect_err("not counted");
            blocks.lower(first, count, 1, |_| ()).expect_err("not counted");
        }
        blocks.lower(cluster(5), 1, 3, |_| ()).expect_err("counted less");
    }
}
