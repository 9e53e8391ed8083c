//! Changing the size of the disk: everything that the new size shows, or hides, is made right and durable first, and the
//! header says the new size last, in one sector.
//!
//! ```text
//! grow      a longer L1 table            written beside the old one, durable, then named by the header
//!           zeros behind the old end     where tables had something there or a backing file reaches, and what is
//!                                        to be laid out in advance; durable
//!           the size in the header       durable
//!           a longer data file           where there is an external one; durable
//! shrink    clusters behind the new end  unlinked, and what the image has in the rest of the last one zeroed; durable
//!           a shorter data file          where there is an external one; durable
//!           the size in the header       durable
//!           the unlinked clusters        become free, and so do the tables that cover nothing any more
//! ```
//!
//! So a crash leaves the old size or the new one. A longer L1 table, and zeros behind the end, harm nobody.

use std::sync::atomic::Ordering;

use super::Image;
use super::layer::{Layer, Qcow2};
use super::load::read_snapshots;
use super::options::Preallocation;
use super::zero::{Change, Otherwise};
use crate::addr::{GuestOffset, HostOffset, L1Index, sector_ceil};
use crate::disk::{Disk, Payload};
use crate::error::{Error, Result};
use crate::foreign::raw::NewPart;
use crate::format::header::{Header, Version};
use crate::limits::L1_BYTES_MAX;
use crate::meta::span::Span;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// How a disk is given another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// Whether it may become smaller.
    pub shrink: bool,
    /// What is laid out in advance of the bytes that it grows by.
    pub preallocation: Preallocation,
}

/// What a file that is no qcow2 image gets where it grows.
fn new_part(preallocation: Preallocation) -> Result<NewPart> {
    match preallocation {
        Preallocation::Off => Ok(NewPart::Hole),
        Preallocation::Metadata => {
            Err(Error::unsupported("Unsupported preallocation mode: metadata"))
        }
        Preallocation::Falloc => Ok(NewPart::Reserved),
        Preallocation::Full => Ok(NewPart::Zeros),
    }
}

impl<D: Disk> Image<D> {
    /// As [`Self::resize_as`], with nothing laid out in advance.
    ///
    /// # Errors
    /// As [`Self::resize_as`].
    pub async fn resize(&self, new_size: u64, shrink: bool) -> Result<()> {
        self.resize_as(new_size, &Resize { shrink, preallocation: Preallocation::Off }).await
    }

    /// Makes the disk `new_size` bytes large, rounded up to whole sectors of 512 bytes; a raw image's file may end within
    /// one. New bytes read as zeros, whatever a backing file has there. A disk that becomes smaller loses what lay behind its
    /// new end for good.
    ///
    /// Once it succeeds, it is durable, and so is all that completed before it. A crash before that leaves the old size or
    /// the new one; at the old size, what lies behind the new end may be lost already.
    ///
    /// Meanwhile no discard and no zeroing may be in flight, and of a disk that shrinks nothing behind its new end.
    /// The L1 table of a disk that shrinks keeps its length, and tables that cover nothing any more are given back.
    ///
    /// # Errors
    /// The image is read-only; it would become smaller without `shrink` (`Invalid`); it has a bitmap that
    /// cannot be used, a snapshot that does not say its own size, or a backing file that was not opened (`Unsupported`); its tables would
    /// become too large (`Limit`); or the host failed. Where that leaves open which size the file has, the image takes
    /// no more writes.
    pub async fn resize_as(&self, new_size: u64, how: &Resize) -> Result<()> {
        self.check_change(0, 0)?;
        let named = |e: Error| e.in_file(self.top().path());
        let size = sector_ceil(new_size).ok_or_else(|| named(too_large()))?;
        let _resizing = self.inner.resizing.acquire().await;
        let old = self.virtual_size();
        if new_size < old && !how.shrink {
            return Err(named(Error::invalid(format!(
                "shrinking from {old} to {new_size} bytes deletes what lies behind, and was not asked for (--shrink)"
            ))));
        }
        if size <= old && how.preallocation != Preallocation::Off {
            return Err(named(Error::invalid("Preallocation can only be used for growing images")));
        }
        match self.top() {
            Layer::Raw(raw) => {
                raw.resize(new_size, new_part(how.preallocation).map_err(named)?).await
            }
            Layer::Luks(luks) => {
                luks.raw().resize(new_size, new_part(how.preallocation).map_err(named)?).await
            }
            Layer::Qcow2(_) | Layer::Sealed(_) if size == old => self.flush().await,
            Layer::Sealed(_) if how.preallocation != Preallocation::Off => Err(named(
                Error::unsupported("an authenticated image has nothing laid out in advance"),
            )),
            Layer::Sealed(sealed) => self.resize_sealed(sealed, old, size).await,
            Layer::Qcow2(qcow2) => self.resize_qcow2(qcow2, old, size, how.preallocation).await,
        }
    }

    async fn resize_qcow2(
        &self,
        qcow2: &Qcow2<D>,
        old: u64,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        qcow2.check_resizable(size).await.map_err(|e| qcow2.named(e))?;
        let has_zero_flag = lock(&qcow2.meta).map.has_zero_flag();
        if preallocation != Preallocation::Off && qcow2.is_encrypted() && !has_zero_flag {
            let what = "an encrypted image of version 2 cannot have preallocated clusters";
            return Err(qcow2.named(Error::unsupported(what)));
        }
        if size > old && qcow2.has_backing() && self.layer_count() == 1 {
            let what = "a disk whose backing file is not open cannot grow: it may show through";
            return Err(qcow2.named(Error::unsupported(what)));
        }
        qcow2.prepare_for_change().await?;
        if size > old {
            self.make_ready_to_grow(qcow2, old, size).await?;
            self.lay_out(qcow2, old, size, preallocation).await?;
        } else {
            self.make_ready_to_shrink(qcow2, old, size).await?;
        }
        if !Bug::SizeBeforeZeros.is_seeded() {
            qcow2.write_back().await?;
        }
        if size < old {
            qcow2.set_data_len(size).await?;
        }
        let changing = qcow2.begin_resize_of_bitmaps().await?;
        qcow2.guarded(qcow2.set_size(size)).await?;
        qcow2.end_resize_of_bitmaps(changing).await;
        if size > old && qcow2.has_raw_data() && preallocation != Preallocation::Off {
            let provided =
                qcow2.provide(HostOffset::new(old), size - old, true, preallocation).await;
            provided.map_err(|e| qcow2.named(Error::io("Could not preallocate data", &e)))?;
        }
        if size < old {
            let tables = qcow2.geometry.l1_entries_for(size);
            self.drop_tables(qcow2, L1Index(tables as usize)).await?;
        }
        // What a shrinking has unlinked, or a new L1 table has replaced, becomes free.
        qcow2.write_back().await
    }

    /// Gives what lies between the old and the new end of the disk, all zeros by now, its place in the file.
    async fn lay_out(
        &self,
        qcow2: &Qcow2<D>,
        old: u64,
        new: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        // A raw data file is as long as the disk at every moment: its space is taken when it has grown.
        if preallocation == Preallocation::Off || qcow2.has_raw_data() {
            return Ok(());
        }
        // The cluster that the old end cuts, with what it has in front of it.
        let cut = old.next_multiple_of(qcow2.geometry.cluster_size());
        if cut > old {
            self.write_clusters(qcow2, old, &Payload::zeros(cut - old)).await?;
        }
        self.preallocate(qcow2, cut, new, preallocation).await
    }

    /// Makes the tables reach up to `new`, and all from `old` to there read as zeros.
    async fn make_ready_to_grow(&self, qcow2: &Qcow2<D>, old: u64, new: u64) -> Result<()> {
        let geometry = qcow2.geometry;
        let entries = lock(&qcow2.meta).map.l1().words().len() as u64;
        if geometry.l1_entries_for(new) > entries {
            qcow2.guarded(qcow2.grow_l1(geometry.l1_entries_for(new))).await?;
        }
        qcow2.set_data_len(new).await?;
        if qcow2.has_raw_data() {
            // What its data file has there is what the disk has.
            let first = geometry.guest_cluster(GuestOffset::new(old));
            let end = geometry.clusters_for(new);
            return qcow2.guarded(qcow2.map_in_place(first, end - first.get())).await;
        }
        let backing = self.layers_from(1).first().map_or(0, Layer::virtual_size);
        let end_of_cluster =
            |at: u64| at.next_multiple_of(geometry.cluster_size()).min(qcow2.end_of_zeros(new));
        if backing > old && qcow2.can_map_zeros() {
            return self.hide_backing(qcow2, old, end_of_cluster(new)).await;
        }
        // What the old tables do not reach and no backing file has is nowhere.
        let reached = geometry.bytes(entries * geometry.l2_entries()).max(backing);
        let end = end_of_cluster(new.min(reached));
        self.zero_what_shows(qcow2, old, end, self.layer_count()).await
    }

    /// Makes the image itself say that zeros are from `old`, the end of the disk, to `end`, whatever a backing file has there:
    /// as QEMU does, also where it has nothing now.
    async fn hide_backing(&self, qcow2: &Qcow2<D>, old: u64, end: u64) -> Result<()> {
        if Bug::GrowthShowsBacking.is_seeded() {
            return Ok(());
        }
        let mapped = old.next_multiple_of(qcow2.geometry.subcluster_size()).min(end);
        if mapped > old {
            self.write_clusters(qcow2, old, &Payload::zeros(mapped - old)).await?;
        }
        self.zero_range(qcow2, mapped, end - mapped, true, Otherwise::Write).await
    }

    /// Unlinks the clusters from `new` to `old`, and makes what the image itself has in the rest of the cluster that `new`
    /// cuts read as zeros: a disk that grows again, here or elsewhere, shows it. What a backing file has there is left to
    /// that growth, which hides it.
    async fn make_ready_to_shrink(&self, qcow2: &Qcow2<D>, old: u64, new: u64) -> Result<()> {
        let cut = new.next_multiple_of(qcow2.geometry.cluster_size());
        self.zero_what_shows(qcow2, new, cut.min(qcow2.end_of_zeros(old)), 1).await?;
        let first = qcow2.geometry.guest_cluster(GuestOffset::new(cut));
        let count = qcow2.geometry.clusters_for(old.saturating_sub(cut));
        let behind = Span::of_clusters(qcow2.geometry, first, count);
        self.change_span(qcow2, behind, Change::Unlink).await
    }

    /// Makes what the first `layers` of the chain have from `start` to `end`, where a cluster or the data file ends, read as
    /// zeros.
    async fn zero_what_shows(
        &self,
        qcow2: &Qcow2<D>,
        start: u64,
        end: u64,
        layers: usize,
    ) -> Result<()> {
        let mut at = start;
        while at < end {
            let source = {
                let _inside = self.enter();
                self.resolve(0, at, end - at).await?
            };
            let shows = source.depth < layers && !source.content.reads_as_zeros();
            if shows && !Bug::GrowthShowsBacking.is_seeded() {
                self.zero_range(qcow2, at, source.len, true, Otherwise::Write).await?;
            }
            at += source.len;
        }
        Ok(())
    }
}

impl<D: Disk> Qcow2<D> {
    /// Where zeros have to end, on a disk that is `size` bytes large at most: an external data file does not become longer
    /// than the disk, or a power cut could leave it so, with anything behind the disk's end for a growth to show.
    fn end_of_zeros(&self, size: u64) -> u64 {
        if self.data.is_some() { size } else { u64::MAX }
    }

    /// Fails where `size` is beyond a limit, or somebody else relies on the size being what it is.
    async fn check_resizable(&self, size: u64) -> Result<()> {
        if self.geometry.l1_entries_for(size) * 8 > L1_BYTES_MAX {
            return Err(too_large());
        }
        let header = lock(&self.header).clone();
        if header.version == Version::V2 && header.snapshot_count > 0 {
            return Err(Error::unsupported("Can't resize a v2 image which has snapshots"));
        }
        self.check_bitmaps_resizable(size)?;
        let file_len = self.disk.len().map_err(|e| Error::io("find the length", &e))?;
        let (now, _) = read_snapshots(&self.disk, &header, file_len).await?;
        let (then, _) = read_snapshots(&self.disk, &Header { size, ..header }, file_len).await?;
        if now != then {
            return Err(Error::unsupported("a snapshot does not say its own size"));
        }
        Ok(())
    }

    /// Goes on with an L1 table of `entries`, more than now, which is written beside the old one.
    async fn grow_l1(&self, entries: u64) -> Result<()> {
        // So that a recovery of leaks waits until these claims are linked.
        let _inside = self.drain.enter();
        let clusters = self.geometry.clusters_for(entries * 8);
        let claimed = self.claim_row(clusters).await?;
        let (first, offset) = (claimed.run().first, self.geometry.host_start(claimed.run().first));
        let _structure = self.structure.acquire().await;
        // What is flushed while the new table is being written would be missing there.
        let mut words = Vec::new();
        let _alone = self.flush_alone(|meta| words = meta.map.l1().words().to_vec()).await?;
        words.resize(entries as usize, 0);
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.resize(self.geometry.bytes(clusters) as usize, 0);
        self.write_new(first, &bytes).await?;
        if !Bug::NoBarrierBeforeLongerL1.is_seeded() {
            self.barrier().await?;
        }
        // From here on the header may name them.
        claimed.keep();
        let (l1_size, l1_table_offset) = (entries as u32, offset);
        let header = Header { l1_size, l1_table_offset, ..lock(&self.header).clone() };
        self.commit_header(header).await?;
        lock(&self.meta).switch_l1(self.geometry, offset, words)
    }

    async fn set_size(&self, size: u64) -> Result<()> {
        let _structure = self.structure.acquire().await;
        lock(&self.meta).check_writable()?;
        self.resize_bitmaps(size);
        let header = Header { size, ..lock(&self.header).clone() };
        self.commit_header(header).await?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

fn too_large() -> Error {
    Error::limit("The image size is too large (try using a larger cluster size)")
}
