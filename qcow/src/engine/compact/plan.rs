//! Which units go where: from the highest ones down, each into the lowest place that is free.
//!
//! The file gets no shorter than where its highest unit that cannot move ends, and what lies below that stays. Units of
//! several clusters choose first, because single clusters fit anywhere.

use std::collections::{BTreeMap, HashSet};

use super::layout::{Kind, Layout, Metadata, Unit};
use super::moves::{Move, Moves, Stage};
use crate::addr::HostCluster;
use crate::disk::Disk;

/// What is to move in one go.
#[derive(Debug, Default)]
pub(super) struct Plan {
    moves: BTreeMap<Stage, Moves>,
    /// Refcount blocks that are needed to count what is moved: table entries, and clusters for them.
    pub(super) new_blocks: Vec<(u64, u64)>,
}

impl Plan {
    /// Plans the next moves, of at most `clusters_max` clusters, and counts them in `layout` as if the clusters were in use at both places.
    pub(super) fn make<D: Disk>(layout: &mut Layout<'_, D>, clusters_max: u64) -> Self {
        let mut planner = Planner {
            used: layout.counts.used_in(0..layout.counts.len()).count() as u64,
            layout,
            plan: Self::default(),
            left: clusters_max,
            moved: HashSet::new(),
            searched: BTreeMap::new(),
        };
        planner.place_runs();
        planner.place_singles();
        let mut plan = planner.plan;
        plan.moves.values_mut().for_each(Moves::sort);
        plan
    }

    /// The moves of each stage in which something moves.
    pub(super) fn stages(&self) -> impl Iterator<Item = (Stage, &Moves)> {
        self.moves.iter().map(|(&stage, moves)| (stage, moves))
    }

    /// All moves, of whatever.
    pub(super) fn all(&self) -> impl Iterator<Item = Move> + '_ {
        self.moves.values().flat_map(Moves::iter)
    }

    fn push(&mut self, kind: Kind, new: Move) {
        let stage = match kind {
            Kind::Data => Stage::Data,
            Kind::EncryptedData => Stage::EncryptedData,
            Kind::Metadata(Metadata::L2Table { .. }) => Stage::L2Tables,
            Kind::Metadata(Metadata::ActiveL1) => Stage::ActiveL1,
            Kind::Metadata(Metadata::SnapshotL1) => Stage::SnapshotL1,
            Kind::Metadata(Metadata::SnapshotTable) => Stage::SnapshotTable,
            Kind::Metadata(Metadata::BitmapData) => Stage::BitmapData,
            Kind::Metadata(Metadata::BitmapTable) => Stage::BitmapTables,
            Kind::Metadata(Metadata::BitmapDirectory) => Stage::BitmapDirectory,
            Kind::Metadata(Metadata::RefcountBlock(_)) => Stage::RefcountBlocks,
            Kind::Metadata(Metadata::RefcountTable) => Stage::RefcountTable,
            Kind::Fixed => unreachable!("what is fixed stays"),
        };
        self.moves.entry(stage).or_default().push(new);
    }
}

struct Planner<'p, 'd, D> {
    layout: &'p mut Layout<'d, D>,
    plan: Plan,
    /// Clusters in use: no file with them can be shorter.
    used: u64,
    /// Clusters that may still move.
    left: u64,
    /// Units of several clusters that move.
    moved: HashSet<u64>,
    /// Where the search for so many free clusters in a row has come to.
    searched: BTreeMap<u64, u64>,
}

impl<D: Disk> Planner<'_, '_, D> {
    /// Finds places for units of several clusters that lie where nothing would have to lie.
    fn place_runs(&mut self) {
        let mut end = self.layout.end();
        while let Some(unit) =
            self.unit_before(end).filter(|unit| unit.first + unit.len > self.used)
        {
            end = unit.first;
            if unit.kind == Kind::Fixed {
                return;
            }
            if unit.len > 1 {
                let place = self.free_run(unit).filter(|_| unit.len <= self.left);
                let Some(to) = place else { return };
                self.moved.insert(unit.first);
                self.left -= unit.len;
                self.count(unit, to);
                self.plan.push(unit.kind, Move { from: unit.first, to, len: unit.len });
            }
        }
    }

    /// Single clusters go from the end of the file to its start, in the order in which they lie.
    fn place_singles(&mut self) {
        let (mut units, mut places) = (Vec::new(), Vec::new());
        let (mut end, mut free) = (self.layout.end(), 0);
        while let Some(unit) = self.unit_before(end).filter(|_| self.left > 0) {
            end = unit.first;
            if self.moved.contains(&unit.first) {
                continue;
            }
            if unit.len > 1 || unit.kind == Kind::Fixed {
                break;
            }
            let Some(to) = self.free_single(free, unit.first) else { break };
            free = to + 1;
            self.left -= 1;
            self.layout.counts.add(HostCluster::new(to), 1, u64::MAX);
            units.push(unit);
            places.push(to);
        }
        self.put_in_order(&mut units, &places);
    }

    /// Lets `units`, which are in descending order, move to `places`, which are in ascending order and counted once.
    fn put_in_order(&mut self, units: &mut [Unit], places: &[u64]) {
        units.reverse();
        for (unit, &to) in units.iter().zip(places) {
            self.layout.counts.clear(HostCluster::new(to));
            self.count(*unit, to);
            self.plan.push(unit.kind, Move { from: unit.first, to, len: 1 });
        }
    }

    fn unit_before(&self, end: u64) -> Option<Unit> {
        let last = self.layout.counts.last_used_before(end)?;
        Some(self.layout.unit_at(last.get()))
    }

    /// Counts the clusters of `unit` where it is to be, too.
    fn count(&self, unit: Unit, to: u64) {
        for i in 0..unit.len {
            let count = self.layout.count(unit.first + i);
            self.layout.counts.add(HostCluster::new(to + i), count, u64::MAX);
        }
    }

    /// The first free cluster from `at` on and below `end`.
    fn free_single(&mut self, at: u64, end: u64) -> Option<u64> {
        let geometry = self.layout.target.geometry;
        let mut at = at;
        loop {
            let free = self.layout.counts.first_free_from(at);
            at = free.get();
            if at >= end {
                return None;
            }
            let index = geometry.refcount_block_index(free);
            if self.has_block(index) {
                return Some(at);
            }
            // A block of its own is worth it where it counts something, too.
            let first = geometry.refcount_block_first(index + 1).get();
            if at + 1 < end.min(first) {
                self.plan.new_blocks.push((index, at));
                self.layout.counts.add(free, 1, u64::MAX);
                self.layout.blocks[index as usize] = Some(at);
            }
            at += 1;
        }
    }

    /// The first place below `unit` that has room for it.
    fn free_run(&mut self, unit: Unit) -> Option<u64> {
        let counts = &self.layout.counts;
        // Nothing shorter has found room before.
        let known = self.searched.range(..=unit.len).map(|(_, &at)| at).max();
        let mut start = known.unwrap_or(0);
        let mut found = None;
        while found.is_none() {
            start = counts.first_free_from(start).get();
            if start + unit.len > unit.first {
                break;
            }
            let mut run = start..start + unit.len;
            match run.find(|&cluster| self.is_taken(cluster)) {
                Some(taken) => start = taken + 1,
                None => found = Some(start),
            }
        }
        self.searched.insert(unit.len, start);
        found
    }

    fn is_taken(&self, cluster: u64) -> bool {
        let index = self.layout.target.geometry.refcount_block_index(HostCluster::new(cluster));
        self.layout.count(cluster) > 0 || !self.has_block(index)
    }

    fn has_block(&self, index: u64) -> bool {
        self.layout.blocks.get(index as usize).is_some_and(Option::is_some)
    }
}
