//! Freed clusters on their way back to the allocator.
//!
//! ```text
//! Unlinked  no table in memory names it; on disk one still may
//!    |      a flush made the new tables durable
//! Durable   a crash finds it unlinked; requests in flight may still read or write it
//!    |      everyone who was in flight at the unlink has ended
//! Drained   nobody knows it: its hole may be punched
//!    |      the hole is punched, or is not to be
//! Punched   its space is the host's, or stays with the file
//!    |      its count is lowered
//! free      the allocator may hand it out
//! ```
//!
//! Each state is a type that only the step before it makes, and each step consumes what it starts from: no other order
//! compiles. From `Drained` on, clusters go piece by piece, and a piece that is dropped halfway is still drained.

use super::drain::{Drain, Grace};
use crate::addr::{ClusterCount, HostCluster};
use crate::seeded_bugs::Bug;

/// Clusters that lose one reference each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The first cluster.
    pub first: HostCluster,
    /// How many.
    pub count: ClusterCount,
    /// Whether their space goes back to the host when nothing refers to them any more.
    pub punch: bool,
}

/// Clusters unlinked in memory.
#[derive(Debug, Default)]
pub struct Unlinked(Vec<Release>);

/// Clusters unlinked on disk.
#[derive(Debug)]
pub struct Durable {
    releases: Vec<Release>,
    grace: Grace,
}

/// Clusters that nobody in flight can see.
#[derive(Debug, Default)]
pub struct Drained(Vec<Release>);

/// The first of the drained clusters, whose hole nobody has decided on yet.
#[derive(Debug)]
pub struct Piece<'a> {
    drained: &'a mut Drained,
    count: ClusterCount,
}

/// The first of the drained clusters, punched or not to be punched: their counts may be lowered.
#[derive(Debug)]
pub struct Punched<'a>(Piece<'a>);

impl Drained {
    /// What is to be released next.
    pub fn next(&self) -> Option<Release> {
        self.0.last().copied()
    }

    /// The first `count` clusters of what is next.
    pub fn piece(&mut self, count: ClusterCount) -> Piece<'_> {
        assert!(self.next().is_some_and(|next| (1..=next.count).contains(&count)));
        Piece { drained: self, count }
    }
}

impl<'a> Piece<'a> {
    /// The first cluster, and how many.
    pub fn span(&self) -> (HostCluster, ClusterCount) {
        let first = self.drained.next().expect("a piece of what is next").first;
        (first, self.count)
    }

    /// The host has been asked to take their space back, whatever came of it.
    pub fn punched(self) -> Punched<'a> {
        Punched(self)
    }

    /// Their space stays with the file, or belongs to what still refers to them.
    pub fn kept(self) -> Punched<'a> {
        Punched(self)
    }
}

impl Punched<'_> {
    /// The first cluster, and how many.
    pub fn span(&self) -> (HostCluster, ClusterCount) {
        self.0.span()
    }

    /// Their counts have been lowered: they have left.
    pub fn released(self) {
        let Piece { drained: Drained(releases), count } = self.0;
        let next = releases.last_mut().expect("a piece of what is next");
        next.first = next.first.plus(count);
        next.count -= count;
        if next.count == 0 {
            releases.pop();
        }
    }
}

impl Unlinked {
    /// The flush that carried these unlinks has succeeded.
    pub fn made_durable(self) -> Durable {
        Durable { releases: self.0, grace: Grace::default() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// All clusters between mapped and free.
#[derive(Debug, Default)]
pub struct Reclaim {
    unlinked: Unlinked,
    durable: Vec<Durable>,
    /// Somebody is punching and lowering counts.
    busy: bool,
}

impl Reclaim {
    /// Takes in clusters that no table in memory names any more.
    pub fn unlink(&mut self, first: HostCluster, count: ClusterCount, punch: bool) {
        if count == 0 {
            // The L1 table of a disk without a byte.
            return;
        }
        if let Some(last) = self.unlinked.0.last_mut()
            && last.first.plus(last.count) == first
            && last.punch == punch
        {
            last.count += count;
            return;
        }
        self.unlinked.0.push(Release { first, count, punch });
        if Bug::ReusedBeforeUnlinkIsDurable.is_seeded() {
            let unlinked = self.take_unlinked();
            self.add_durable(unlinked.made_durable());
        }
    }

    /// What the flush that is being planned will make durable.
    pub fn take_unlinked(&mut self) -> Unlinked {
        std::mem::take(&mut self.unlinked)
    }

    /// Puts unlinked clusters back whose flush failed.
    pub fn put_back(&mut self, mut unlinked: Unlinked) {
        unlinked.0.append(&mut self.unlinked.0);
        self.unlinked = unlinked;
    }

    /// Whether `cluster` was unlinked since the newest flush began; for a seeded bug.
    pub fn has_unlinked(&self, cluster: HostCluster) -> bool {
        self.unlinked.0.iter().any(|release| release.first == cluster)
    }

    /// Takes in clusters whose flush succeeded.
    pub fn add_durable(&mut self, durable: Durable) {
        if !durable.releases.is_empty() {
            self.durable.push(durable);
        }
    }

    /// The clusters that nobody can see any more, for the one who frees them and then calls [`Self::end`].
    ///
    /// `None` where there are none, or somebody else is at it.
    pub fn begin(&mut self, drain: &Drain) -> Option<Drained> {
        if self.busy {
            return None;
        }
        let mut releases = Vec::new();
        self.durable.retain_mut(|batch| {
            let passed = drain.has_passed(&mut batch.grace) || Bug::ReusedBeforeDrained.is_seeded();
            if passed {
                releases.append(&mut batch.releases);
            }
            !passed
        });
        self.busy = !releases.is_empty();
        self.busy.then_some(Drained(releases))
    }

    /// Ends what [`Self::begin`] began; what could not be freed is to be tried again.
    pub fn end(&mut self, left: Drained) {
        self.busy = false;
        self.add_durable(Unlinked(left.0).made_durable());
    }

    /// The clusters on their way that no flush and nobody else has in hand; `None` while somebody is freeing some.
    pub fn pending(&self) -> Option<impl Iterator<Item = &Release>> {
        let durable = self.durable.iter().flat_map(|batch| &batch.releases);
        (!self.busy).then(|| self.unlinked.0.iter().chain(durable))
    }

    /// Whether any cluster is on its way.
    pub fn is_idle(&self) -> bool {
        self.unlinked.is_empty() && self.durable.is_empty() && !self.busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clusters 5 to 9, drained.
    fn drained() -> Drained {
        let mut reclaim = Reclaim::default();
        reclaim.unlink(HostCluster::new(5), 2, true);
        reclaim.unlink(HostCluster::new(7), 3, true);
        let unlinked = reclaim.take_unlinked();
        reclaim.add_durable(unlinked.made_durable());
        reclaim.begin(&Drain::default()).expect("nobody is in flight")
    }

    #[test]
    fn a_piece_leaves_only_when_it_is_released() {
        let mut drained = drained();
        let next = |drained: &Drained| drained.next().map(|r| (r.first.get(), r.count));
        let _ = drained.piece(2);
        let _ = drained.piece(2).punched();
        assert_eq!(next(&drained), Some((5, 5)));
        drained.piece(2).punched().released();
        assert_eq!(next(&drained), Some((7, 3)));
        drained.piece(3).kept().released();
        assert_eq!(next(&drained), None);
    }

    #[test]
    fn what_is_left_is_tried_again() {
        let mut reclaim = Reclaim::default();
        reclaim.end(drained());
        let again = reclaim.begin(&Drain::default()).expect("it is still there");
        assert_eq!(again.next().map(|r| r.count), Some(5));
        assert!(reclaim.begin(&Drain::default()).is_none(), "one at a time");
    }
}
