//! The external data file of an image: guest data in a file of its own, each byte at its guest offset.
//!
//! A cluster has one place there whatever becomes of it, so nothing is claimed, counted or handed to somebody else, and
//! what the file holds where nothing is mapped means nothing. What stays of the order of a flush is that data is durable
//! before the mapping that names it: every flush syncs the data file before it writes a table.
//!
//! A *raw* data file equals the disk at all times, for readers who do not look at the tables. So zeros and discards
//! reach its bytes, in the face of nobody who writes there; and where nothing is mapped yet, zeros are mapped and
//! durable before a write goes to their place.

use std::path::{Path, PathBuf};

use super::layer::Qcow2;
use super::options::{Discard, OpenOptions};
use super::reclaim::Freeing;
use super::write::Hold;
use super::zero::Change;
use crate::addr::{GuestCluster, HostCluster, HostOffset};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::feature::Autoclear;
use crate::format::header::Header;
use crate::gate::Gate;
use crate::meta::map::DataPlace;
use crate::meta::plan::{ChangeStep, Held, PunchStep};
use crate::meta::span::Span;
use crate::sync::lock;

/// An open external data file.
#[derive(Debug)]
pub(super) struct DataFile<D: Disk> {
    pub disk: D,
    pub path: PathBuf,
    /// Whether it equals the disk at all times.
    pub raw: bool,
}

impl<D: Disk> DataFile<D> {
    /// Opens the data file of the image at `path`, if that has one. `chosen` is the user's, in place of the image's.
    pub async fn open<G: Gate<Disk = D>>(
        gate: &G,
        path: &Path,
        header: &Header,
        chosen: Option<&Path>,
        writable: bool,
    ) -> Result<Option<Self>> {
        if !header.has_external_data() {
            if chosen.is_some() {
                return Err(Error::invalid(
                    "'data-file' can only be set for images with an external data file",
                ));
            }
            if header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA) {
                return Err(Error::corrupt("data-file-raw requires a data file"));
            }
            return Ok(None);
        }
        let name = header.extensions.data_file.as_ref().filter(|name| !name.is_empty());
        let (path, disk) = match (chosen, name) {
            (Some(chosen), _) => (chosen.to_owned(), gate.open_image(chosen, writable)?),
            (None, Some(name)) => gate.open_data(path, name, writable)?,
            (None, None) => {
                return Err(Error::invalid("'data-file' is required for this image"));
            }
        };
        Ok(Some(Self { disk, path, raw: header.has_raw_external_data() }))
    }

    /// Where the data of an image lies that has this data file, or none.
    pub fn place_of(data: Option<&Self>) -> DataPlace {
        match data {
            None => DataPlace::Image,
            Some(Self { raw: false, .. }) => DataPlace::External,
            Some(Self { raw: true, .. }) => DataPlace::RawExternal,
        }
    }
}

/// The data file that the options name for an image, of which only the top one can have one named.
pub(super) fn chosen(options: &OpenOptions, top: bool) -> Option<&Path> {
    options.data_file.as_deref().filter(|_| top)
}

impl<D: Disk> Qcow2<D> {
    /// The file that holds guest data.
    pub(super) fn data_disk(&self) -> &D {
        self.data.as_ref().map_or(&self.disk, |data| &data.disk)
    }

    /// The path of [`Self::data_disk`].
    pub(super) fn data_path(&self) -> &Path {
        self.data.as_ref().map_or(&self.path, |data| &data.path)
    }

    /// Whether guest data lies in a raw external file.
    pub(super) fn has_raw_data(&self) -> bool {
        self.data.as_ref().is_some_and(|data| data.raw)
    }

    /// Makes durable what has been written to the external data file, if there is one; after a failure the image takes no
    /// more writes.
    pub(super) async fn sync_data(&self) -> Result<()> {
        match &self.data {
            Some(data) if self.flushes => {
                let synced = data.disk.sync().await;
                synced.map_err(|e| self.lose_flush(&data.path, &e))
            }
            _ => Ok(()),
        }
    }

    /// Makes an external data file that is shorter than the disk as long as that, durably: a write behind the end of a
    /// file may leave anything before it after a power cut.
    pub(super) async fn fit_data_file(&self, size: u64) -> Result<()> {
        let Some(data) = &self.data else { return Ok(()) };
        let len = data.disk.len().map_err(|e| data.failed("find the length", &e))?;
        if len < size {
            self.set_data_len(size).await?;
        }
        Ok(())
    }

    /// Cuts or extends the external data file, if there is one, and makes that durable.
    pub(super) async fn set_data_len(&self, len: u64) -> Result<()> {
        let Some(data) = &self.data else { return Ok(()) };
        let resized = data.disk.set_len(len).await;
        resized.map_err(|e| data.failed(&format!("make the file {len} bytes long"), &e))?;
        self.sync_data().await
    }

    /// Makes held clusters of a raw data file, as far as they lie below `size`, read as zeros there.
    pub(super) async fn zero_held(
        &self,
        held: &Held,
        size: u64,
        change: Change,
        discard: Discard,
    ) -> Result<()> {
        let Some(data) = self.data.as_ref().filter(|data| data.raw) else { return Ok(()) };
        let at = self.geometry.subcluster_start(held.span.first).get();
        let len = held.span.end_offset(self.geometry).get().min(size).saturating_sub(at);
        if len == 0 {
            return Ok(());
        }
        let start = HostOffset::new(at);
        let zeroed = match change != Change::Zero && discard == Discard::Unmap {
            true => data.disk.unmap_zeroes(start, len).await,
            false => data.disk.write_zeroes(start, len).await,
        };
        zeroed.map_err(|e| data.failed(&format!("write zeroes at {start}"), &e))
    }

    /// Maps held clusters of a raw data file, which read as zeros, to their places there, durably: from then on a write
    /// goes there in place, and whatever a crash leaves of it, the file equals the disk.
    pub(super) async fn map_zeros(&self, hold: Hold<'_, D>, size: u64) -> Result<()> {
        self.zero_held(&hold.held, size, Change::Zero, Discard::Ignore).await?;
        self.sync_data().await?;
        let own = HostCluster::new(hold.held.first.get());
        let linked = lock(&self.meta).link_held(self.geometry, &hold.held, own, hold.held.span);
        linked.map_err(|e| self.named(e))?;
        self.flush_metadata().await
    }

    /// Maps `count` clusters from `first` on, whatever their places in a raw data file hold.
    pub(super) async fn map_in_place(&self, first: GuestCluster, count: u64) -> Result<()> {
        let mut left = Span::of_clusters(self.geometry, first, count);
        while left.count > 0 {
            let next = self.geometry.cluster_of(left.first);
            match self.ask(|meta| meta.plan_change(self.geometry, left)).await? {
                ChangeStep::Busy(busy) => self.wait_until_free(busy).await,
                ChangeStep::Table(l1) => self.make_table(l1).await?,
                ChangeStep::Indivisible { .. } => {
                    unreachable!("whole clusters are changed, and none of them is compressed")
                }
                ChangeStep::NoTable { .. } => {
                    self.make_table(self.geometry.l1_index(next)).await?;
                }
                ChangeStep::Held(held) => {
                    let hold = Hold { image: self, held };
                    let own = HostCluster::new(next.get());
                    let linked = lock(&self.meta).link_held(self.geometry, &held, own, held.span);
                    linked.map_err(|e| self.named(e))?;
                    self.make_up_for_redo().await?;
                    left = left.after(held.span.count);
                    drop(hold);
                }
            }
            if lock(&self.meta).wants_flush() {
                self.write_back().await?;
            }
        }
        Ok(())
    }

    /// Gives the space of discarded clusters of an external data file back to the host. What is in use again, or cannot be
    /// given back, keeps its space: nothing else is lost.
    pub(super) async fn punch_data(&self) {
        let Some(data) = &self.data else { return };
        let Some(drained) = lock(&self.meta).punches.begin(&self.drain) else { return };
        let mut freeing = Freeing { image: self, left: drained, of: |meta| &mut meta.punches };
        while let Some(next) = freeing.left.next() {
            let first = GuestCluster::new(next.first.get());
            let step = self.ask(|meta| meta.plan_punch(self.geometry, first, next.count));
            let count = match step.await {
                Ok(PunchStep::Skip { count }) => count,
                Ok(PunchStep::Held(held)) => {
                    let hold = Hold { image: self, held };
                    let start = HostOffset::new(self.geometry.guest_start(first).get());
                    let len = self.geometry.bytes(hold.held.count);
                    if let Err(e) = data.disk.punch_hole(start, len).await {
                        tracing::warn!("{}: punch a hole at {start}: {e}", data.path.display());
                    }
                    hold.held.count
                }
                Err(e) => {
                    tracing::warn!("cannot give space back: {e}");
                    1
                }
            };
            freeing.left.piece(count).punched().released();
        }
    }
}

impl<D: Disk> DataFile<D> {
    fn failed(&self, what: &str, error: &std::io::Error) -> Error {
        Error::io(what, error).in_file(&self.path)
    }
}

/// What of a raw data file is being written in place, released when dropped.
pub(super) struct WrittenHold<'a, D: Disk> {
    pub image: &'a Qcow2<D>,
    pub written: Span,
}

impl<D: Disk> Drop for WrittenHold<'_, D> {
    fn drop(&mut self) {
        lock(&self.image.meta).release_written(self.written);
        self.image.changed.wake_all();
    }
}
