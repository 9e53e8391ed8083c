//! Counts and COPIED flags after a snapshot has come, gone or become the disk: worked out in memory as a whole, before
//! anything is changed, and written in large pieces.
//!
//! Each L2 table and each refcount block that is concerned is read and written many at a time. Memory is bounded by the
//! refcount blocks, which are held until they are written.

use std::collections::BTreeSet;
use std::pin::Pin;

use super::batch::Batch;
use crate::addr::{ClusterCount, HostCluster};
use crate::disk::Disk;
use crate::engine::layer::Qcow2;
use crate::error::{Error, Result};
use crate::exec::join_all;
use crate::limits::SETTLE_BYTES_MAX;
use crate::meta::Run;
use crate::meta::regions::Kind;
use crate::meta::settle::blocks::Blocks;
use crate::meta::settle::rows::Rows;
use crate::meta::settle::set_flags;
use crate::meta::settle::trees::Trees;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Bytes of L2 tables after which the host begins to write them out.
const GROUP_BYTES: u64 = 8 << 20;

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
    /// L2 tables whose flags may have to change.
    unflagged: Vec<HostCluster>,
    tables: Batch,
    /// What the tables of the batch name.
    named: Rows,
    counts: Batch,
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
                if meta.regions().l2_uses(table)? == 0 {
                    meta.regions_mut().add(Kind::L2, table, 1)?;
                }
            }
            meta.refs.table().words().len()
        };
        let cluster_size = image.geometry.cluster_size();
        let mut settlement = Self {
            image,
            unflagged: match flags {
                Flags::Clear => trees.raised().map(|(table, _)| table).collect(),
                Flags::ByCount => trees.active().collect(),
            },
            trees,
            flags,
            blocks: Blocks::new(image.geometry, table_len),
            loaded_bytes: 0,
            tables: Batch::new(cluster_size),
            named: Rows::default(),
            counts: Batch::new(cluster_size),
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
        for part in raised.chunks(self.tables.count_max()) {
            self.read_tables(part.iter().map(|&(table, _)| table)).await?;
            for (&(table, by), rows) in part.iter().zip(self.named.tables()) {
                self.blocks.raise(table, 1, by)?;
                for &(first, count) in rows {
                    self.blocks.raise(first, count, by)?;
                }
            }
        }
        Ok(())
    }

    async fn lower(&mut self) -> Result<()> {
        let lowered: Vec<(HostCluster, u64)> = self.trees.lowered().collect();
        for part in lowered.chunks(self.tables.count_max()) {
            self.read_tables(part.iter().map(|&(table, _)| table)).await?;
            let mut freed = |cluster| note_freed(&mut self.freed, cluster);
            for (&(table, by), rows) in part.iter().zip(self.named.tables()) {
                for &(first, count) in rows {
                    self.blocks.lower(first, count, by, &mut freed)?;
                }
                self.blocks.lower(table, 1, by, &mut freed)?;
            }
        }
        Ok(())
    }

    async fn drop_tables(&mut self, dropped: &[Run]) -> Result<()> {
        for cluster in dropped.iter().flat_map(Run::clusters) {
            let index = self.image.geometry.refcount_block_index(cluster);
            self.load_blocks(self.blocks.missing(index).into_iter().collect()).await?;
            self.blocks.lower(cluster, 1, 1, |cluster| note_freed(&mut self.freed, cluster))?;
        }
        Ok(())
    }

    /// Fails where a cluster would become free that is metadata and stays so.
    fn check_freed(&self) -> Result<()> {
        let meta = lock(&self.image.meta);
        for cluster in self.freed.iter().flat_map(Run::clusters) {
            if meta.regions().l2_uses(cluster)? > self.trees.loss(cluster) {
                let number = cluster.get();
                let what = format!("the L2 table in cluster {number} has too low a refcount");
                return Err(Error::corrupt(what));
            }
        }
        Ok(())
    }

    /// Reads tables into the batch, finds what they name, and reads the blocks that count them and that into memory.
    async fn read_tables(
        &mut self,
        tables: impl Iterator<Item = HostCluster> + Clone,
    ) -> Result<()> {
        self.tables.read(self.image, tables.clone()).await?;
        let geometry = self.image.geometry;
        let mut missing: BTreeSet<u64> = BTreeSet::new();
        let mut last = None;
        let mut note = |first: HostCluster, count: ClusterCount| {
            let end = first.plus(count - 1);
            for index in geometry.refcount_block_index(first)..=geometry.refcount_block_index(end) {
                // Neighbours share a block, mostly.
                if last != Some(index) {
                    missing.extend(self.blocks.missing(index));
                    last = Some(index);
                }
            }
        };
        self.named.clear();
        for (index, table) in tables.enumerate() {
            note(table, 1);
            let rows = self.named.add(geometry, self.tables.cluster(index))?;
            rows.iter().for_each(|&(first, count)| note(first, count));
        }
        self.load_blocks(missing).await
    }

    async fn load_blocks(&mut self, missing: BTreeSet<u64>) -> Result<()> {
        let blocks: Vec<(u64, HostCluster)> = {
            let meta = lock(&self.image.meta);
            let place = |index: u64| Some((index, meta.refs.block_at(index as usize)?));
            missing.into_iter().filter_map(place).collect()
        };
        self.loaded_bytes += self.image.geometry.bytes(blocks.len() as u64);
        if self.loaded_bytes > SETTLE_BYTES_MAX {
            return Err(Error::limit(format!(
                "more than {SETTLE_BYTES_MAX} bytes of refcounts change at once"
            )));
        }
        for part in blocks.chunks(self.counts.count_max()) {
            self.counts.read(self.image, part.iter().map(|&(_, block)| block)).await?;
            for (at, &(index, _)) in part.iter().enumerate() {
                self.blocks.put(index, self.counts.cluster(at).to_vec());
            }
        }
        Ok(())
    }

    /// Writes the counts as they are before any is lowered. Durable with the next barrier.
    pub async fn write_raised(&mut self) -> Result<()> {
        let raised = self.blocks.raised().collect();
        write_blocks(self.image, &mut self.counts, raised).await
    }

    /// Writes the counts as they are to be. Durable with the next barrier.
    pub async fn write_counts(&mut self) -> Result<()> {
        let changed = self.blocks.changed().collect();
        write_blocks(self.image, &mut self.counts, changed).await
    }

    /// Writes the L2 tables whose flags change. Durable with the next barrier.
    pub async fn write_flags(&mut self) -> Result<()> {
        if Bug::FlagsStayAfterSnapshot.is_seeded() {
            return Ok(());
        }
        let tables = std::mem::take(&mut self.unflagged);
        let per_group = (GROUP_BYTES / self.image.geometry.cluster_size()).max(1) as usize;
        let mut groups = tables.chunks(per_group);
        if let Some(first) = groups.next() {
            self.flag_tables(first).await?;
        }
        for group in groups {
            // The host writes out one group while the next one is being made.
            let image = self.image;
            let both: [Pin<Box<dyn Future<Output = Result<()>> + '_>>; 2] =
                [Box::pin(image.barrier()), Box::pin(self.flag_tables(group))];
            join_all(both).await.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    async fn flag_tables(&mut self, tables: &[HostCluster]) -> Result<()> {
        for part in tables.chunks(self.tables.count_max()) {
            let by_count = self.flags == Flags::ByCount;
            let is_counted = |&table| !by_count || self.trees.changes(table);
            if part.iter().all(is_counted) {
                self.tables.read(self.image, part.iter().copied()).await?;
            } else {
                self.read_tables(part.iter().copied()).await?;
            }
            let mut changed = Vec::new();
            for (index, &table) in part.iter().enumerate() {
                let fate = |first: HostCluster, count: ClusterCount| match self.flags {
                    Flags::Clear => (count, false),
                    Flags::ByCount => self.blocks.same_fate(first, count),
                };
                if set_flags(self.image.geometry, self.tables.cluster(index), fate)? {
                    check_table(self.image, table)?;
                    changed.push((index, table));
                }
            }
            self.tables.write(self.image, &changed).await?;
        }
        Ok(())
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

/// Fails unless an L2 table lies in `table`. Several L1 tables may share it: all see the same mappings before and after.
fn check_table<D: Disk>(image: &Qcow2<D>, table: HostCluster) -> Result<()> {
    let meta = lock(&image.meta);
    meta.check_writable()?;
    if meta.regions().l2_uses(table)? == 0 {
        let number = table.get();
        return Err(Error::corrupt(format!("cluster {number}, written as L2 table, is not one")));
    }
    Ok(())
}

/// Writes refcount blocks, each with its index in the table.
async fn write_blocks<D: Disk>(
    image: &Qcow2<D>,
    batch: &mut Batch,
    blocks: Vec<(u64, &[u8])>,
) -> Result<()> {
    for part in blocks.chunks(batch.count_max()) {
        let mut places = Vec::with_capacity(part.len());
        for (at, (index, bytes)) in part.iter().enumerate() {
            let meta = lock(&image.meta);
            let Some(block) = meta.refs.block_at(*index as usize) else { continue };
            meta.check_writable()?;
            meta.regions().check_own(Kind::RefcountBlock, block, 1)?;
            batch.cluster(at).copy_from_slice(bytes);
            places.push((at, block));
        }
        batch.write(image, &places).await?;
    }
    Ok(())
}

fn note_freed(freed: &mut Vec<Run>, cluster: HostCluster) {
    match freed.last_mut() {
        Some(run) if run.first.plus(run.count) == cluster => run.count += 1,
        _ => freed.push(Run { first: cluster, count: 1, fresh: false }),
    }
}
