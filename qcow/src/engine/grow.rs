//! Making room for more refcounts: new refcount blocks, and a larger refcount table.
//!
//! A new block lies in the first free cluster of the stretch that it counts, and so counts itself. The table entry that
//! names it goes to disk only after the block (see `meta::order`).
//!
//! A row of clusters that is longer than such a stretch gets its blocks in front of it, all together.
//!
//! A larger table is written beside its new blocks at the first clusters that nothing counts yet: those blocks count
//! themselves and the table. Everything is durable before the header is pointed at it in one sector, and that before
//! anything rests on it or the old table is freed.

use super::layer::Qcow2;
use crate::addr::{Geometry, HostCluster};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::header::Header;
use crate::limits::REFCOUNT_TABLE_BYTES_MAX;
use crate::meta::refs::set_count;
use crate::meta::table::WordTable;
use crate::meta::{Meta, Run};
use crate::seeded_bugs::Bug;
use crate::sync::lock;

impl<D: Disk> Qcow2<D> {
    /// Makes the refcount block at `index` of the table, unless somebody has by now.
    pub(super) async fn grow_refcounts(&self, index: u64) -> Result<()> {
        let _structure = self.structure.acquire().await;
        let (exists, table_len) = {
            let meta = lock(&self.meta);
            (meta.refs.has_block(index), meta.refs.table().words().len() as u64)
        };
        if exists {
            return Ok(());
        }
        if index < table_len { self.add_block(index).await } else { self.grow_table(index).await }
    }

    async fn add_block(&self, index: u64) -> Result<()> {
        let lowest = self.geometry.refcount_block_first(index);
        let run = self.take_uncounted(lowest, 1)?;
        let made = match self.make_room(run).await {
            Ok(()) => self.zero_new(run.first).await,
            failed => failed,
        };
        if let Err(e) = made {
            lock(&self.meta).alloc.freed(run.first);
            return Err(e);
        }
        lock(&self.meta).add_block(index, run.first)
    }

    /// Takes clusters that no block counts yet. Where an image lacks a block for clusters that are in use, none is taken.
    fn take_uncounted(&self, lowest: HostCluster, count: u64) -> Result<Run> {
        let mut meta = lock(&self.meta);
        let first = meta.alloc.first_uncounted(lowest);
        let uncounted = meta.check_uncounted(first, count);
        uncounted.map_err(|e| self.named(e.context("a refcount block is missing")))?;
        Ok(meta.alloc.take_uncounted(lowest, count))
    }

    /// Claims `count` clusters in a row where no block counts anything yet, behind the blocks that count them from now on.
    pub(super) async fn claim_beside_blocks(&self, count: u64) -> Result<Run> {
        let geometry = self.geometry;
        let _structure = self.structure.acquire().await;
        let (blocks, row) = loop {
            let (index, blocks, table_len) = {
                let meta = lock(&self.meta);
                let index = meta.refs.blocks_end();
                let first = meta.alloc.first_uncounted(geometry.refcount_block_first(index));
                let blocks = blocks_before(geometry, first, count);
                (index, blocks, meta.refs.table().words().len() as u64)
            };
            let last = blocks.first.plus(blocks.count + count - 1);
            if geometry.refcount_block_index(last) >= table_len {
                self.grow_table(index).await?;
                continue;
            }
            let all = self.take_uncounted(blocks.first, blocks.count + count)?;
            break (blocks, Run { first: blocks.first.plus(blocks.count), count, ..all });
        };
        let made = async {
            self.make_room(Run { count: blocks.count + count, ..blocks }).await?;
            for block in blocks.clusters() {
                self.zero_new(block).await?;
            }
            lock(&self.meta).add_blocks(geometry, blocks, row)
        };
        if let Err(e) = made.await {
            lock(&self.meta).alloc.freed(blocks.first);
            return Err(e);
        }
        Ok(row)
    }

    async fn grow_table(&self, index: u64) -> Result<()> {
        // Entries that wait for a flush must not be lost with the old table; nobody adds any while `structure` is held.
        self.flush_metadata().await?;
        let growth = Growth::plan(self.geometry, &lock(&self.meta), index)?;
        let count = growth.block_count + growth.table_clusters;
        let run = self.take_uncounted(growth.first, count)?;
        assert_eq!(run.first, growth.first, "only who holds `structure` takes uncounted clusters");
        let result = match self.make_room(run).await {
            Ok(()) => self.install_table(&growth).await,
            Err(e) => Err(e),
        };
        let mut meta = lock(&self.meta);
        match result {
            Ok(table) => {
                let offset = self.geometry.host_start(growth.table_first());
                let table = WordTable::new(offset, table);
                let blocks = Run { first: growth.first, count: growth.block_count, fresh: false };
                meta.switch_refcount_table(self.geometry, table, blocks)
            }
            Err(e) => {
                // Unless the header may name them.
                if meta.check_writable().is_ok() {
                    meta.alloc.freed(run.first);
                }
                Err(e)
            }
        }
    }

    /// Writes new blocks and table, then points the header to them; the new table's entries.
    async fn install_table(&self, growth: &Growth) -> Result<Vec<u64>> {
        let geometry = self.geometry;
        for (i, block) in growth.blocks(geometry).into_iter().enumerate() {
            self.write_new(growth.first.plus(i as u64), &block).await?;
        }
        let table = growth.table(geometry, lock(&self.meta).refs.table().words().to_vec());
        let bytes: Vec<u8> = table.iter().flat_map(|e| e.to_be_bytes()).collect();
        self.write_new(growth.table_first(), &bytes).await?;
        if !Bug::NoBarrierBeforeLargerTable.is_seeded() {
            self.barrier().await?;
        }
        let offset = geometry.host_start(growth.table_first());
        let header = Header {
            refcount_table_offset: offset,
            refcount_table_clusters: growth.table_clusters as u32,
            ..lock(&self.header).clone()
        };
        self.commit_header(header).await?;
        Ok(table)
    }
}

/// The blocks from `first` on that count themselves and `count` clusters behind them, none of which is counted yet.
fn blocks_before(geometry: Geometry, first: HostCluster, count: u64) -> Run {
    let mut blocks = 1;
    loop {
        let last = first.plus(blocks + count - 1);
        let needed = geometry.refcount_block_index(last) - geometry.refcount_block_index(first) + 1;
        if needed == blocks {
            return Run { first, count: blocks, fresh: false };
        }
        blocks = needed;
    }
}

/// A larger refcount table and the blocks that count it.
#[derive(Debug)]
struct Growth {
    /// The first new cluster: blocks first, then the table.
    first: HostCluster,
    /// Table index of the first new block.
    block_index: u64,
    block_count: u64,
    table_clusters: u64,
}

impl Growth {
    fn plan(geometry: Geometry, meta: &Meta, index: u64) -> Result<Self> {
        let first = meta.alloc.first_uncounted(geometry.refcount_block_first(index));
        let block_index = geometry.refcount_block_index(first);
        let old_clusters = meta.refs.table().span(geometry).1;
        let mut table_clusters = old_clusters + old_clusters / 2 + 1;
        let mut block_count = 1;
        loop {
            let last = first.plus(block_count + table_clusters - 1);
            let blocks = geometry.refcount_block_index(last) - block_index + 1;
            let entries = block_index + blocks;
            let clusters = table_clusters.max(geometry.clusters_for(entries * 8));
            if (blocks, clusters) == (block_count, table_clusters) {
                break;
            }
            (block_count, table_clusters) = (blocks.max(block_count), clusters);
        }
        if geometry.bytes(table_clusters) > REFCOUNT_TABLE_BYTES_MAX {
            let max = REFCOUNT_TABLE_BYTES_MAX;
            return Err(Error::limit(format!(
                "the image file is full: its refcount table would exceed {max} bytes"
            )));
        }
        Ok(Self { first, block_index, block_count, table_clusters })
    }

    fn table_first(&self) -> HostCluster {
        self.first.plus(self.block_count)
    }

    /// The blocks' bytes: they count themselves and the table.
    fn blocks(&self, geometry: Geometry) -> Vec<Vec<u8>> {
        let mut blocks = vec![vec![0; geometry.cluster_size() as usize]; self.block_count as usize];
        let count = self.block_count + self.table_clusters;
        for cluster in (Run { first: self.first, count, fresh: false }).clusters() {
            let block = geometry.refcount_block_index(cluster) - self.block_index;
            let index = geometry.index_in_refcount_block(cluster) as usize;
            set_count(&mut blocks[block as usize], geometry.refcount_order(), index, 1);
        }
        blocks
    }

    /// The new table's entries: the old ones and the new blocks.
    fn table(&self, geometry: Geometry, mut table: Vec<u64>) -> Vec<u64> {
        table.resize((geometry.bytes(self.table_clusters) / 8) as usize, 0);
        for i in 0..self.block_count {
            let entry = &mut table[(self.block_index + i) as usize];
            assert_eq!(*entry, 0, "a new block takes a free place of the table");
            *entry = geometry.host_start(self.first.plus(i)).get();
        }
        table
    }
}
