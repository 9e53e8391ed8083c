//! The metadata of one open image as a state machine: tables, caches, allocation, and what a flush has to write.
//!
//! Nothing here does I/O or waits. Where an answer needs a part of a table that is not in memory, the question returns
//! [`Need`], the engine loads that slice and asks again. All of it lies behind one lock that is never held across I/O.

use crate::addr::{
    ClusterCount, Geometry, GuestOffset, HostCluster, HostOffset, L1Index, SliceKey,
};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::DECODED_CACHE_BYTES_MAX;
use crate::seeded_bugs::Bug;

pub mod alloc;
pub mod bitmap;
pub mod busy;
pub mod cache;
pub mod decoded;
pub mod drain;
mod drop;
mod eviction;
pub mod guard;
pub mod lookaside;
pub mod map;
pub mod order;
pub mod pack;
pub mod plan;
pub mod reclaim;
pub mod recover;
pub mod redo;
pub mod refs;
pub mod regions;
pub mod sealed;
pub mod settle;
pub mod snapshot;
pub mod span;
pub mod table;

use alloc::Allocator;
use busy::BusyClusters;
use decoded::DecodedClusters;
use lookaside::Right;
use map::Map;
use order::Sequencer;
use pack::Packer;
use reclaim::{Punched, Reclaim};
use recover::Changes;
use redo::Redo;
use refs::Refcounts;
use regions::{Kind, Regions};
use span::Span;
use table::WordTable;

/// Something that has to be in memory before a question can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A slice of an L2 table.
    L2(SliceKey),
    /// A slice of a refcount block.
    Refcounts(SliceKey),
}

/// The answer to a question, or what is missing to give it.
pub type Asked<T> = std::result::Result<T, Need>;

/// All mutable metadata of one open image.
#[derive(Debug)]
pub struct Meta {
    /// Guest clusters to host clusters.
    pub map: Map,
    /// Host clusters to reference counts.
    pub refs: Refcounts,
    /// Where free clusters are to be found.
    pub alloc: Allocator,
    /// Where the next compressed cluster goes.
    pub packer: Packer,
    /// Compressed clusters that have been read.
    pub decoded: DecodedClusters,
    /// Guest clusters, or parts of them, whose mapping somebody is about to change.
    pub busy: BusyClusters,
    /// Where the metadata itself lies, of a writable image.
    regions: Regions,
    /// Where the encryption header lies, if there is one; it stays there.
    encryption_header: Option<(HostCluster, ClusterCount)>,
    /// Clusters on their way from mapped to free.
    pub reclaim: Reclaim,
    /// Clusters of an external data file, by their guest clusters, whose space is on its way back to the host.
    pub punches: Reclaim,
    /// Who flushes, and who waits for it.
    pub flush: Sequencer,
    /// Where changes of mappings are recorded for the next process, if anywhere.
    redo: Option<Redo>,
    /// What has changed since a scan for leaks began, while there is one.
    changes: Option<Changes>,
    /// Why this image takes no more writes, once that is so.
    failure: Option<Error>,
    /// Whether a flush of the file has failed: then the host may have lost whatever was not durable before it.
    flush_lost: bool,
}

impl Meta {
    /// The state of a freshly opened image.
    pub fn new(map: Map, refs: Refcounts, alloc: Allocator) -> Self {
        let decoded = DecodedClusters::new(map.geometry(), DECODED_CACHE_BYTES_MAX);
        Self {
            map,
            refs,
            alloc,
            packer: Packer::default(),
            decoded,
            busy: BusyClusters::default(),
            regions: Regions::default(),
            encryption_header: None,
            reclaim: Reclaim::default(),
            punches: Reclaim::default(),
            flush: Sequencer::default(),
            redo: None,
            changes: None,
            failure: None,
            flush_lost: false,
        }
    }

    /// Notes where the encryption header lies, before anybody asks.
    pub fn set_encryption_header(&mut self, clusters: Option<(HostCluster, ClusterCount)>) {
        self.encryption_header = clusters;
    }

    /// Fails once the image has turned read-only.
    pub fn check_writable(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Turns the image read-only for good; the first reason stays.
    pub fn fail(&mut self, reason: Error) {
        self.failure.get_or_insert(reason);
        self.map.lookaside().forget_all();
    }

    /// Where the metadata itself lies, of a writable image.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// As [`Self::regions`], to be changed.
    pub fn regions_mut(&mut self) -> &mut Regions {
        // What is metadata from now on is no place of data any more, whatever the tables say.
        self.map.lookaside().forget_all();
        &mut self.regions
    }

    /// Notes that `len` bytes at `at`, of one cluster, have been found at `host` and may be read or written there by whoever
    /// comes next, too.
    pub fn note_place(&self, geometry: Geometry, at: GuestOffset, host: HostOffset, right: Right) {
        let cluster = geometry.guest_cluster(at);
        let settled = self.busy.is_free(Span::of_clusters(geometry, cluster, 1));
        let may = right == Right::Read || self.failure.is_none();
        // With subclusters a place says nothing of the rest of the cluster.
        if settled && may && !self.flush_lost && !geometry.has_extended_l2() {
            self.map.lookaside().note(cluster, geometry.host_cluster(host), right);
        }
    }

    /// Turns the image read-only because a flush of its file has failed.
    pub fn lose_flush(&mut self, reason: Error) {
        self.flush_lost = true;
        if !Bug::RedoOutlivesLostFlush.is_seeded() {
            self.void_redo();
        }
        self.fail(reason);
    }

    /// Fails where the mapping of `len` bytes at `at` may name clusters whose content was lost with a flush. Whatever was
    /// durable before can still be read.
    pub fn check_survived(&self, at: GuestOffset, len: u64) -> Result<()> {
        if !self.flush_lost || self.map.is_durable(at, len) || Bug::LostMappingsAreRead.is_seeded()
        {
            return Ok(());
        }
        let what = format!("what was written at guest offset {:#x} since", at.get());
        Err(Error::new(
            ErrorKind::Io,
            format!("{what} was lost with a flush that failed: open the image again"),
        ))
    }

    /// Learns where the metadata lies that belongs to no snapshot, before the image is written to.
    ///
    /// # Errors
    /// A table is damaged, lies past the end of the file, or shares a cluster with another one.
    pub fn map_regions(&mut self, geometry: Geometry) -> Result<()> {
        *self.regions_mut() = self.own_regions(geometry)?;
        Ok(())
    }

    /// Where the metadata lies that belongs to no snapshot.
    ///
    /// # Errors
    /// As [`Self::map_regions`].
    pub fn own_regions(&self, geometry: Geometry) -> Result<Regions> {
        let tables = [self.map.l1().words(), self.refs.table().words()];
        let tables = tables.into_iter().flatten().filter(|&&word| word != 0).count();
        let mut regions = Regions::with_room(tables);
        regions.add(Kind::Header, HostCluster::new(0), 1)?;
        let (first, count) = self.map.l1().span(geometry);
        regions.add(Kind::L1, first, count)?;
        let (first, count) = self.refs.table().span(geometry);
        regions.add(Kind::RefcountTable, first, count)?;
        if let Some((first, count)) = self.encryption_header {
            regions.add(Kind::EncryptionHeader, first, count)?;
        }
        for block in self.refs.blocks() {
            self.check_inside(geometry, Kind::RefcountBlock, block)?;
            regions.add(Kind::RefcountBlock, block, 1)?;
        }
        for index in 0..self.map.l1().words().len() {
            if let Some(table) = self.map.table(L1Index(index))? {
                self.check_inside(geometry, Kind::L2, table.cluster)?;
                regions.add(Kind::L2, table.cluster, 1)?;
            }
        }
        Ok(regions)
    }

    /// Points `l1` to the L2 table at `table`; the one it pointed to before goes on its way to being free.
    pub fn link_table(
        &mut self,
        geometry: Geometry,
        l1: L1Index,
        table: HostCluster,
    ) -> Result<()> {
        self.check_target(geometry, table, 1)?;
        let old = self.map.link_table(l1, table)?;
        self.regions_mut().add(Kind::L2, table, 1)?;
        self.note_changed(table, 1);
        if let Some(old) = old {
            self.regions_mut().remove(old.cluster, 1);
            self.unlink(old.cluster, 1, false);
        }
        Ok(())
    }

    /// Sends clusters that no table in memory names any more on their way to being free.
    pub fn unlink(&mut self, first: HostCluster, count: u64, punch: bool) {
        self.note_changed(first, count);
        self.reclaim.unlink(first, count, punch);
    }

    /// Hooks in the refcount block at `block`, whose zeros are on disk already.
    pub fn add_block(&mut self, index: u64, block: HostCluster) -> Result<()> {
        self.regions_mut().add(Kind::RefcountBlock, block, 1)?;
        self.refs.add_block(index, block);
        self.note_claimed(&Run { first: block, count: 1, fresh: false });
        Ok(())
    }

    /// Hooks in refcount blocks, whose zeros are on disk already and which count themselves and the `row` behind them, and
    /// claims that row.
    pub fn add_blocks(&mut self, geometry: Geometry, blocks: Run, row: Run) -> Result<()> {
        let index = geometry.refcount_block_index(blocks.first);
        for (i, block) in blocks.clusters().enumerate() {
            self.regions_mut().add(Kind::RefcountBlock, block, 1)?;
            self.refs.hook_in(index + i as u64, block);
        }
        for run in [blocks, row] {
            run.clusters().for_each(|cluster| self.refs.set_in_new_block(cluster, 1));
            self.note_claimed(&run);
        }
        Ok(())
    }

    /// Goes on with another refcount table and its new blocks, to which the header points already.
    pub fn switch_refcount_table(
        &mut self,
        geometry: Geometry,
        table: WordTable,
        blocks: Run,
    ) -> Result<()> {
        let new = table.span(geometry);
        for (first, count) in [(blocks.first, blocks.count), new] {
            self.check_unused(first, count)?;
        }
        for (first, count) in [(blocks.first, blocks.count), new] {
            self.note_claimed(&Run { first, count, fresh: false });
        }
        let (first, count) = self.refs.table().span(geometry);
        self.leave_table(first, count);
        for block in blocks.clusters() {
            self.regions_mut().add(Kind::RefcountBlock, block, 1)?;
        }
        self.refs.switch_table(table);
        self.regions_mut().add(Kind::RefcountTable, new.0, new.1)
    }

    /// Goes on with a longer L1 table at `offset`, to which the header points already and which holds `on_disk`.
    pub fn switch_l1(
        &mut self,
        geometry: Geometry,
        offset: HostOffset,
        on_disk: Vec<u64>,
    ) -> Result<()> {
        let new = geometry.host_span(offset, on_disk.len() as u64 * 8);
        self.check_target(geometry, new.0, new.1)?;
        self.note_changed(new.0, new.1);
        let (first, count) = self.map.l1().span(geometry);
        self.leave_table(first, count);
        self.map.switch_l1(offset, on_disk);
        self.regions_mut().add(Kind::L1, new.0, new.1)
    }

    /// Sends a table that the header does not name any more on its way to being free. The header's change counts as an
    /// unlink like any other: durable with the next flush at the latest, and not before a flush that is running ends.
    fn leave_table(&mut self, first: HostCluster, count: ClusterCount) {
        self.regions_mut().remove(first, count);
        self.note_table_gone();
        self.unlink(first, count, false);
    }

    /// Goes on with `l1` and the counts as they are on disk now, as if the image had just been opened. Nobody uses any table,
    /// and nothing is on its way to being free.
    pub fn restart(&mut self, l1: WordTable) {
        assert!(self.reclaim.is_idle(), "nothing is being freed");
        assert!(self.is_redo_empty(), "what waits for no flush is in no redo log");
        self.map.restart(l1);
        self.refs.restart();
        // Its cluster may be among those that have become free.
        self.packer = Packer::default();
    }

    /// Whether so much metadata waits for a flush that writers should start one.
    pub fn wants_flush(&self) -> bool {
        let crowded = self.map.slices().is_crowded() || self.refs.slices().is_crowded();
        crowded || self.redo_wants_flush()
    }

    /// How many of the clusters from `first` on can be released in one go, up to `count_max`, and whether this is their
    /// last reference. What is metadata is never freed; a snapshot's table may lose the reference of the active one. What
    /// is in its last reference gets no other one from here on.
    pub fn plan_release(
        &mut self,
        first: HostCluster,
        count_max: u64,
    ) -> Asked<Result<(u64, bool)>> {
        let (count, last) = self.refs.same_fate(first, count_max)?;
        let clear = if last { self.regions.check_clear(first, count) } else { Ok(()) };
        if last {
            self.packer.leave(first, count);
        }
        Ok(clear.map(|()| (count, last)))
    }

    /// Lowers the counts of clusters that share a slice by one, and tells the allocator which become free. All or, where
    /// one must not be freed, none.
    pub fn release(&mut self, punched: Punched<'_>) -> Asked<Result<()>> {
        let (first, count) = punched.span();
        let run = Run { first, count, fresh: false };
        for cluster in run.clusters() {
            let sound = match self.refs.get(cluster)?.unwrap_or(0) {
                0 => {
                    let number = cluster.get();
                    let what = format!("cluster {number} is referenced but its refcount is zero");
                    Err(Error::corrupt(what))
                }
                1 => self.regions.check_clear(cluster, 1),
                _ => Ok(()),
            };
            if sound.is_err() {
                return Ok(sound);
            }
        }
        self.note_changed(first, count);
        for cluster in run.clusters() {
            let refs = self.refs.get(cluster)?.expect("a block counts it, as just seen");
            self.refs.set(cluster, refs - 1)?;
            if refs == 1 {
                self.freed(cluster);
                if self.map.forget_table(cluster) {
                    self.note_table_gone();
                }
            }
        }
        punched.released();
        Ok(Ok(()))
    }

    /// Notes that the count of `cluster` has become zero.
    pub(super) fn freed(&mut self, cluster: HostCluster) {
        self.packer.leave(cluster, 1);
        if !Bug::FreedStaysDecoded.is_seeded() {
            self.decoded.forget(cluster);
        }
        self.alloc.freed(cluster);
    }

    /// Claims up to `count` clusters in a row: the first one and how many. `None` where a refcount block is missing.
    pub fn claim(&mut self, count: u64) -> Asked<Result<Claim>> {
        let claim = self.alloc.find_run(&mut self.refs, count)?;
        if let Ok(Claim::Run(run)) = &claim {
            if let Err(e) = self.check_unused(run.first, run.count) {
                return Ok(Err(e.context("a refcount of zero is wrong")));
            }
            for cluster in run.clusters() {
                self.refs.set(cluster, 1)?;
            }
            self.alloc.claimed(run);
            self.note_claimed(run);
        }
        Ok(claim)
    }
}

/// Consecutive host clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first cluster.
    pub first: HostCluster,
    /// How many.
    pub count: u64,
    /// Nobody has ever written to them: they lie past the end of the file and read as zeros.
    pub fresh: bool,
}

impl Run {
    /// Its clusters, in order.
    pub fn clusters(&self) -> impl Iterator<Item = HostCluster> + use<> {
        let first = self.first;
        (0..self.count).map(move |i| first.plus(i))
    }
}

/// What came of asking for clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// These clusters are claimed: their count is one.
    Run(Run),
    /// The next clusters have no refcount block yet: the one at this index of the table has to be made first.
    MissingBlock(u64),
}
