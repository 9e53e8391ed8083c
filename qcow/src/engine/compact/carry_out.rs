//! Carrying out a plan, in an order that a crash cannot break.

use std::collections::BTreeSet;

use super::copy::copy;
use super::layout::{Kind, Layout, Metadata};
use super::moves::{Move, Moves};
use super::plan::Plan;
use super::tables::{point_to_data, point_to_snapshot_l1, point_to_tables};
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::check::parts::{sync, write_header};
use crate::error::Result;
use crate::format::header::Header;
use crate::seeded_bugs::Bug;

impl<D: Disk> Layout<'_, D> {
    /// Moves what `plan` says. Tells `done` how many bytes have been copied.
    pub(super) async fn carry_out(&mut self, plan: &Plan, done: &mut dyn FnMut(u64)) -> Result<()> {
        self.add_blocks(&plan.new_blocks).await?;
        let places = self.blocks_of(plan.all().map(|run| (run.to, run.len)));
        // They get durable with the copies, before any pointer changes.
        self.write_blocks(&places).await?;
        self.move_clusters(&plan.data, done).await?;
        self.move_l2_tables(&plan.l2_tables, done).await?;
        self.move_table(&plan.active_l1, |h| &mut h.l1_table_offset, done).await?;
        self.move_snapshot_l1(&plan.snapshot_l1, done).await?;
        self.move_table(&plan.snapshot_table, |h| &mut h.snapshots_offset, done).await?;
        self.move_refcount_blocks(&plan.refcount_blocks, done).await?;
        self.move_table(&plan.refcount_table, |h| &mut h.refcount_table_offset, done).await?;
        if !Bug::MovedFreedTooEarly.is_seeded() {
            sync(&self.target).await?;
        }
        let old = |run: Move| run.from..run.from + run.len;
        plan.all().flat_map(old).for_each(|cluster| self.counts.clear(HostCluster::new(cluster)));
        let sources = self.blocks_of(plan.all().map(|run| (run.from, run.len)));
        self.write_blocks(&sources).await?;
        sync(&self.target).await
    }

    /// Hooks new refcount blocks in, each of which counts itself and nothing else yet.
    async fn add_blocks(&mut self, new: &[(u64, u64)]) -> Result<()> {
        if new.is_empty() {
            return Ok(());
        }
        new.iter().for_each(|&(index, cluster)| self.add_block(index, cluster));
        let indices: BTreeSet<u64> = new.iter().map(|&(index, _)| index).collect();
        self.write_blocks(&indices).await?;
        sync(&self.target).await?;
        self.write_table_entries(&indices).await?;
        sync(&self.target).await
    }

    /// Copies `moves`, durably.
    async fn copy(&self, moves: &Moves, done: &mut dyn FnMut(u64)) -> Result<()> {
        copy(&self.target, moves, done).await?;
        match Bug::MovedBeforeCopied.is_seeded() {
            true => Ok(()),
            false => sync(&self.target).await,
        }
    }

    async fn move_clusters(&mut self, moves: &Moves, done: &mut dyn FnMut(u64)) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        self.copy(moves, done).await?;
        point_to_data(&self.target, &self.l2_tables(), moves).await?;
        moves.iter().for_each(|run| self.move_data(run));
        Ok(())
    }

    async fn move_l2_tables(&mut self, moves: &Moves, done: &mut dyn FnMut(u64)) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        self.copy(moves, done).await?;
        for range in self.l1_tables() {
            point_to_tables(&self.target, range, moves).await?;
        }
        self.move_metadata(moves);
        Ok(())
    }

    async fn move_snapshot_l1(&mut self, moves: &Moves, done: &mut dyn FnMut(u64)) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        self.copy(moves, done).await?;
        point_to_snapshot_l1(&self.target, self.snapshot_table_len, moves).await?;
        self.move_metadata(moves);
        Ok(())
    }

    /// Moves the table that `field` of the header names.
    async fn move_table(
        &mut self,
        moves: &Moves,
        field: fn(&mut Header) -> &mut HostOffset,
        done: &mut dyn FnMut(u64),
    ) -> Result<()> {
        for run in moves.iter() {
            self.copy(moves, done).await?;
            self.move_metadata(moves);
            *field(&mut self.target.header) = HostOffset::new(self.start_of(run.to));
            write_header(&self.target, &self.target.header).await?;
        }
        Ok(())
    }

    async fn move_refcount_blocks(
        &mut self,
        moves: &Moves,
        done: &mut dyn FnMut(u64),
    ) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        self.copy(moves, done).await?;
        let mut indices = BTreeSet::new();
        for run in moves.iter() {
            for (from, to) in (run.from..run.from + run.len).zip(run.to..) {
                let Kind::Metadata(Metadata::RefcountBlock(index)) = self.unit_at(from).kind else {
                    unreachable!("only refcount blocks move as such")
                };
                self.blocks[index as usize] = Some(to);
                indices.insert(index);
            }
        }
        self.move_metadata(moves);
        self.write_table_entries(&indices).await
    }
}
