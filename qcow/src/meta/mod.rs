//! The metadata of one open image as a state machine: tables, caches, allocation, and what a flush has to write.
//!
//! Nothing here does I/O or waits. Where an answer needs a part of a table that is not in memory, the question returns
//! [`Need`], the engine loads that slice and asks again. All of it lies behind one lock that is never held across I/O.

use crate::addr::{Geometry, HostCluster, HostOffset, L1Index, SliceKey};
use crate::error::{Error, Result};

pub mod alloc;
pub mod busy;
pub mod cache;
pub mod drain;
pub mod map;
pub mod order;
pub mod plan;
pub mod reclaim;
pub mod recover;
pub mod refs;
pub mod regions;
pub mod table;

use alloc::Allocator;
use busy::BusyClusters;
use map::Map;
use order::Sequencer;
use reclaim::Reclaim;
use recover::Changes;
use refs::Refcounts;
use regions::{Kind, Regions};
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
    /// Guest clusters whose mapping somebody is about to change.
    pub busy: BusyClusters,
    /// Where the metadata itself lies, of a writable image.
    pub regions: Regions,
    /// Clusters on their way from mapped to free.
    pub reclaim: Reclaim,
    /// Who flushes, and who waits for it.
    pub flush: Sequencer,
    /// What has changed since a scan for leaks began, while there is one.
    changes: Option<Changes>,
    /// Why this image takes no more writes, once that is so.
    failure: Option<Error>,
}

impl Meta {
    /// The state of a freshly opened image.
    pub fn new(map: Map, refs: Refcounts, alloc: Allocator) -> Self {
        Self {
            map,
            refs,
            alloc,
            busy: BusyClusters::default(),
            regions: Regions::default(),
            reclaim: Reclaim::default(),
            flush: Sequencer::default(),
            changes: None,
            failure: None,
        }
    }

    /// Fails once the image has turned read-only.
    pub fn check_writable(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Turns the image read-only for good; the first reason stays.
    pub fn fail(&mut self, reason: Error) {
        self.failure.get_or_insert(reason);
    }

    /// Learns where all metadata lies, before the image is written to.
    ///
    /// # Errors
    /// A table is damaged, lies past the end of the file, or shares a cluster with another one.
    pub fn map_regions(&mut self, geometry: Geometry) -> Result<()> {
        let mut regions = Regions::default();
        regions.add(Kind::Header, HostCluster::new(0), 1)?;
        let (first, count) = self.map.l1().span(geometry);
        regions.add(Kind::L1, first, count)?;
        let (first, count) = self.refs.table().span(geometry);
        regions.add(Kind::RefcountTable, first, count)?;
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
        self.regions = regions;
        Ok(())
    }

    /// Fails unless the table in `cluster` lies inside the file.
    pub fn check_inside(&self, geometry: Geometry, kind: Kind, cluster: HostCluster) -> Result<()> {
        if self.alloc.is_inside_file(cluster) {
            return Ok(());
        }
        let at = geometry.host_start(cluster);
        Err(Error::corrupt(format!("{kind} at {at} lies past the end of the file")))
    }

    /// Fails unless data may lie in `len` bytes at `host`: inside the file, and clear of metadata.
    pub fn check_data(&self, geometry: Geometry, host: HostOffset, len: u64) -> Result<()> {
        let (first, count) = geometry.host_span(host, len);
        if !self.alloc.is_inside_file(first.plus(count - 1)) {
            return Err(Error::corrupt(format!("data at {host} lies past the end of the file")));
        }
        self.regions.check_clear(first, count).map_err(|e| e.context(format!("data at {host}")))
    }

    /// Points `l1` to the L2 table at `table`; the one it pointed to before goes on its way to being free.
    pub fn link_table(&mut self, l1: L1Index, table: HostCluster) -> Result<()> {
        let old = self.map.link_table(l1, table)?;
        self.regions.add(Kind::L2, table, 1)?;
        self.note_changed(table, 1);
        if let Some(old) = old {
            self.regions.remove(old.cluster, 1);
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
        self.regions.add(Kind::RefcountBlock, block, 1)?;
        self.refs.add_block(index, block);
        self.note_claimed(&Run { first: block, count: 1, fresh: false });
        Ok(())
    }

    /// Goes on with another refcount table and its new blocks, to which the header points already.
    pub fn switch_refcount_table(
        &mut self,
        geometry: Geometry,
        table: WordTable,
        blocks: Run,
    ) -> Result<()> {
        let (first, count) = self.refs.table().span(geometry);
        self.regions.remove(first, count);
        self.note_table_gone();
        // Nothing on disk names the old table any more.
        let mut old = Reclaim::default();
        old.unlink(first, count, false);
        self.reclaim.add_durable(old.take_unlinked().made_durable());
        for block in blocks.clusters() {
            self.regions.add(Kind::RefcountBlock, block, 1)?;
        }
        let (first, count) = table.span(geometry);
        self.refs.switch_table(table);
        self.regions.add(Kind::RefcountTable, first, count)
    }

    /// Whether so much metadata waits for a flush that writers should start one.
    pub fn wants_flush(&self) -> bool {
        self.map.slices().is_crowded() || self.refs.slices().is_crowded()
    }

    /// Lowers the counts of `count` clusters from `first` on, which share a slice, by one. Tells the allocator which
    /// become free.
    pub fn release(&mut self, first: HostCluster, count: u64) -> Asked<Result<()>> {
        self.refs.get(first)?;
        self.note_changed(first, count);
        for cluster in (Run { first, count, fresh: false }).clusters() {
            let refs = self.refs.get(cluster)?.unwrap_or(0);
            if refs == 0 {
                let number = cluster.get();
                let what = format!("cluster {number} is referenced but its refcount is zero");
                return Ok(Err(Error::corrupt(what)));
            }
            self.refs.set(cluster, refs - 1)?;
            if refs == 1 {
                self.alloc.freed(cluster);
                if self.map.forget_table(cluster) {
                    self.note_table_gone();
                }
            }
        }
        Ok(Ok(()))
    }

    /// Claims up to `count` clusters in a row: the first one and how many. `None` where a refcount block is missing.
    pub fn claim(&mut self, count: u64) -> Asked<Result<Claim>> {
        let claim = self.alloc.find_run(&mut self.refs, count)?;
        if let Ok(Claim::Run(run)) = &claim {
            if let Err(e) = self.regions.check_clear(run.first, run.count) {
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
