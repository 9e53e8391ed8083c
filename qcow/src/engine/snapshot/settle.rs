//! Counts and COPIED flags after a snapshot has come, gone or become the disk: worked out in memory as a whole, before
//! anything is changed, and written in large pieces.
//!
//! Each L2 table and each refcount block that is concerned is read once, many at a time, and written once. Memory is
//! bounded by the refcount blocks, and by [`KEPT_BYTES_MAX`] of L2 tables; tables beyond that are read again.

use std::collections::BTreeSet;

use crate::addr::HostCluster;
use crate::disk::{Buffer, Disk};
use crate::engine::layer::Qcow2;
use crate::error::{Error, Result};
use crate::exec::try_join_all;
use crate::limits::{IN_FLIGHT_MAX, SETTLE_BYTES_MAX};
use crate::meta::Run;
use crate::meta::regions::Kind;
use crate::meta::settle::blocks::Blocks;
use crate::meta::settle::trees::Trees;
use crate::meta::settle::{for_each_named, set_flags};
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Most bytes of one read of neighbouring tables.
const READ_BYTES_MAX: u64 = 1 << 20;
/// Most bytes that are read at the same time.
const BATCH_BYTES: u64 = 8 << 20;
/// Most bytes of changed L2 tables that are kept until they are written.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// What becomes of the COPIED flags of the active L2 tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flags {
    /// They all go: every cluster that a table which gains references names is shared from now on. Tables that gain
    /// none are shared already.
    Clear,
    /// They follow the counts.
    ByCount,
}

/// Counts and flags as they are to be.
pub(super) struct Settlement<'a, D: Disk> {
    image: &'a Qcow2<D>,
    trees: Trees,
    flags: Flags,
    blocks: Blocks,
    loaded_bytes: u64,
    /// L2 tables with their new flags.
    kept: Vec<(HostCluster, Vec<u8>)>,
    kept_bytes: usize,
    /// L2 tables whose flags are to be set and that are not kept.
    left: Vec<HostCluster>,
    /// Clusters that lose their last reference.
    freed: Vec<Run>,
}

impl<'a, D: Disk> Settlement<'a, D> {
    /// Works out counts and flags after the change that `trees` describe. Whatever lies in `dropped` loses a reference, too.
    /// Reads the image as it is on disk; nothing of it may be changing. `in_two_steps` allows for [`Self::write_raised`].
    ///
    /// # Errors
    /// A count would not fit (`Invalid`), tables contradict each other or the counts (`Corrupt`), there are too many counts
    /// to hold (`Limit`), or the host failed. Nothing has been changed.
    pub async fn survey(
        image: &'a Qcow2<D>,
        trees: Trees,
        flags: Flags,
        dropped: &[Run],
        in_two_steps: bool,
    ) -> Result<Self> {
        let table_len = {
            let mut meta = lock(&image.meta);
            for table in trees.all() {
                meta.check_inside(image.geometry, Kind::L2, table)?;
                // Of snapshots with very large L1 tables the tables are not known yet.
                if meta.regions.l2_uses(table)? == 0 {
                    meta.regions.add(Kind::L2, table, 1)?;
                }
            }
            meta.refs.table().words().len()
        };
        let mut settlement = Self {
            image,
            trees,
            flags,
            blocks: Blocks::new(image.geometry, table_len),
            loaded_bytes: 0,
            kept: Vec::new(),
            kept_bytes: 0,
            left: Vec::new(),
            freed: Vec::new(),
        };
        settlement.raise().await?;
        if in_two_steps {
            settlement.blocks.hold_raised();
        }
        settlement.lower().await?;
        settlement.check_freed()?;
        settlement.drop_tables(dropped).await?;
        Ok(settlement)
    }

    async fn raise(&mut self) -> Result<()> {
        let raised: Vec<(HostCluster, u64)> = self.trees.raised().collect();
        let geometry = self.image.geometry;
        for batch in batches(geometry.cluster_size(), &raised) {
            for (table, by, mut bytes) in self.read_tables(&batch).await? {
                self.blocks.raise(table, by)?;
                for_each_named(geometry, &bytes, |first, count| {
                    (0..count).try_for_each(|i| self.blocks.raise(first.plus(i), by))
                })?;
                if self.flags == Flags::Clear && set_flags(geometry, &mut bytes, |_| false)? {
                    self.keep(table, bytes);
                }
            }
        }
        if self.flags == Flags::ByCount {
            self.left.extend(self.trees.active());
        }
        Ok(())
    }

    async fn lower(&mut self) -> Result<()> {
        let lowered: Vec<(HostCluster, u64)> = self.trees.lowered().collect();
        let geometry = self.image.geometry;
        for batch in batches(geometry.cluster_size(), &lowered) {
            for (table, by, bytes) in self.read_tables(&batch).await? {
                for_each_named(geometry, &bytes, |first, count| {
                    (0..count).try_for_each(|i| {
                        let last = self.blocks.lower(first.plus(i), by)?;
                        note_freed(&mut self.freed, first.plus(i), last);
                        Ok(())
                    })
                })?;
                let last = self.blocks.lower(table, by)?;
                note_freed(&mut self.freed, table, last);
            }
        }
        Ok(())
    }

    async fn drop_tables(&mut self, dropped: &[Run]) -> Result<()> {
        for cluster in dropped.iter().flat_map(Run::clusters) {
            self.load_blocks(self.blocks.missing(cluster).into_iter().collect()).await?;
            let last = self.blocks.lower(cluster, 1)?;
            note_freed(&mut self.freed, cluster, last);
        }
        Ok(())
    }

    /// Fails where a cluster would become free that is metadata and stays so.
    fn check_freed(&self) -> Result<()> {
        let meta = lock(&self.image.meta);
        for cluster in self.freed.iter().flat_map(Run::clusters) {
            if meta.regions.l2_uses(cluster)? > self.trees.loss(cluster) {
                let number = cluster.get();
                let what = format!("the L2 table in cluster {number} has too low a refcount");
                return Err(Error::corrupt(what));
            }
        }
        Ok(())
    }

    fn keep(&mut self, table: HostCluster, bytes: Vec<u8>) {
        if self.kept_bytes + bytes.len() > KEPT_BYTES_MAX {
            self.left.push(table);
            return;
        }
        self.kept_bytes += bytes.len();
        self.kept.push((table, bytes));
    }

    /// The tables of a batch with their bytes, and the blocks that count them and what they name in memory.
    async fn read_tables(
        &mut self,
        batch: &[(HostCluster, u64)],
    ) -> Result<Vec<(HostCluster, u64, Vec<u8>)>> {
        let clusters: Vec<HostCluster> = batch.iter().map(|&(table, _)| table).collect();
        let read = self.image.read_clusters(&clusters).await?;
        self.load_blocks_for(&clusters, &read).await?;
        Ok(batch.iter().zip(read).map(|(&(table, by), bytes)| (table, by, bytes)).collect())
    }

    async fn load_blocks_for(&mut self, tables: &[HostCluster], read: &[Vec<u8>]) -> Result<()> {
        let mut missing: BTreeSet<u64> = BTreeSet::new();
        let mut last = None;
        let mut note = |cluster| {
            let index = self.image.geometry.refcount_block_index(cluster);
            // Neighbours share a block, mostly.
            if last != Some(index) {
                missing.extend(self.blocks.missing(cluster));
                last = Some(index);
            }
        };
        for (&table, bytes) in tables.iter().zip(read) {
            note(table);
            for_each_named(self.image.geometry, bytes, |first, count| {
                (0..count).for_each(|i| note(first.plus(i)));
                Ok(())
            })?;
        }
        self.load_blocks(missing).await
    }

    async fn load_blocks(&mut self, missing: BTreeSet<u64>) -> Result<()> {
        let size = self.image.geometry.cluster_size();
        let blocks: Vec<(u64, HostCluster)> = {
            let meta = lock(&self.image.meta);
            let place = |index: u64| Some((index, meta.refs.block_at(index as usize)?));
            missing.into_iter().filter_map(place).collect()
        };
        self.loaded_bytes += blocks.len() as u64 * size;
        if self.loaded_bytes > SETTLE_BYTES_MAX {
            return Err(Error::limit(format!(
                "more than {SETTLE_BYTES_MAX} bytes of refcounts change at once"
            )));
        }
        for batch in batches(size, &blocks) {
            let places: Vec<HostCluster> = batch.iter().map(|&(_, block)| block).collect();
            let read = self.image.read_clusters(&places).await?;
            batch.iter().zip(read).for_each(|(&(index, _), bytes)| self.blocks.put(index, bytes));
        }
        Ok(())
    }

    /// Writes the counts as they are before any is lowered. Durable with the next barrier.
    pub async fn write_raised(&self) -> Result<()> {
        self.write_blocks(self.blocks.raised().collect()).await
    }

    /// Writes the counts as they are to be. Durable with the next barrier.
    pub async fn write_counts(&self) -> Result<()> {
        self.write_blocks(self.blocks.changed().collect()).await
    }

    async fn write_blocks(&self, blocks: Vec<(u64, &[u8])>) -> Result<()> {
        let writes = blocks.into_iter().map(|(index, bytes)| async move {
            let block = lock(&self.image.meta).refs.block_at(index as usize);
            let Some(block) = block else { return Ok(()) };
            let at = self.image.geometry.host_start(block);
            self.image.write_metadata(Kind::RefcountBlock, at, bytes).await
        });
        try_join_all(IN_FLIGHT_MAX, writes).await
    }

    /// Writes the L2 tables whose flags change. Durable with the next barrier.
    pub async fn write_flags(&mut self) -> Result<()> {
        if Bug::FlagsStayAfterSnapshot.is_seeded() {
            return Ok(());
        }
        self.write_kept().await?;
        let left: Vec<(HostCluster, u64)> =
            std::mem::take(&mut self.left).into_iter().map(|table| (table, 0)).collect();
        let geometry = self.image.geometry;
        for batch in batches(geometry.cluster_size(), &left) {
            let read = match self.flags {
                Flags::ByCount => self.read_tables(&batch).await?,
                Flags::Clear => {
                    let tables: Vec<HostCluster> = batch.iter().map(|&(table, _)| table).collect();
                    let read = self.image.read_clusters(&tables).await?;
                    tables.into_iter().zip(read).map(|(table, bytes)| (table, 0, bytes)).collect()
                }
            };
            for (table, _, mut bytes) in read {
                let is_single =
                    |cluster| self.flags == Flags::ByCount && self.blocks.get(cluster) == 1;
                if set_flags(geometry, &mut bytes, is_single)? {
                    self.kept.push((table, bytes));
                }
            }
            self.write_kept().await?;
        }
        Ok(())
    }

    async fn write_kept(&mut self) -> Result<()> {
        let kept = std::mem::take(&mut self.kept);
        self.kept_bytes = 0;
        let writes = kept.iter().map(|(table, bytes)| self.image.write_table(*table, bytes));
        try_join_all(IN_FLIGHT_MAX, writes).await
    }

    /// What becomes of the active tables' flags.
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// The count of `cluster`, which a table that is concerned names or is.
    pub fn count(&self, cluster: HostCluster) -> u64 {
        self.blocks.get(cluster)
    }

    /// The clusters that have lost their last reference.
    pub fn freed(self) -> Vec<Run> {
        self.freed
    }
}

impl<D: Disk> Qcow2<D> {
    /// The bytes of each of these clusters, as they are on disk. Neighbours are read together.
    async fn read_clusters(&self, clusters: &[HostCluster]) -> Result<Vec<Vec<u8>>> {
        let size = self.geometry.cluster_size();
        let per_read = (READ_BYTES_MAX / size).max(1);
        let mut rows: Vec<Run> = Vec::new();
        for &cluster in clusters {
            match rows.last_mut() {
                Some(row) if row.count < per_read && row.first.plus(row.count) == cluster => {
                    row.count += 1;
                }
                _ => rows.push(Run { first: cluster, count: 1, fresh: false }),
            }
        }
        let buffers: Vec<Buffer> = rows
            .iter()
            .map(|row| Buffer::zeroed(self.geometry.bytes(row.count) as usize))
            .collect();
        let reads = rows.iter().zip(&buffers).map(|(row, buffer)| async move {
            let at = self.geometry.host_start(row.first);
            let read = self.disk.read(at, &buffer.payload()).await;
            read.map_err(|e| self.named(Error::io(format!("read metadata at {at}"), &e)))
        });
        try_join_all(IN_FLIGHT_MAX, reads).await?;
        let mut bytes = Vec::with_capacity(clusters.len());
        for (buffer, row) in buffers.iter().zip(&rows) {
            let payload = buffer.payload();
            bytes.extend((0..row.count).map(|i| payload.slice(i * size, size).to_vec()));
        }
        Ok(bytes)
    }

    /// Writes an L2 table that several L1 tables may share: all see the same mappings before and after.
    async fn write_table(&self, table: HostCluster, bytes: &[u8]) -> Result<()> {
        {
            let meta = lock(&self.meta);
            meta.check_writable()?;
            if meta.regions.l2_uses(table).map_err(|e| self.named(e))? == 0 {
                let what = format!("cluster {}, written as L2 table, is not one", table.get());
                return Err(self.named(Error::corrupt(what)));
            }
        }
        self.write_bytes(self.geometry.host_start(table), bytes).await
    }
}

/// Cuts a list of clusters of `size` bytes into parts that are read at once.
fn batches<T: Copy>(size: u64, all: &[T]) -> impl Iterator<Item = Vec<T>> + use<T> {
    let count = ((BATCH_BYTES / size) as usize).max(1);
    let batches: Vec<Vec<T>> = all.chunks(count).map(<[T]>::to_vec).collect();
    batches.into_iter()
}

fn note_freed(freed: &mut Vec<Run>, cluster: HostCluster, last: bool) {
    if !last {
        return;
    }
    match freed.last_mut() {
        Some(run) if run.first.plus(run.count) == cluster => run.count += 1,
        _ => freed.push(Run { first: cluster, count: 1, fresh: false }),
    }
}
