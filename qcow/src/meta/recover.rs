//! Telling leaks of a crash from clusters that are merely being changed, while the image is in use.
//!
//! A cluster is leaked when it is counted higher than tables name it. A scan learns from the disk who names what, and that
//! takes time; so [`Changes`] notes every cluster that is claimed, linked, unlinked or freed from before the scan until
//! the last of its verdicts. What was said of any other cluster holds: tables on disk named it as often at every moment of
//! the scan, and its count was the same.
//!
//! ```text
//! begin_changes                     from here on, changes are noted
//! flush, then note_pending          what was unlinked before, and is not yet free
//! grace                             what was claimed before is linked or given up, and so noted
//! scan of the disk                  references
//! judge, lower                      under the lock, cluster by cluster
//! end_changes
//! ```

use std::collections::HashMap;
use std::ops::Range;

use super::{Asked, Meta, Run};
use crate::addr::{ClusterCount, HostCluster};
use crate::error::{Error, Result};

/// The clusters that have changed since a scan began.
#[derive(Debug, Default)]
pub struct Changes {
    /// A bit per cluster, by the clusters' numbers divided by 64.
    words: HashMap<u64, Word>,
    /// A table that the scan may have read is free, or about to be: what it read there may be anything.
    spoiled: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Word {
    touched: u64,
    /// Those whose count has been seen at zero: what they are counted for now is this process's own doing.
    claimed: u64,
}

impl Changes {
    fn touch(&mut self, cluster: HostCluster, claimed: bool) {
        let bit = 1 << (cluster.get() % 64);
        let word = self.words.entry(cluster.get() / 64).or_default();
        if claimed {
            word.claimed |= bit;
        }
        word.touched |= bit;
    }

    fn word(&self, cluster: HostCluster) -> Word {
        self.words.get(&(cluster.get() / 64)).copied().unwrap_or_default()
    }

    fn is_touched(&self, cluster: HostCluster) -> bool {
        self.word(cluster).touched >> (cluster.get() % 64) & 1 == 1
    }

    fn is_claimed(&self, cluster: HostCluster) -> bool {
        self.word(cluster).claimed >> (cluster.get() % 64) & 1 == 1
    }
}

/// Leaked clusters in a row that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The first of them.
    pub first: HostCluster,
    /// How many.
    pub count: ClusterCount,
    /// What the image counts for each.
    pub refcount: u64,
    /// How often each is named.
    pub reference: u64,
}

/// Leaks and doubtful clusters that are kept at a time: a hostile image can have them by the billion.
const KEPT_MAX: usize = 1 << 20;

/// What came of comparing counts and references.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Counted higher than named.
    pub leaks: Vec<Leak>,
    /// Changed meanwhile, so that nothing can be said of them.
    pub doubtful: Vec<HostCluster>,
    /// There were more leaks, or more in doubt, than are kept at a time.
    pub truncated: bool,
    /// The first one that is named more often than it is counted, with its count and references.
    pub undercounted: Option<(HostCluster, u64, u64)>,
}

impl Leak {
    /// The clusters.
    pub fn clusters(&self) -> impl Iterator<Item = HostCluster> + use<> {
        Run { first: self.first, count: self.count, fresh: false }.clusters()
    }
}

impl Verdict {
    /// Takes in what was found elsewhere.
    pub fn add(&mut self, other: Self) {
        if self.leaks.len() + self.doubtful.len() > KEPT_MAX {
            self.truncated |= !other.leaks.is_empty() || !other.doubtful.is_empty();
        } else {
            self.leaks.extend(other.leaks);
            self.doubtful.extend(other.doubtful);
        }
        self.undercounted = self.undercounted.or(other.undercounted);
    }

    /// Adds a leaked cluster, to the last leak where it continues that.
    pub fn add_leak(&mut self, cluster: HostCluster, refcount: u64, reference: u64) {
        if let Some(last) = self.leaks.last_mut()
            && last.first.plus(last.count) == cluster
            && (last.refcount, last.reference) == (refcount, reference)
        {
            last.count += 1;
            return;
        }
        self.leaks.push(Leak { first: cluster, count: 1, refcount, reference });
    }
}

impl Meta {
    /// Notes changes from here on.
    ///
    /// # Errors
    /// Somebody else is at it.
    pub fn begin_changes(&mut self) -> Result<()> {
        if self.changes.is_some() {
            return Err(Error::invalid("leaks of this image are being looked for already"));
        }
        self.changes = Some(Changes::default());
        Ok(())
    }

    /// Whether somebody looks for leaks right now.
    pub fn is_scanned(&self) -> bool {
        self.changes.is_some()
    }

    /// Stops noting changes.
    pub fn end_changes(&mut self) {
        self.changes = None;
    }

    /// Notes all clusters that are on their way from unlinked to free; `None` while somebody is freeing some. Once a
    /// flush that began after [`Self::begin_changes`] has ended, that is all of those that were on their way then.
    pub fn note_pending(&mut self) -> Option<()> {
        let changes = self.changes.as_mut()?;
        for release in self.reclaim.pending()? {
            (0..release.count).for_each(|i| changes.touch(release.first.plus(i), false));
        }
        Some(())
    }

    /// Whether the scan has to be done again, because a table that it may have read is no table any more.
    pub fn is_scan_spoiled(&self) -> bool {
        self.changes.as_ref().is_none_or(|changes| changes.spoiled)
    }

    /// Whether all of these clusters have changed since the scan began.
    pub fn have_changed(&self, first: HostCluster, count: ClusterCount) -> bool {
        let Some(changes) = &self.changes else { return false };
        (0..count).all(|i| first.checked_add(i).is_some_and(|cluster| changes.is_touched(cluster)))
    }

    /// Compares the counts of `clusters`, all in one slice of counts, with how often `references` says they are named.
    pub fn judge(
        &mut self,
        clusters: Range<u64>,
        references: impl Fn(HostCluster) -> u64,
    ) -> Asked<Verdict> {
        let mut verdict = Verdict::default();
        let first = HostCluster::new(clusters.start);
        for (cluster, refcount) in self.refs.counts(first, clusters.end - clusters.start)? {
            let reference = references(cluster);
            if (refcount, reference) == (0, 0) {
                continue;
            }
            let changes = self.changes.as_ref();
            if changes.is_none_or(|changes| changes.is_touched(cluster)) {
                // Even where the two agree: that may be by chance. At zero nothing is leaked, and from there on all that
                // this process counts is in order.
                let in_order = refcount == 0 || changes.is_some_and(|c| c.is_claimed(cluster));
                if !in_order {
                    verdict.doubtful.push(cluster);
                }
            } else if refcount > reference {
                verdict.add_leak(cluster, refcount, reference);
            } else if refcount < reference {
                verdict.undercounted.get_or_insert((cluster, refcount, reference));
            }
        }
        Ok(verdict)
    }

    /// Lowers the counts of leaked clusters, all in one slice of counts, to their references, and tells the allocator
    /// which become free. Returns how many were lowered: none that has changed meanwhile.
    pub fn lower(&mut self, leak: &Leak) -> Asked<Result<ClusterCount>> {
        self.refs.get(leak.first)?;
        let free = leak.reference == 0;
        if free && let Err(e) = self.regions.check_clear(leak.first, leak.count) {
            return Ok(Err(e.context("a leaked cluster is in use")));
        }
        let mut lowered = 0;
        for cluster in leak.clusters() {
            let unchanged = self.changes.as_ref().is_some_and(|c| !c.is_touched(cluster));
            if !unchanged || self.refs.get(cluster)? != Some(leak.refcount) {
                continue;
            }
            self.refs.set(cluster, leak.reference)?;
            if free {
                self.freed(cluster);
            }
            lowered += 1;
        }
        Ok(Ok(lowered))
    }

    /// Notes that clusters whose count was zero are claimed.
    pub(super) fn note_claimed(&mut self, run: &Run) {
        if let Some(changes) = &mut self.changes {
            run.clusters().for_each(|cluster| changes.touch(cluster, true));
        }
    }

    /// Notes that something about clusters that are counted changes.
    pub(super) fn note_changed(&mut self, first: HostCluster, count: ClusterCount) {
        if let Some(changes) = &mut self.changes {
            (0..count).for_each(|i| changes.touch(first.plus(i), false));
        }
    }

    /// Notes that a table that was read from the disk is not one any more.
    pub(super) fn note_table_gone(&mut self) {
        if let Some(changes) = &mut self.changes {
            changes.spoiled = true;
        }
    }
}
