//! Internal snapshots: roots that are kept.
//!
//! Taking one is a flush whose details name the root's own top node. Going back to one is a flush of its top node. One that goes
//! is no longer named, and what only it led to is found by a sweep.

use std::sync::atomic::{AtomicBool, Ordering};

use super::flush::Change;
use super::{Sealed, State};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::sealed::details::{Details, SealedSnapshot};
use crate::format::sealed::root::Root;
use crate::format::snapshot::SnapshotEntry;
use crate::limits::SNAPSHOT_COUNT_MAX;
use crate::meta::snapshot::SnapshotChoice;
use crate::sync::lock;

/// The place of the snapshot that is meant.
pub(super) fn find(details: &Details, which: &SnapshotChoice) -> Result<usize> {
    let entries: Vec<_> = details.snapshots.iter().map(|s| s.entry.clone()).collect();
    which.find(&entries).ok_or_else(|| crate::engine::snapshot::not_found(which))
}

impl<D: Disk> Sealed<D> {
    /// The snapshots, in the order in which they came.
    pub fn snapshots(&self) -> Vec<SnapshotEntry> {
        lock(&self.state).details.snapshots.iter().map(|s| s.entry.clone()).collect()
    }

    /// Keeps the disk as it is, as the snapshot that `entry` makes of those there are and the disk's size.
    pub async fn create_snapshot(
        &self,
        entry: impl FnOnce(&[SnapshotEntry], u64) -> SnapshotEntry,
    ) -> Result<SnapshotEntry> {
        let entries = self.snapshots();
        if entries.len() >= SNAPSHOT_COUNT_MAX as usize {
            let what = format!("the image has {SNAPSHOT_COUNT_MAX} snapshots and cannot have more");
            return Err(self.named(Error::limit(what)));
        }
        let entry = entry(&entries, self.size());
        if entry.vm_state_size > 0 {
            let what = "an authenticated image keeps no VM state with its snapshots";
            return Err(self.named(Error::unsupported(what)));
        }
        let kept = entry.clone();
        let keep = |details: &mut Details, root: &Root| {
            let (top, levels, generation) = (root.top, root.levels, root.generation);
            details.snapshots.push(SealedSnapshot { entry: kept, top, levels, generation });
        };
        let change = Change { before: Box::new(|_| ()), details: Box::new(keep), keeps_root: true };
        self.write_root(Some(change)).await?;
        Ok(entry)
    }

    /// Makes the disk what it was at a snapshot. No request may be in flight.
    pub async fn apply_snapshot(&self, which: &SnapshotChoice) -> Result<()> {
        self.check_unused()?;
        // So that nothing is captured that the other tree does not have.
        self.flush().await?;
        let snapshot = {
            let state = lock(&self.state);
            let found = find(&state.details, which).map_err(|e| self.named(e))?;
            state.details.snapshots[found].clone()
        };
        let size = snapshot.entry.disk_size;
        let go_back = |state: &mut State| state.tree.replace(snapshot.top, snapshot.levels, size);
        let change =
            Change { before: Box::new(go_back), details: Box::new(|_, _| ()), keeps_root: false };
        if let Err(e) = self.write_root(Some(change)).await {
            // The tree in memory is the snapshot's, and the file may say the other.
            return Err(self.fail(e.context("the snapshot could not be applied")));
        }
        self.size.store(size, Ordering::Release);
        self.store_size().await?;
        self.sweep_after_snapshot().await
    }

    /// Forgets a snapshot.
    pub async fn delete_snapshot(&self, which: &SnapshotChoice) -> Result<()> {
        self.check_unused()?;
        let id = {
            let state = lock(&self.state);
            find(&state.details, which).map_err(|e| self.named(e))?
        };
        let forget = |details: &mut Details, _: &Root| drop(details.snapshots.remove(id));
        let change =
            Change { before: Box::new(|_| ()), details: Box::new(forget), keeps_root: false };
        self.write_root(Some(change)).await?;
        self.sweep_after_snapshot().await
    }

    /// Frees what nothing leads to any more. Where that fails, the snapshot is gone all the same.
    async fn sweep_after_snapshot(&self) -> Result<()> {
        lock(&self.state).has_strays = true;
        if let Err(e) = self.sweep(&AtomicBool::new(false)).await {
            tracing::warn!("what the snapshot took is not free yet: {e}");
        }
        Ok(())
    }

    fn check_unused(&self) -> Result<()> {
        match self.drain.is_empty() && lock(&self.state).busy.is_empty() {
            true => Ok(()),
            false => Err(self.named(crate::engine::snapshot::in_use())),
        }
    }
}
