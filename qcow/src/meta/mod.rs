//! The metadata of one open image as a state machine: tables, caches, allocation, and what a flush has to write.
//!
//! Nothing here does I/O or waits. Where an answer needs a part of a table that is not in memory, the question returns
//! [`Need`], the engine loads that slice and asks again. All of it lies behind one lock that is never held across I/O.

use crate::addr::{Geometry, HostCluster, HostOffset, SliceKey};
use crate::error::{Error, Result};

pub mod alloc;
pub mod busy;
pub mod cache;
pub mod drain;
pub mod map;
pub mod order;
pub mod plan;
pub mod reclaim;
pub mod refs;

use alloc::Allocator;
use busy::BusyClusters;
use map::Map;
use order::Sequencer;
use reclaim::Reclaim;
use refs::Refcounts;

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
    /// Clusters on their way from mapped to free.
    pub reclaim: Reclaim,
    /// Who flushes, and who waits for it.
    pub flush: Sequencer,
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
            reclaim: Reclaim::default(),
            flush: Sequencer::default(),
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

    /// Fails unless data may lie in `len` bytes at `host`: inside the file, and clear of header and tables.
    pub fn check_data(&self, geometry: Geometry, host: HostOffset, len: u64) -> Result<()> {
        let (first, count) = geometry.host_span(host, len);
        if !self.alloc.is_inside_file(first.plus(count - 1)) {
            return Err(Error::corrupt(format!("data at {host} lies past the end of the file")));
        }
        self.check_clear(first, count)
    }

    /// Fails unless clusters are clear of the tables that are known without I/O: header, L1 table and refcount table.
    pub fn check_clear(&self, first: HostCluster, count: u64) -> Result<()> {
        let header = (HostCluster::new(0), 1);
        let tables = [
            ("header", header),
            ("L1 table", self.map.l1_span()),
            ("refcount table", self.refs.table_span()),
        ];
        for (name, (start, clusters)) in tables {
            if first < start.plus(clusters) && start < first.plus(count) {
                return Err(Error::corrupt(format!(
                    "{count} clusters from cluster {} on overlap the {name}",
                    first.get()
                )));
            }
        }
        Ok(())
    }

    /// Whether so much metadata waits for a flush that writers should start one.
    pub fn wants_flush(&self) -> bool {
        self.map.slices().is_crowded() || self.refs.slices().is_crowded()
    }

    /// Lowers the count of `cluster` by one, and tells the allocator when it becomes free.
    pub fn release(&mut self, cluster: HostCluster) -> Asked<Result<()>> {
        let count = self.refs.get(cluster)?.unwrap_or(0);
        if count == 0 {
            return Ok(Err(Error::corrupt(format!(
                "cluster {} is referenced but its refcount is zero",
                cluster.get()
            ))));
        }
        self.refs.set(cluster, count - 1)?;
        if count == 1 {
            self.alloc.freed(cluster);
            // Whoever claims it next may make it a table: nothing may be left of what it was.
            self.map.forget_table(cluster);
        }
        Ok(Ok(()))
    }

    /// Claims up to `count` clusters in a row: the first one and how many. `None` where a refcount block is missing.
    pub fn claim(&mut self, count: u64) -> Asked<Result<Claim>> {
        let claim = self.alloc.find_run(&mut self.refs, count)?;
        if let Ok(Claim::Run(run)) = &claim {
            if let Err(e) = self.check_clear(run.first, run.count) {
                return Ok(Err(e.context("a refcount of zero is wrong")));
            }
            for cluster in run.clusters() {
                self.refs.set(cluster, 1)?;
            }
            self.alloc.claimed(run);
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
