//! What a flush writes, and in which order: the order is a value, and the engine only carries it out.
//!
//! ```text
//! A   refcounts                    (data of new clusters and whole new tables have been written already)
//!     barrier
//! A'  refcount table entries       (only when a refcount block is new)
//!     barrier
//! B   L2 entries, L1 entries
//!     barrier                      -> the flush is done
//! C   lowered counts, for the next flush: see `reclaim`
//! ```
//!
//! An L2 entry captured here was linked after its cluster was claimed and its data written, so the counts captured in
//! the same moment cover it, and the first barrier covers its data. Entries linked after the capture wait for the next
//! flush.

use super::Meta;
use super::cache::DirtySectors;
use super::reclaim::Unlinked;
use super::redo::Covered;
use super::regions::Kind;
use super::table::TableSector;
use crate::addr::{Geometry, HostOffset};
use crate::seeded_bugs::Bug;

/// One write of metadata.
#[derive(Debug)]
pub struct MetaWrite<'a> {
    /// What lies there.
    pub kind: Kind,
    /// Where it goes.
    pub at: HostOffset,
    /// What is written.
    pub bytes: &'a [u8],
}

/// Writes that may happen in any order among themselves, followed by a barrier.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The writes.
    pub writes: Vec<MetaWrite<'a>>,
    /// What comes after them.
    pub barrier: Barrier,
}

/// What a barrier keeps from coming too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// The refcount table names only blocks that are durable.
    BeforeRefcountTable,
    /// Mappings rest on data and counts that are durable.
    BeforeMappings,
    /// A flush is acknowledged, and clusters become free, when everything is durable.
    BeforeAcknowledgement,
}

/// Everything one flush makes durable.
#[derive(Debug)]
pub struct FlushPlan {
    refcounts: Vec<DirtySectors>,
    refcount_table: Vec<TableSector>,
    l2: Vec<DirtySectors>,
    l1: Vec<TableSector>,
    unlinked: Unlinked,
    punches: Unlinked,
    redo: Option<Covered>,
}

impl FlushPlan {
    /// The stages in their order, each to be followed by a barrier. None has to be written where nothing has changed:
    /// then a single barrier makes the data durable.
    pub fn stages<'a>(&'a self, geometry: Geometry) -> Vec<Stage<'a>> {
        let slice = |kind, s: &'a DirtySectors| {
            let at = geometry.slice_start(s.key).plus(s.offset);
            MetaWrite { kind, at, bytes: &s.bytes }
        };
        let table = |kind, s: &'a TableSector| MetaWrite { kind, at: s.at, bytes: &s.bytes };
        let refcounts = self.refcounts.iter().map(|s| slice(Kind::RefcountBlock, s));
        let refcount_table = self.refcount_table.iter().map(|s| table(Kind::RefcountTable, s));
        let l2 = self.l2.iter().map(|s| slice(Kind::L2, s));
        let mappings = l2.chain(self.l1.iter().map(|s| table(Kind::L1, s)));
        let stages = [
            (refcounts.collect(), Barrier::BeforeRefcountTable),
            (refcount_table.collect(), Barrier::BeforeMappings),
            (mappings.collect(), Barrier::BeforeAcknowledgement),
        ];
        let mut stages: Vec<_> =
            stages.into_iter().map(|(writes, barrier)| Stage { writes, barrier }).collect();
        if stages[1].writes.is_empty() {
            // Nothing comes between the counts and the mappings. Mappings name clusters whose data must be durable
            // first, even where no count has changed since the last flush.
            stages.remove(1);
            stages[0].barrier = Barrier::BeforeMappings;
        }
        let last = stages.iter().rposition(|stage| !stage.writes.is_empty());
        stages.truncate(last.map_or(0, |last| last + 1));
        if let Some(last) = stages.last_mut() {
            last.barrier = Barrier::BeforeAcknowledgement;
        }
        stages
    }
}

impl Meta {
    /// Captures everything that waits to be written. It must be ended with [`Self::end_flush`].
    pub fn plan_flush(&mut self) -> FlushPlan {
        FlushPlan {
            refcounts: self.refs.slices_mut().take_dirty(),
            refcount_table: self.refs.table_mut().take_dirty(),
            l2: self.map.slices_mut().take_dirty(),
            l1: self.map.l1_mut().take_dirty(),
            unlinked: self.reclaim.take_unlinked(),
            punches: self.punches.take_unlinked(),
            redo: self.cover_redo(),
        }
    }

    /// Ends a flush: what it wrote is durable now, or has to be written again.
    pub fn end_flush(&mut self, plan: FlushPlan, success: bool) {
        let written = success || Bug::FailedWriteCountsAsWritten.is_seeded();
        plan.refcounts.iter().for_each(|s| self.refs.slices_mut().written(s, written));
        plan.l2.iter().for_each(|s| self.map.slices_mut().written(s, written));
        plan.refcount_table.iter().for_each(|s| self.refs.table_mut().written(s, written));
        plan.l1.iter().for_each(|s| self.map.l1_mut().written(s, written));
        // Before anything becomes free that a record names.
        self.end_redo_flush(plan.redo.as_ref(), success);
        if success {
            self.reclaim.add_durable(plan.unlinked.made_durable());
            self.punches.add_durable(plan.punches.made_durable());
            return;
        }
        self.reclaim.put_back(plan.unlinked);
        self.punches.put_back(plan.punches);
    }
}

/// Lets concurrent flushes share their barriers: whoever asks while a flush is running waits for the next one, which
/// one of them carries out for all.
#[derive(Debug, Default)]
pub struct Sequencer {
    running: bool,
    started: u64,
    ended: u64,
    /// How the newest ended flush went.
    outcome: Option<crate::error::Error>,
}

/// A flush that has not started yet when it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

/// Where somebody with a ticket stands.
#[derive(Debug)]
pub enum Turn {
    /// A flush that started after the ticket was drawn has ended.
    Done(crate::error::Result<()>),
    /// It is up to the asker to flush now, and to report with [`Sequencer::end`].
    Lead,
    /// Somebody else is flushing.
    Wait,
}

impl Sequencer {
    /// A ticket for the next flush to start.
    pub fn ticket(&self) -> Ticket {
        let joins = Bug::FlushJoinsTheRunningOne.is_seeded() && self.running;
        Ticket(self.started + u64::from(!joins))
    }

    /// Where `ticket` stands.
    pub fn turn(&mut self, ticket: Ticket) -> Turn {
        if self.ended >= ticket.0 {
            return Turn::Done(self.outcome.clone().map_or(Ok(()), Err));
        }
        if self.running {
            return Turn::Wait;
        }
        self.running = true;
        self.started += 1;
        Turn::Lead
    }

    /// Ends the flush that is running.
    pub fn end(&mut self, result: &crate::error::Result<()>) {
        self.running = false;
        self.ended = self.started;
        self.outcome = result.as_ref().err().cloned();
    }
}
