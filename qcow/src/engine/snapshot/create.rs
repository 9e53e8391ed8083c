//! Keeping the disk as it is now: the active L1 table becomes the snapshot's, and the disk goes on with a copy of it in which
//! every table is shared.

use std::ffi::OsStr;
use std::time::Duration;

use super::Target;
use super::change::Change;
use super::settle::Flags;
use crate::addr::HostOffset;
use crate::disk::Disk;
use crate::engine::Image;
use crate::error::{Error, Result};
use crate::format::snapshot::SnapshotEntry;
use crate::limits::SNAPSHOT_COUNT_MAX;
use crate::meta::settle::trees::{Trees, without_flags};
use crate::meta::snapshot::next_id;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Keeps the disk as it is now, and whatever the tables hold behind its end, as an internal snapshot called `name`, taken
    /// so long after 1970. Names need not be unique. Once it succeeds, it is durable, and so is all that completed before.
    /// Interrupted at any point, it has happened or not.
    ///
    /// No request may be in flight until it returns.
    ///
    /// # Errors
    /// The image is read-only, in use, or damaged; it is raw or has an external data file (`Unsupported`); it has as many
    /// snapshots as it can have (`Limit`); the image's refcounts are too narrow, or the name is too long (`Invalid`); or
    /// the host failed.
    pub async fn create_snapshot(&self, name: &OsStr, date: Duration) -> Result<SnapshotEntry> {
        self.keep_disk(|snapshots, disk_size| SnapshotEntry {
            l1_table_offset: HostOffset::new(0),
            l1_size: 0,
            id: next_id(snapshots),
            name: name.to_owned(),
            date_seconds: u32::try_from(date.as_secs()).unwrap_or(u32::MAX),
            date_nanoseconds: date.subsec_nanos(),
            vm_clock_nanoseconds: 0,
            vm_state_size: 0,
            disk_size,
            // What qemu-img says of a disk that no machine was running on.
            icount: Some(0),
            unknown_extra: Vec::new(),
        })
        .await
    }

    /// As [`Self::create_snapshot`], with all that `model`, a snapshot of another image, says of itself: its id and dates, how
    /// long the disk was, and how long the VM state that has been written behind it
    /// ([`Self::vm_state_start`]).
    ///
    /// # Errors
    /// As [`Self::create_snapshot`].
    pub async fn create_snapshot_like(&self, model: &SnapshotEntry) -> Result<SnapshotEntry> {
        self.keep_disk(|_, _| model.clone()).await
    }

    /// Keeps the disk as the snapshot that `entry` makes of those there are and of the disk's size, but for where its L1 table
    /// is.
    async fn keep_disk(
        &self,
        entry: impl FnOnce(&[SnapshotEntry], u64) -> SnapshotEntry,
    ) -> Result<SnapshotEntry> {
        let target = self.snapshot_target()?;
        let _resizing = self.inner.resizing.acquire().await;
        let qcow2 = match target {
            Target::Qcow2(qcow2) => qcow2,
            Target::Sealed(sealed) => return sealed.create_snapshot(entry).await,
        };
        let mut snapshots = qcow2.read_snapshots().await?;
        if snapshots.len() >= SNAPSHOT_COUNT_MAX as usize {
            let what = format!("the image has {SNAPSHOT_COUNT_MAX} snapshots and cannot have more");
            return Err(qcow2.named(Error::limit(what)));
        }
        qcow2.quiesce().await?;
        let (header, l1) = {
            let header = lock(&qcow2.header).clone();
            (header, lock(&qcow2.meta).map.l1().words().to_vec())
        };
        let entry = SnapshotEntry {
            l1_table_offset: header.l1_table_offset,
            l1_size: l1.len() as u32,
            ..entry(&snapshots, header.virtual_size())
        };
        snapshots.push(entry.clone());
        let mut trees = Trees::default();
        trees.add(qcow2.geometry, &l1, 1)?;
        trees.activate(qcow2.geometry, &l1)?;
        let change = Change {
            trees,
            flags: Flags::Clear,
            snapshots: Some(snapshots),
            l1: Some(without_flags(qcow2.geometry, &l1)?),
            size: header.size,
            dropped: Vec::new(),
        };
        self.change_snapshots(qcow2, change).await?;
        Ok(entry)
    }
}
