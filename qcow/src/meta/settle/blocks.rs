//! Refcount blocks in memory, for counts that change by the million: each block is read once and written once.

use crate::addr::{Geometry, HostCluster};
use crate::error::{Error, Result};
use crate::meta::refs::{read_count, set_count};

/// log2 of the width of the counts of almost every image.
const USUAL_ORDER: u32 = 4;

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

    /// The index of the block that counts `cluster` and is not in memory.
    pub fn missing(&self, cluster: HostCluster) -> Option<u64> {
        let index = self.geometry.refcount_block_index(cluster);
        let known = usize::try_from(index).ok().and_then(|index| self.blocks.get(index));
        known.is_some_and(Option::is_none).then_some(index)
    }

    /// Takes in the block at `index`, one of the table's.
    pub fn put(&mut self, index: u64, bytes: Vec<u8>) {
        let bytes = bytes.into_boxed_slice();
        self.blocks[index as usize] = Some(Block { bytes, raised: None, changed: false });
    }

    /// The count of `cluster`, whose block is in memory if there is one.
    pub fn get(&self, cluster: HostCluster) -> u64 {
        let index = self.geometry.refcount_block_index(cluster) as usize;
        let at = self.geometry.index_in_refcount_block(cluster) as usize;
        let order = self.geometry.refcount_order();
        let block = self.blocks.get(index).and_then(Option::as_ref);
        block.map_or(0, |block| read(&block.bytes, order, at))
    }

    /// Raises the count of `cluster`, which is referenced already.
    ///
    /// # Errors
    /// It counts zero (`Corrupt`), or the sum does not fit the image's counts (`Invalid`).
    pub fn raise(&mut self, cluster: HostCluster, by: u64) -> Result<()> {
        let max = self.geometry.refcount_max();
        self.change(cluster, |count| {
            let sum = count.checked_add(by).filter(|&sum| sum <= max);
            sum.ok_or_else(|| {
                let number = cluster.get();
                let what = format!("the refcount of cluster {number} would exceed {max}");
                Error::invalid(format!("{what}: the image needs wider refcounts"))
            })
        })
        .map(drop)
    }

    /// Lowers the count of `cluster`, which is referenced; whether that was its last reference.
    ///
    /// # Errors
    /// It counts too little for that.
    pub fn lower(&mut self, cluster: HostCluster, by: u64) -> Result<bool> {
        let lowered = self.change(cluster, |count| {
            let number = cluster.get();
            let what = || format!("cluster {number} has a refcount of {count} and loses {by}");
            count.checked_sub(by).ok_or_else(|| Error::corrupt(what()))
        });
        lowered.map(|count| count == 0)
    }

    fn change(
        &mut self,
        cluster: HostCluster,
        change: impl FnOnce(u64) -> Result<u64>,
    ) -> Result<u64> {
        let index = self.geometry.refcount_block_index(cluster) as usize;
        let at = self.geometry.index_in_refcount_block(cluster) as usize;
        let order = self.geometry.refcount_order();
        let block = self.blocks.get_mut(index).and_then(Option::as_mut);
        let count = block.as_ref().map_or(0, |block| read(&block.bytes, order, at));
        let Some(block) = block.filter(|_| count > 0) else {
            let number = cluster.get();
            let what = format!("cluster {number} is referenced but its refcount is zero");
            return Err(Error::corrupt(what));
        };
        let count = change(count)?;
        write(&mut block.bytes, order, at, count);
        block.changed = true;
        Ok(count)
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

fn read(block: &[u8], order: u32, at: usize) -> u64 {
    if order == USUAL_ORDER {
        return u16::from_be_bytes([block[2 * at], block[2 * at + 1]]).into();
    }
    read_count(block, order, at)
}

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
        assert_eq!(blocks.missing(cluster(5)), Some(0));
        let mut bytes = vec![0; 512];
        set_count(&mut bytes, order, 5, 1);
        blocks.put(0, bytes);
        assert_eq!(blocks.missing(cluster(5)), None);
        blocks
    }

    #[test]
    fn counts_go_up_to_their_width_and_down_to_zero() {
        for order in 0..=6 {
            let mut blocks = blocks(order);
            let max = Geometry::new(9, order).refcount_max();
            blocks.raise(cluster(5), max - 1).expect("fits");
            blocks.raise(cluster(5), 1).expect_err("does not fit");
            assert_eq!(blocks.get(cluster(5)), max);
            blocks.hold_raised();
            assert!(!blocks.lower(cluster(5), max - 1).expect("one is left") || max == 1);
            if max > 1 {
                assert!(blocks.lower(cluster(5), 1).expect("the last one"));
            }
            assert_eq!(blocks.changed().count(), 1);
            let raised: Vec<_> = blocks.raised().collect();
            assert_eq!(read_count(raised[0].1, order, 5), max, "order {order}");
        }
    }

    #[test]
    fn what_is_referenced_counts_something() {
        let mut blocks = blocks(4);
        for number in [4, 256, 100_000] {
            blocks.raise(cluster(number), 1).expect_err("not counted");
            blocks.lower(cluster(number), 1).expect_err("not counted");
        }
        blocks.lower(cluster(5), 2).expect_err("counted once");
        assert_eq!((blocks.raised().count(), blocks.changed().count()), (0, 0));
    }
}
