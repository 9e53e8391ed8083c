//! Writing compressed clusters: whole ones, to where nothing lies yet, packed back to back.
//!
//! Compressing takes nothing but time ([`Image::pack`]), and so can be done for many parts of a disk at once, on any
//! thread. Storing what came of it ([`Image::write_packed`]) claims room in the file in the order of the calls.

use std::cell::RefCell;
use std::ops::Range;

use super::Image;
use super::layer::{Layer, Qcow2};
use super::options::DetectZeroes;
use super::write::Hold;
use crate::addr::{GuestCluster, GuestOffset};
use crate::codec::{Compressor, Level};
use crate::disk::{Buffer, Disk, Payload};
use crate::encrypted::Stored;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::try_join_all;
use crate::format::compression::CompressionType;
use crate::format::entry::CompressedExtent;
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::Run;
use crate::meta::pack::{PackStep, PackedClaim};
use crate::meta::span::Span;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Bytes that are compressed before they are stored.
const BATCH_LEN: u64 = 4 << 20;

thread_local! {
    /// Contexts are large and slow to make: one set for each thread.
    static COMPRESSOR: RefCell<Compressor> = RefCell::new(Compressor::new());
}

/// Consecutive clusters of a disk, compressed.
#[derive(Debug)]
pub struct Packed {
    pub(super) at: u64,
    /// What they hold.
    pub(super) plain: Payload,
    /// The same in compressed form, one cluster behind the other.
    pub(super) bytes: Vec<u8>,
    /// Where in `bytes` each cluster is; `None` where it did not become smaller, and is to be stored as it is.
    pub(super) clusters: Vec<Option<Range<usize>>>,
}

impl<D: Disk> Image<D> {
    /// Writes `from` at `at` in compressed form: whole clusters that have no place in the file yet, of which the disk's end
    /// may cut the last one off. What does not become smaller is written as by [`Self::write`], wherever it goes.
    ///
    /// # Errors
    /// As [`Self::write`]; or the range is not whole clusters, a cluster has a place already, or the image's format cannot
    /// store compressed clusters.
    pub async fn write_compressed(&self, at: u64, from: &Payload) -> Result<()> {
        let _recording = self.record(at, from.len());
        let detect = self.inner.options.detect_zeroes;
        if detect != DetectZeroes::Off && !from.is_empty() && from.is_zero() {
            return self.write_zeroes(at, from.len(), detect == DetectZeroes::Unmap).await;
        }
        self.check_compressible(at, from.len())?;
        let mut done = 0;
        while done < from.len() {
            let len = (from.len() - done).min(BATCH_LEN);
            let packed = self.pack(at + done, &from.slice(done, len), None)?;
            self.write_packed(&packed).await?;
            done += len;
        }
        Ok(())
    }

    /// Compresses `from` for a write at `at`, with the type's usual level unless one is given.
    ///
    /// # Errors
    /// The range is not whole clusters of the disk, the image's format cannot store compressed clusters, or there is no
    /// memory.
    pub fn pack(&self, at: u64, from: &Payload, level: Option<Level>) -> Result<Packed> {
        let (compression, cluster_len) = self.check_compressible(at, from.len())?;
        let level = level.unwrap_or(Level::default_of(compression));
        let mut cluster = vec![0; cluster_len as usize];
        let (mut bytes, mut clusters) = (Vec::new(), Vec::new());
        for offset in (0..from.len()).step_by(cluster_len as usize) {
            let len = (from.len() - offset).min(cluster_len) as usize;
            from.copy_to(offset, &mut cluster[..len]);
            // Behind the end of the disk there are zeros.
            cluster[len..].fill(0);
            let start = bytes.len();
            let smaller = COMPRESSOR.with_borrow_mut(|compressor| {
                compressor.compress(compression, level, &cluster, &mut bytes)
            });
            let smaller = smaller.map_err(|e| e.in_file(self.top().path()))?;
            clusters.push(smaller.then_some(start..bytes.len()));
        }
        Ok(Packed { at, plain: from.clone(), bytes, clusters })
    }

    /// Stores what [`Self::pack`] has compressed for this disk.
    ///
    /// # Errors
    /// As [`Self::write_compressed`].
    pub async fn write_packed(&self, packed: &Packed) -> Result<()> {
        self.check_change(packed.at, packed.plain.len())?;
        self.check_compressible(packed.at, packed.plain.len())?;
        let qcow2 = match self.top() {
            Layer::Qcow2(qcow2) => qcow2,
            Layer::Sealed(sealed) => return self.write_packed_sealed(sealed, packed).await,
            Layer::Raw(_) | Layer::Luks(_) => unreachable!("a raw image is not compressible"),
        };
        let _recording = self.record(packed.at, packed.plain.len());
        qcow2.prepare_for_change().await?;
        let mut rest = &packed.clusters[..];
        while let Some(next) = rest.first() {
            let index = packed.clusters.len() - rest.len();
            let alike = rest.iter().take_while(|c| c.is_some() == next.is_some()).count();
            let done = match next {
                Some(_) => self.store_some(qcow2, packed, index, alike).await?,
                None => self.store_plain(qcow2, packed, index, alike).await?,
            };
            rest = &rest[done..];
            if lock(&qcow2.meta).wants_flush() {
                qcow2.write_back().await?;
            }
        }
        Ok(())
    }

    /// How the image's compressed clusters are compressed; `None` where it cannot have any.
    pub fn compression(&self) -> Option<CompressionType> {
        match self.top() {
            Layer::Qcow2(qcow2) => Some(qcow2.compression),
            Layer::Sealed(sealed) => Some(sealed.header.compression),
            Layer::Raw(_) | Layer::Luks(_) => None,
        }
    }

    /// Stores clusters that did not become smaller, `count` from number `index` on.
    async fn store_plain(
        &self,
        qcow2: &Qcow2<D>,
        packed: &Packed,
        index: usize,
        count: usize,
    ) -> Result<usize> {
        let offset = qcow2.geometry.bytes(index as u64);
        let len = qcow2.geometry.bytes(count as u64).min(packed.plain.len() - offset);
        let plain = packed.plain.slice(offset, len);
        self.write_clusters(qcow2, packed.at + offset, &plain).await.map(|()| count)
    }

    /// Stores the first of `count` compressed clusters from number `index` on; how many.
    async fn store_some(
        &self,
        qcow2: &Qcow2<D>,
        packed: &Packed,
        index: usize,
        count: usize,
    ) -> Result<usize> {
        let _inside = self.enter();
        let stored = async {
            let first = qcow2.geometry.guest_cluster(GuestOffset::new(packed.at));
            let hold = qcow2.hold_without_place(first.plus(index as u64), count as u64).await?;
            let count = hold.held.count as usize;
            let mut rooms = Vec::with_capacity(count);
            for bytes in packed.clusters[index..index + count].iter().flatten() {
                rooms.push((qcow2.claim_packed(bytes.len() as u64).await?, bytes.clone()));
            }
            if Bug::PackedBeforeWritten.is_seeded() {
                let writes = rooms.iter().map(|(room, bytes)| (room.extent, bytes.clone()));
                let writes: Vec<_> = writes.collect();
                link(&hold, rooms)?;
                return qcow2.write_packed_bytes(writes, &packed.bytes).await.map(|()| count);
            }
            let writes = rooms.iter().map(|(room, bytes)| (room.extent, bytes.clone()));
            qcow2.write_packed_bytes(writes, &packed.bytes).await?;
            link(&hold, rooms)?;
            qcow2.make_up_for_redo().await.map(|()| count)
        };
        qcow2.guarded(stored).await
    }

    /// How the image compresses, and its cluster size, if `len` bytes at `at` of it can be compressed.
    fn check_compressible(&self, at: u64, len: u64) -> Result<(CompressionType, u64)> {
        self.check_transfer(at, len)?;
        let named = |e: Error| e.in_file(self.top().path());
        let cannot = |what| Err(named(Error::unsupported(what)));
        let (compression, cluster_len) = match self.top() {
            Layer::Qcow2(qcow2) if qcow2.data.is_some() => {
                return cannot("an external data file has no compressed clusters");
            }
            // QEMU's driver would store them clear, and say nothing.
            Layer::Qcow2(qcow2) if qcow2.is_encrypted() => {
                return cannot("Compression and encryption not supported at the same time");
            }
            Layer::Qcow2(qcow2) => (qcow2.compression, qcow2.geometry.cluster_size()),
            Layer::Sealed(sealed) => (sealed.header.compression, sealed.cluster_len()),
            Layer::Raw(_) | Layer::Luks(_) => {
                return cannot("this format has no compressed clusters");
            }
        };
        let aligned = |at: u64| at.is_multiple_of(cluster_len);
        let whole = aligned(at) && (aligned(len) || at + len == self.virtual_size());
        if len > 0 && !whole {
            let what =
                format!("a compressed write of {len} bytes at {at:#x} is not whole clusters");
            return Err(named(Error::invalid(what)));
        }
        Ok((compression, cluster_len))
    }
}

/// Maps held clusters to their rooms, which hold their bytes now.
fn link<D: Disk>(hold: &Hold<'_, D>, rooms: Vec<(Room<'_, D>, Range<usize>)>) -> Result<()> {
    let image = hold.image;
    let mut meta = lock(&image.meta);
    for (index, (room, _)) in (0..).zip(rooms) {
        let linked = meta.link_packed(image.geometry, hold.held.slot(index), room.extent);
        if let Err(e) = linked {
            // The rooms that are left are given back, which takes the lock.
            drop(meta);
            return Err(image.named(e));
        }
        room.keep();
    }
    Ok(())
}

/// Room for one compressed cluster, which nothing points to yet. Dropped without [`Room::keep`], it is given back.
struct Room<'a, D: Disk> {
    image: &'a Qcow2<D>,
    extent: CompressedExtent,
    kept: bool,
}

impl<D: Disk> Room<'_, D> {
    /// Something points to it now.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl<D: Disk> Drop for Room<'_, D> {
    fn drop(&mut self) {
        if !self.kept && !Bug::FailedClaimLeaks.is_seeded() {
            let (first, count) = self.image.geometry.host_span(self.extent.offset, self.extent.len);
            lock(&self.image.meta).unlink(first, count, false);
        }
    }
}

impl<D: Disk> Qcow2<D> {
    /// Holds the first of `count` clusters from `first` on that have no place in the file.
    async fn hold_without_place(&self, first: GuestCluster, count: u64) -> Result<Hold<'_, D>> {
        loop {
            match self.ask(|meta| meta.plan_packed(self.geometry, first, count)).await? {
                PackStep::Table(l1) => self.make_table(l1).await?,
                PackStep::Busy => {
                    self.wait_until_free(Span::of_clusters(self.geometry, first, 1)).await;
                }
                PackStep::Held(held) => return Ok(Hold { image: self, held }),
                PackStep::Taken => {
                    let at = self.geometry.guest_start(first);
                    let what = format!("a compressed write at {at} over data that is there");
                    return Err(self.named(Error::new(ErrorKind::Io, what)));
                }
            }
        }
    }

    /// Claims room for `len` compressed bytes.
    async fn claim_packed(&self, len: u64) -> Result<Room<'_, D>> {
        loop {
            let claim = self.ask(|meta| match meta.check_writable() {
                Ok(()) => meta.claim_packed(self.geometry, len),
                Err(e) => Ok(Err(e)),
            });
            match claim.await? {
                PackedClaim::Room(extent) => {
                    let room = Room { image: self, extent, kept: false };
                    // Also behind somebody else's: who claimed the cluster may be about to make the file longer.
                    let (first, count) = self.geometry.host_span(extent.offset, extent.len);
                    self.make_room(Run { first, count, fresh: false }).await?;
                    return Ok(room);
                }
                PackedClaim::MissingBlock(index) => self.grow_refcounts(index).await?,
            }
        }
    }

    /// Writes parts of `bytes` to their places; what is adjacent in both, in one go.
    async fn write_packed_bytes(
        &self,
        places: impl IntoIterator<Item = (CompressedExtent, Range<usize>)>,
        bytes: &[u8],
    ) -> Result<()> {
        let mut writes: Vec<(CompressedExtent, Range<usize>)> = Vec::new();
        for (extent, range) in places {
            match writes.last_mut() {
                Some((last, part))
                    if last.offset.checked_add(last.len) == Some(extent.offset)
                        && part.end == range.start =>
                {
                    last.len += extent.len;
                    part.end = range.end;
                }
                _ => writes.push((extent, range)),
            }
        }
        let writes = writes.into_iter().map(|(extent, range)| async move {
            let payload = Buffer::from_bytes(&bytes[range]).payload();
            self.judge_write(extent.offset, payload.len()).await?;
            self.write_stored(extent.offset, &payload).await
        });
        try_join_all(IN_FLIGHT_MAX, writes).await
    }
}
