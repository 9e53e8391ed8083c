//! Forgetting a snapshot: what it alone referred to becomes free.

use super::change::Change;
use super::settle::Flags;
use super::{Target, not_found};
use crate::disk::Disk;
use crate::engine::Image;
use crate::engine::layer::Qcow2;
use crate::engine::load::read_words;
use crate::error::{Error, Result};
use crate::format::snapshot::SnapshotEntry;
use crate::meta::Run;
use crate::meta::settle::trees::Trees;
use crate::meta::snapshot::SnapshotChoice;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Deletes an internal snapshot for good. Once it succeeds, that is durable. Interrupted at any point, it has happened
    /// or not.
    ///
    /// No request may be in flight until it returns.
    ///
    /// # Errors
    /// There is no such snapshot (`NotFound`); the image is read-only, in use, damaged, raw or has an external data file; or
    /// the host failed.
    pub async fn delete_snapshot(&self, which: &SnapshotChoice) -> Result<()> {
        let target = self.snapshot_target()?;
        let _resizing = self.inner.resizing.acquire().await;
        let qcow2 = match target {
            Target::Qcow2(qcow2) => qcow2,
            Target::Sealed(sealed) => return sealed.delete_snapshot(which).await,
        };
        let mut snapshots = qcow2.read_snapshots().await?;
        let index = which.find(&snapshots).ok_or_else(|| qcow2.named(not_found(which)))?;
        let snapshot = snapshots.remove(index);
        qcow2.quiesce().await?;
        let then = qcow2.read_snapshot_l1(&snapshot).await?;
        let now = lock(&qcow2.meta).map.l1().words().to_vec();
        let mut trees = Trees::default();
        trees.add(qcow2.geometry, &then, -1)?;
        trees.activate(qcow2.geometry, &now)?;
        let change = Change {
            trees,
            flags: Flags::ByCount,
            snapshots: Some(snapshots),
            l1: None,
            size: lock(&qcow2.header).size,
            dropped: qcow2.l1_clusters(snapshot.l1_table_offset, then.len()).into_iter().collect(),
        };
        self.change_snapshots(qcow2, change).await
    }
}

impl<D: Disk> Qcow2<D> {
    /// The entries of the L1 table of `snapshot`.
    pub(super) async fn read_snapshot_l1(&self, snapshot: &SnapshotEntry) -> Result<Vec<u64>> {
        let file_len = self.disk.len().map_err(|e| Error::io("find the length", &e))?;
        snapshot.check_l1(self.geometry, file_len).map_err(|e| self.named(e))?;
        let (at, entries) = (snapshot.l1_table_offset, snapshot.l1_size.into());
        let read = read_words(&self.disk, at, entries, "Snapshot L1 table").await;
        read.map_err(|e| self.named(e))
    }

    /// The clusters of an L1 table of so many entries.
    pub(super) fn l1_clusters(
        &self,
        offset: crate::addr::HostOffset,
        entries: usize,
    ) -> Option<Run> {
        let (first, count) = self.geometry.host_span(offset, entries as u64 * 8);
        (entries > 0).then_some(Run { first, count, fresh: false })
    }
}
