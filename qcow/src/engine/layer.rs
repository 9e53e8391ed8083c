//! One image of a chain: its file, its metadata, and the loading of what metadata is missing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::bitmap::Bitmaps;
use super::data_file::DataFile;
use super::sealed::Sealed;
use super::unpack::Unpackers;
use crate::addr::{ClusterCount, Geometry, GuestOffset, HostCluster, HostOffset, SliceKey};
use crate::disk::{Buffer, Disk, Identity};
use crate::encrypted::Encryption;
use crate::error::{Error, Result};
use crate::foreign::luks::Luks;
use crate::foreign::raw::Raw;
use crate::format::compression::CompressionType;
use crate::format::header::Header;
use crate::format::mark::Session;
use crate::meta::cache::{Lookup, SliceCache};
use crate::meta::drain::Drain;
use crate::meta::lookaside::{Lookaside, Right};
use crate::meta::regions::Kind;
use crate::meta::{Asked, Meta, Need};
use crate::seeded_bugs::Bug;
use crate::sync::{Exclusive, WaitQueue, lock};

/// One image of a chain.
#[derive(Debug)]
pub(super) enum Layer<D: Disk> {
    Qcow2(Box<Qcow2<D>>),
    /// An authenticated image.
    Sealed(Box<Sealed<D>>),
    Raw(Raw<D>),
    Luks(Luks<D>),
}

impl<D: Disk> Layer<D> {
    pub fn path(&self) -> &Path {
        match self {
            Self::Qcow2(qcow2) => &qcow2.path,
            Self::Sealed(sealed) => &sealed.path,
            Self::Raw(raw) => raw.path(),
            Self::Luks(luks) => luks.raw().path(),
        }
    }

    /// Which file its external data file is, if it has one.
    pub fn data_identity(&self) -> Option<Identity> {
        match self {
            Self::Qcow2(qcow2) => qcow2.data.as_ref().map(|data| data.disk.identity()),
            Self::Sealed(_) | Self::Raw(_) | Self::Luks(_) => None,
        }
    }

    /// Bytes of virtual disk that this image describes.
    pub fn virtual_size(&self) -> u64 {
        match self {
            Self::Qcow2(qcow2) => qcow2.size.load(Ordering::Acquire),
            Self::Sealed(sealed) => sealed.size(),
            Self::Raw(raw) => raw.size(),
            Self::Luks(luks) => luks.raw().size(),
        }
    }
}

/// An open qcow2 image.
#[derive(Debug)]
pub(super) struct Qcow2<D: Disk> {
    pub disk: D,
    pub path: PathBuf,
    /// The file that holds the guest's data, where that is not the image itself.
    pub data: Option<DataFile<D>>,
    /// How that data is encrypted.
    pub encryption: Encryption,
    pub geometry: Geometry,
    /// Bytes of virtual disk; only a resize changes it.
    pub size: AtomicU64,
    pub compression: CompressionType,
    /// Who unpacks compressed clusters.
    pub unpackers: Unpackers,
    /// Whether flushes reach the disk.
    pub flushes: bool,
    /// Whether it gets a close mark at its first change if it has none.
    pub adds_mark: bool,
    /// Whether it has a backing file, opened or not.
    pub names_backing: AtomicBool,
    /// The header as it is on disk.
    pub header: Mutex<Header>,
    /// Which session this is, once that is known: see [`Qcow2::session`].
    pub session: Mutex<Option<Session>>,
    /// Whether a redo log has been attached.
    pub records: AtomicBool,
    /// Whether the header says what it must say while the image is being changed.
    pub marked: AtomicBool,
    /// Whether the file says all that it must say while the disk is being changed, of bitmaps too.
    pub prepared: AtomicBool,
    /// Whether the image looks laid out in advance, once that has been asked.
    pub laid_out: OnceLock<bool>,
    /// Persistent bitmaps, of a writable image.
    pub bitmaps: Bitmaps,
    /// Whether it was opened as a crash had left it and its leaks have not been given back since.
    pub may_leak: AtomicBool,
    /// Whether a flush of the file has failed: see [`Meta::check_survived`].
    pub flush_lost: AtomicBool,
    pub meta: Mutex<Meta>,
    /// Where clusters lie, of those that were looked up in `meta` before.
    pub lookaside: Arc<Lookaside>,
    /// Woken on every change in `meta` that somebody may wait for.
    pub changed: WaitQueue,
    /// Requests that may hold a host address.
    pub drain: Drain,
    /// Held by whoever changes the header or the refcount table.
    pub structure: Exclusive,
    /// Held by whoever searches the file for free clusters.
    pub searching: Exclusive,
    /// Held by whoever changes the length of the file; taken after `structure`.
    pub growing: Exclusive,
}

impl<D: Disk> Qcow2<D> {
    /// Whether it has a backing file, opened or not.
    pub fn has_backing(&self) -> bool {
        self.names_backing.load(Ordering::Acquire)
    }

    /// Where `len` bytes at `at` may be read or written, where that is known without the lock. The caller is inside the
    /// drain.
    pub fn known_place(&self, at: GuestOffset, len: u64, right: Right) -> Option<HostOffset> {
        let geometry = self.geometry;
        if !geometry.is_inside_cluster(at, len) {
            return None;
        }
        let cluster = self.lookaside.find(geometry.guest_cluster(at), right)?;
        Some(geometry.host_start(cluster).plus(geometry.in_guest_cluster(at)))
    }

    /// Asks the metadata a question, loading what it takes to answer it.
    pub async fn ask<T>(
        &self,
        mut question: impl FnMut(&mut Meta) -> Asked<Result<T>>,
    ) -> Result<T> {
        loop {
            let answer = question(&mut lock(&self.meta));
            match answer {
                Ok(answer) => return answer.map_err(|e| self.named(e)),
                Err(need) => Box::pin(self.load(need)).await.map_err(|e| self.named(e))?,
            }
        }
    }

    /// Waits until `ready` finds what it waits for in the metadata.
    pub async fn wait<T>(&self, mut ready: impl FnMut(&mut Meta) -> Option<T>) -> T {
        self.changed.until(|| ready(&mut lock(&self.meta))).await
    }

    /// Brings a slice into memory; however many ask for it, one loads it.
    pub async fn load(&self, need: Need) -> Result<()> {
        let (kind, key) = match need {
            Need::L2(key) => (TableKind::L2, key),
            Need::Refcounts(key) => (TableKind::Refcounts, key),
        };
        let mine = self.wait(|meta| self.begin_load(meta, kind, key)).await;
        if !mine? {
            return Ok(());
        }
        let mut load = Load { image: self, kind, key, bytes: None };
        load.bytes = Some(self.read_slice(key).await?);
        Ok(())
    }

    /// Whether the caller is to load the slice, or it is there; `None` while somebody else loads it.
    fn begin_load(&self, meta: &mut Meta, kind: TableKind, key: SliceKey) -> Option<Result<bool>> {
        match kind.cache(meta).lookup(key) {
            Lookup::Hit(_) => return Some(Ok(false)),
            Lookup::Loading => return None,
            Lookup::Miss => {}
        }
        if let Err(e) = meta.check_inside(self.geometry, kind.region(), key.table) {
            return Some(Err(e));
        }
        kind.cache(meta).begin_load(key);
        Some(Ok(true))
    }

    async fn read_slice(&self, key: SliceKey) -> Result<Vec<u8>> {
        let at = self.geometry.slice_start(key);
        let buffer = Buffer::zeroed(self.geometry.slice_bytes() as usize);
        let read = self.disk.read(at, &buffer.payload()).await;
        read.map_err(|e| Error::io(format!("read metadata at {at}"), &e))?;
        Ok(buffer.to_vec())
    }

    /// Writes `bytes` to metadata of `kind`.
    pub async fn write_metadata(&self, kind: Kind, at: HostOffset, bytes: &[u8]) -> Result<()> {
        let own = lock(&self.meta).check_metadata(self.geometry, kind, at, bytes.len() as u64);
        own.map_err(|e| self.named(e.context(format!("a write at {at}"))))?;
        self.write_bytes(at, bytes).await
    }

    /// Writes whole clusters from `first` on, which were claimed and are not metadata yet.
    pub async fn write_new(&self, first: HostCluster, bytes: &[u8]) -> Result<()> {
        self.check_new(first, self.geometry.clusters_for(bytes.len() as u64))?;
        self.write_bytes(self.geometry.host_start(first), bytes).await
    }

    pub(super) async fn write_bytes(&self, at: HostOffset, bytes: &[u8]) -> Result<()> {
        let written = self.disk.write(at, &Buffer::from_bytes(bytes).payload()).await;
        written.map_err(|e| self.named(Error::io(format!("write metadata at {at}"), &e)))
    }

    /// Makes a whole cluster that was claimed and is not metadata yet read as zeros, and the file reach its end.
    pub async fn zero_new(&self, cluster: HostCluster) -> Result<()> {
        self.check_new(cluster, 1)?;
        let (at, len) = (self.geometry.host_start(cluster), self.geometry.cluster_size());
        let zeroed = self.disk.write_zeroes(at, len).await;
        zeroed.map_err(|e| self.named(Error::io(format!("zero the cluster at {at}"), &e)))
    }

    fn check_new(&self, first: HostCluster, count: ClusterCount) -> Result<()> {
        let meta = lock(&self.meta);
        let new = meta.check_writable().and_then(|()| meta.check_new(self.geometry, first, count));
        new.map_err(|e| self.named(e))
    }

    /// Makes everything that has been written durable; after a failure the image takes no more writes.
    pub async fn barrier(&self) -> Result<()> {
        if !self.flushes {
            return Ok(());
        }
        let synced = self.disk.sync().await;
        synced.map_err(|e| self.lose_flush(&self.path, &e))
    }

    /// Turns the image read-only because a flush of the file at `path` has failed; the error that says so.
    pub fn lose_flush(&self, path: &Path, error: &std::io::Error) -> Error {
        // The kernel has dropped what it could not write and will not say so again.
        let lost = Error::io("a flush failed, the image is read-only now", error).in_file(path);
        if Bug::FailedFlushIsTriedAgain.is_seeded() {
            return lost;
        }
        lock(&self.meta).lose_flush(lost.clone());
        self.flush_lost.store(true, Ordering::Release);
        lost
    }
}

#[derive(Clone, Copy, Debug)]
enum TableKind {
    L2,
    Refcounts,
}

impl TableKind {
    fn cache(self, meta: &mut Meta) -> &mut SliceCache {
        match self {
            Self::L2 => meta.map.slices_mut(),
            Self::Refcounts => meta.refs.slices_mut(),
        }
    }

    fn region(self) -> Kind {
        match self {
            Self::L2 => Kind::L2,
            Self::Refcounts => Kind::RefcountBlock,
        }
    }
}

/// A load under way; dropped early, it lets somebody else try.
struct Load<'a, D: Disk> {
    image: &'a Qcow2<D>,
    kind: TableKind,
    key: SliceKey,
    bytes: Option<Vec<u8>>,
}

impl<D: Disk> Drop for Load<'_, D> {
    fn drop(&mut self) {
        let mut meta = lock(&self.image.meta);
        self.kind.cache(&mut meta).finish_load(self.key, self.bytes.take());
        drop(meta);
        self.image.changed.wake_all();
    }
}
