//! Internal snapshots: earlier states of the disk that live in the image's own file.
//!
//! A snapshot is an L1 table of its own; what it leads to is shared with the active table, and counted for both.
//! [`create`], [`apply`] and [`delete`] decide what is to become of the tables, [`change`] carries it out, [`settle`]
//! works out the counts and COPIED flags that follow. [`view`] is for reading a snapshot.
//!
//! The verbs have the image to themselves: while one runs, no request may be in flight.

use super::Image;
use super::layer::{Layer, Qcow2};
use super::load::read_snapshots;
use super::options::Discard;
use super::sealed::Sealed;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::feature::Incompatible;
use crate::format::snapshot::SnapshotEntry;
use crate::meta::Run;
use crate::meta::snapshot::SnapshotChoice;
use crate::sync::lock;

mod apply;
pub(super) mod batch;
mod change;
mod create;
mod delete;
mod settle;
mod view;

use change::Change;

pub(super) use view::DiskThen;
pub use view::NOT_LOADED;

/// Rounds of flushing after which something that is still on its way must belong to a request in flight.
const ROUNDS_MAX: u32 = 8;

/// An image whose snapshots may be changed.
enum Target<'a, D: Disk> {
    Qcow2(&'a Qcow2<D>),
    Sealed(&'a Sealed<D>),
}

impl<D: Disk> Image<D> {
    /// The internal snapshots of the top image, in the order of their table. A raw image has none.
    ///
    /// # Errors
    /// The table is damaged or cannot be read.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotEntry>> {
        match self.top() {
            Layer::Qcow2(qcow2) => qcow2.read_snapshots().await,
            Layer::Sealed(sealed) => Ok(sealed.snapshots()),
            Layer::Raw(_) | Layer::Luks(_) => Ok(Vec::new()),
        }
    }

    /// The byte behind a disk of `disk_size` bytes of this image where the VM state of its snapshots starts; a raw image has
    /// none.
    pub fn vm_state_start(&self, disk_size: u64) -> Option<u64> {
        match self.top() {
            Layer::Qcow2(qcow2) => Some(view::vm_state_start(qcow2.geometry, disk_size)),
            Layer::Sealed(_) | Layer::Raw(_) | Layer::Luks(_) => None,
        }
    }

    /// The image, if its snapshots may be changed.
    fn snapshot_target(&self) -> Result<Target<'_, D>> {
        self.check_change(0, 0)?;
        let named = |e: Error| e.in_file(self.top().path());
        let qcow2 = match self.top() {
            Layer::Qcow2(qcow2) => qcow2,
            Layer::Sealed(sealed) => return Ok(Target::Sealed(sealed)),
            Layer::Raw(_) | Layer::Luks(_) => {
                return Err(named(Error::unsupported("a raw image has no internal snapshots")));
            }
        };
        if lock(&qcow2.header).incompatible.contains(Incompatible::EXTERNAL_DATA) {
            let what = "an image with an external data file cannot have internal snapshots";
            return Err(named(Error::unsupported(what)));
        }
        Ok(Target::Qcow2(qcow2))
    }

    /// Carries out `change`, and gives the host the space of what has become free.
    async fn change_snapshots(&self, qcow2: &Qcow2<D>, change: Change) -> Result<()> {
        let freed = qcow2.guarded(qcow2.carry_out_change(change)).await?;
        if self.inner.options.discard == Discard::Unmap {
            for Run { first, count, .. } in freed {
                // Nobody has been able to claim them yet.
                qcow2.punch(first, count).await;
            }
        }
        Ok(())
    }
}

impl<D: Disk> Qcow2<D> {
    async fn read_snapshots(&self) -> Result<Vec<SnapshotEntry>> {
        self.read_snapshot_table().await.map(|(entries, _)| entries)
    }

    /// The internal snapshots, and how many bytes their table takes.
    pub(super) async fn read_snapshot_table(&self) -> Result<(Vec<SnapshotEntry>, u64)> {
        let header = lock(&self.header).clone();
        let file_len = self.disk.len().map_err(|e| self.named(Error::io("find the length", &e)))?;
        read_snapshots(&self.disk, &header, file_len).await.map_err(|e| self.named(e))
    }

    /// Makes the header fit for a change, and everything durable; fails where the image is in use.
    async fn quiesce(&self) -> Result<()> {
        self.check_unused()?;
        self.guarded(self.prepare_header()).await?;
        if !self.is_settled() {
            self.come_to_rest().await?;
        }
        Ok(())
    }

    /// Makes everything durable, and frees all that is on its way to being free.
    async fn come_to_rest(&self) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            self.write_back().await?;
            if self.is_settled() {
                return self.check_unused();
            }
        }
        Err(self.named(in_use()))
    }

    fn check_unused(&self) -> Result<()> {
        let meta = lock(&self.meta);
        if self.drain.is_empty() && !meta.is_scanned() {
            return Ok(());
        }
        Err(self.named(in_use()))
    }
}

pub(super) fn in_use() -> Error {
    Error::invalid("the image is in use: its snapshots change only while nothing else is going on")
}

pub(super) fn not_found(which: &SnapshotChoice) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no snapshot with {which}"))
}
