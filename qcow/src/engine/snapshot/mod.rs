//! Internal snapshots: earlier states of the disk that live in the image's own file.

use super::Image;
use super::layer::{Layer, Qcow2};
use super::load::read_snapshots;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::snapshot::SnapshotEntry;
use crate::sync::lock;

mod view;

pub(super) use view::DiskThen;
pub use view::NOT_LOADED;

impl<D: Disk> Image<D> {
    /// The internal snapshots of the top image, in the order of their table. A raw image has none.
    ///
    /// # Errors
    /// The table is damaged or cannot be read.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotEntry>> {
        match self.top() {
            Layer::Qcow2(qcow2) => qcow2.read_snapshots().await,
            Layer::Raw(_) => Ok(Vec::new()),
        }
    }
}

impl<D: Disk> Qcow2<D> {
    async fn read_snapshots(&self) -> Result<Vec<SnapshotEntry>> {
        let header = lock(&self.header).clone();
        let file_len = self.disk.len().map_err(|e| Error::io("find the length", &e))?;
        let read = read_snapshots(&self.disk, &header, file_len).await;
        read.map(|(entries, _)| entries).map_err(|e| self.named(e))
    }
}
