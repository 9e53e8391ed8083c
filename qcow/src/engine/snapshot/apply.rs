//! Going back to a snapshot: the disk goes on with a copy of the snapshot's L1 table, with the size it had then.

use super::change::Change;
use super::settle::Flags;
use super::{Target, not_found};
use crate::addr::Geometry;
use crate::disk::Disk;
use crate::engine::Image;
use crate::error::{Error, ErrorKind, Result};
use crate::format::feature::Autoclear;
use crate::format::header::{Header, Version};
use crate::format::snapshot::SnapshotEntry;
use crate::limits::{L1_BYTES_MAX, SECTOR_BYTES};
use crate::meta::settle::trees::{Trees, without_flags};
use crate::meta::snapshot::SnapshotChoice;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Makes the disk what it was at an internal snapshot, its size included; the snapshot stays. What has been written since
    /// is lost, unless another snapshot has it. Once it succeeds, that is durable. Interrupted at any point, it has happened
    /// or not.
    ///
    /// No request may be in flight until it returns.
    ///
    /// # Errors
    /// There is no such snapshot (`NotFound`); the image has persistent bitmaps (`Denied`); the disk had another size and
    /// cannot have it now (`Unsupported` in version 2, `Invalid`, `Limit`); the image is read-only, in use, damaged, raw or has
    /// an external data file; its refcounts are too narrow (`Invalid`); or the host failed.
    pub async fn apply_snapshot(&self, which: &SnapshotChoice) -> Result<()> {
        let target = self.snapshot_target()?;
        let _resizing = self.inner.resizing.acquire().await;
        let qcow2 = match target {
            Target::Qcow2(qcow2) => qcow2,
            Target::Sealed(sealed) => return sealed.apply_snapshot(which).await,
        };
        let header = lock(&qcow2.header).clone();
        if header.autoclear.contains(Autoclear::BITMAPS) {
            let what = "Device has active dirty bitmaps";
            return Err(qcow2.named(Error::new(ErrorKind::Denied, what)));
        }
        let snapshots = qcow2.read_snapshots().await?;
        let index = which.find(&snapshots).ok_or_else(|| qcow2.named(not_found(which)))?;
        let snapshot = &snapshots[index];
        let size = size_after(&header, snapshot).map_err(|e| qcow2.named(e))?;
        qcow2.quiesce().await?;
        let mut then = qcow2.read_snapshot_l1(snapshot).await?;
        let now = lock(&qcow2.meta).map.l1().words().to_vec();
        let geometry = qcow2.geometry;
        let mut trees = Trees::default();
        trees.add(geometry, &then, 1)?;
        trees.add(geometry, &now, -1)?;
        trees.activate(geometry, &then)?;
        let needed = geometry.l1_entries_for(size) as usize;
        then.resize(then.len().max(needed), 0);
        let change = Change {
            trees,
            flags: Flags::Clear,
            snapshots: None,
            l1: Some(without_flags(geometry, &then)?),
            size,
            dropped: qcow2.l1_clusters(header.l1_table_offset, now.len()).into_iter().collect(),
        };
        self.change_snapshots(qcow2, change).await
    }
}

/// The size that the header states once the disk is what it was at `snapshot`.
fn size_after(header: &Header, snapshot: &SnapshotEntry) -> Result<u64> {
    let (geometry, size): (Geometry, u64) = (header.geometry(), snapshot.disk_size);
    if size == header.virtual_size() {
        return Ok(header.size);
    }
    if header.version == Version::V2 {
        return Err(Error::unsupported("Can't resize a v2 image which has snapshots"));
    }
    if !size.is_multiple_of(SECTOR_BYTES) {
        return Err(Error::invalid("The new size must be a multiple of 512"));
    }
    if geometry.l1_entries_for(size) > L1_BYTES_MAX / 8 {
        return Err(Error::limit("The image size is too large (try using a larger cluster size)"));
    }
    Ok(size)
}
