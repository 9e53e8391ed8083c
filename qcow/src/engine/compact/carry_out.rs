//! Carrying out a plan, in an order that a crash cannot break.

use std::collections::BTreeSet;

use super::copy::{Bytes, copy};
use super::layout::{Layout, Metadata};
use super::moves::{Move, Moves, Stage};
use super::plan::Plan;
use super::tables::{BITMAPS, SNAPSHOTS, point_to_data, point_to_listed, point_to_tables};
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::check::parts::{sync, write, write_header};
use crate::engine::load::read_header_cluster;
use crate::error::{Error, Result};
use crate::format::header::Header;
use crate::seeded_bugs::Bug;

impl<D: Disk> Layout<'_, D> {
    /// Moves what `plan` says. Tells `done` how many bytes have been copied.
    pub(super) async fn carry_out(&mut self, plan: &Plan, done: &mut dyn FnMut(u64)) -> Result<()> {
        self.add_blocks(&plan.new_blocks).await?;
        let places = self.blocks_of(plan.all().map(|run| (run.to, run.len)));
        // They get durable with the copies, before any pointer changes.
        self.write_blocks(&places).await?;
        for (stage, moves) in plan.stages() {
            let bytes = match (stage, &self.cipher) {
                (Stage::EncryptedData, Some(cipher)) => Bytes::Encrypted(cipher),
                (Stage::EncryptedData, None) => unreachable!("there is a cipher, or nothing moves"),
                // What was written before the last sync has settled.
                (Stage::Data, _) => Bytes::Settled,
                _ => Bytes::Metadata,
            };
            copy(&self.target, moves, bytes, done).await?;
            if !Bug::MovedBeforeCopied.is_seeded() {
                sync(&self.target).await?;
            }
            self.point_to_moved(stage, moves).await?;
        }
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

    /// Lets whatever names what has moved name it in its new place.
    async fn point_to_moved(&mut self, stage: Stage, moves: &Moves) -> Result<()> {
        match stage {
            Stage::Data | Stage::EncryptedData => {
                point_to_data(&self.target, &self.l2_tables(), moves).await?;
                moves.iter().for_each(|run| self.move_data(run));
                return Ok(());
            }
            Stage::L2Tables => {
                self.point_tables(&[Metadata::ActiveL1, Metadata::SnapshotL1], "L1 table", moves)
                    .await?;
            }
            Stage::BitmapData => {
                self.point_tables(&[Metadata::BitmapTable], "bitmap table", moves).await?;
            }
            Stage::SnapshotL1 => self.point_snapshots(moves).await?,
            Stage::BitmapTables => self.point_bitmaps(moves).await?,
            Stage::RefcountBlocks => self.point_refcount_table(moves).await?,
            Stage::BitmapDirectory => self.point_bitmaps_extension(moves).await?,
            Stage::ActiveL1 => self.point_header(|h| &mut h.l1_table_offset, moves).await?,
            Stage::SnapshotTable => self.point_header(|h| &mut h.snapshots_offset, moves).await?,
            Stage::RefcountTable => {
                self.point_header(|h| &mut h.refcount_table_offset, moves).await?;
            }
        }
        self.move_metadata(moves);
        Ok(())
    }

    async fn point_tables(&self, of: &[Metadata], what: &str, moves: &Moves) -> Result<()> {
        for range in self.bytes_of(of) {
            point_to_tables(&self.target, range, what, moves).await?;
        }
        Ok(())
    }

    async fn point_snapshots(&self, moves: &Moves) -> Result<()> {
        let count = self.target.header.snapshot_count;
        for range in self.bytes_of(&[Metadata::SnapshotTable]) {
            point_to_listed(&self.target, &SNAPSHOTS, range, count, moves).await?;
        }
        Ok(())
    }

    async fn point_bitmaps(&self, moves: &Moves) -> Result<()> {
        let count = self.target.header.extensions.bitmaps.map_or(0, |bitmaps| bitmaps.count);
        for range in self.bytes_of(&[Metadata::BitmapDirectory]) {
            point_to_listed(&self.target, &BITMAPS, range, count, moves).await?;
        }
        Ok(())
    }

    async fn point_refcount_table(&mut self, moves: &Moves) -> Result<()> {
        let mut indices = BTreeSet::new();
        for (index, block) in (0..).zip(&mut self.blocks) {
            if let Some(cluster) = block
                && let Some(place) = moves.place_of(*cluster)
            {
                *cluster = place;
                indices.insert(index);
            }
        }
        self.write_table_entries(&indices).await
    }

    async fn point_bitmaps_extension(&mut self, moves: &Moves) -> Result<()> {
        let Some(mut bitmaps) = self.target.header.extensions.bitmaps else { return Ok(()) };
        bitmaps.directory_offset = self.moved(bitmaps.directory_offset, moves);
        let (cluster0, _) = read_header_cluster(self.target.disk).await?;
        let Some((at, sector)) = Header::plan_bitmaps(&cluster0, &bitmaps)? else {
            return Err(Error::corrupt("the header has lost its bitmaps extension"));
        };
        write(&self.target, at, &sector, "header").await?;
        self.target.header.extensions.bitmaps = Some(bitmaps);
        Ok(())
    }

    async fn point_header(
        &mut self,
        field: fn(&mut Header) -> &mut HostOffset,
        moves: &Moves,
    ) -> Result<()> {
        let old = *field(&mut self.target.header);
        *field(&mut self.target.header) = self.moved(old, moves);
        write_header(&self.target, &self.target.header).await
    }

    /// Where what was at the start of a cluster is now.
    fn moved(&self, at: HostOffset, moves: &Moves) -> HostOffset {
        let place = moves.place_of(self.target.geometry.host_cluster(at).get());
        place.map_or(at, |place| HostOffset::new(self.start_of(place)))
    }
}
