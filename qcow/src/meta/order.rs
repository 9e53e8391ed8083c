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
use super::regions::Kind;
use super::table::TableSector;
use crate::addr::{Geometry, HostOffset};

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
}

/// Everything one flush makes durable.
#[derive(Debug)]
pub struct FlushPlan {
    refcounts: Vec<DirtySectors>,
    refcount_table: Vec<TableSector>,
    l2: Vec<DirtySectors>,
    l1: Vec<TableSector>,
    unlinked: Unlinked,
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
        let mut stages = vec![
            Stage { writes: refcounts.collect() },
            Stage { writes: refcount_table.collect() },
            Stage { writes: mappings.collect() },
        ];
        // Mappings name clusters whose data must be durable first, even where no count has changed since the last flush.
        let last = stages.pop().filter(|s| !s.writes.is_empty());
        let has_mappings = last.is_some();
        stages.retain(|s| !s.writes.is_empty());
        if has_mappings && stages.is_empty() {
            stages.push(Stage { writes: Vec::new() });
        }
        stages.extend(last);
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
        }
    }

    /// Ends a flush: what it wrote is durable now, or has to be written again.
    pub fn end_flush(&mut self, plan: FlushPlan, success: bool) {
        plan.refcounts.iter().for_each(|s| self.refs.slices_mut().written(s, success));
        plan.l2.iter().for_each(|s| self.map.slices_mut().written(s, success));
        plan.refcount_table.iter().for_each(|s| self.refs.table_mut().written(s, success));
        plan.l1.iter().for_each(|s| self.map.l1_mut().written(s, success));
        if success {
            self.reclaim.add_durable(plan.unlinked.made_durable());
            return;
        }
        self.reclaim.put_back(plan.unlinked);
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
        Ticket(self.started + 1)
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
