//! Freed clusters on their way back to the allocator.
//!
//! ```text
//! Unlinked  no table in memory names it; on disk one still may
//!    |      a flush made the new tables durable
//! Durable   a crash finds it unlinked; requests in flight may still read or write it
//!    |      everyone who was in flight at the unlink has ended
//! Drained   nobody knows it: its hole may be punched
//!    |      punched, or not to be punched
//! free      its count is lowered, and the allocator may hand it out
//! ```
//!
//! Each state is a type, and each step consumes the one before: no other order compiles.

use super::drain::{Drain, Grace};
use crate::addr::{ClusterCount, HostCluster};

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
#[derive(Debug)]
pub struct Drained(pub Vec<Release>);

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
        if let Some(last) = self.unlinked.0.last_mut()
            && last.first.plus(last.count) == first
            && last.punch == punch
        {
            last.count += count;
            return;
        }
        self.unlinked.0.push(Release { first, count, punch });
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
            let passed = drain.has_passed(&mut batch.grace);
            if passed {
                releases.append(&mut batch.releases);
            }
            !passed
        });
        self.busy = !releases.is_empty();
        self.busy.then_some(Drained(releases))
    }

    /// Ends what [`Self::begin`] began; what could not be freed is to be tried again.
    pub fn end(&mut self, left: Vec<Release>) {
        self.busy = false;
        self.add_durable(Unlinked(left).made_durable());
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
