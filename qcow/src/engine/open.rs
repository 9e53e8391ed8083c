//! Opening a chain of images.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::bitmap::{Bitmaps, read_bitmaps};
use super::data_file::{DataFile, chosen};
use super::dirty::repair_dirty;
use super::encryption::open_encryption;
use super::layer::{Layer, Qcow2};
use super::load::{
    forget_session, probe, read_bytes, read_header, read_snapshots, read_words, see_medium,
    see_medium_unless_closed,
};
use super::regions::map_regions;
use super::sealed::{Sealed, is_sealed};
use super::snapshot::{DiskThen, NOT_LOADED};
use super::{Below, Format, Image, Inner, OpenOptions};
use crate::addr::HostOffset;
use crate::crypt::Passphrase;
use crate::disk::{Disk, Identity};
use crate::error::{Error, ErrorKind, Result};
use crate::foreign::luks::Luks;
use crate::foreign::raw::Raw;
use crate::format::feature::{Autoclear, Incompatible};
use crate::format::header::{CryptMethod, Header, Version};
use crate::format::mark::{Mark, MarkState};
use crate::gate::Gate;
use crate::limits::{CHAIN_DEPTH_MAX, REFCOUNT_CACHE_BYTES_DEFAULT, SECTOR_BYTES};
use crate::meta::Meta;
use crate::meta::alloc::Allocator;
use crate::meta::drain::Drain;
use crate::meta::map::Map;
use crate::meta::refs::Refcounts;
use crate::meta::regions::Kind;
use crate::meta::snapshot::SnapshotChoice;
use crate::meta::table::WordTable;
use crate::seeded_bugs::Bug;
use crate::sync::{Exclusive, WaitQueue, lock};

impl<D: Disk> Image<D> {
    /// Opens the image at `path` and the images below it.
    ///
    /// # Errors
    /// A file cannot be opened or is locked, the gate does not let it through, or an image is damaged, or uses a feature
    /// that is not served.
    pub async fn open<G: Gate<Disk = D>>(
        gate: &G,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<Self> {
        if options.writable && options.snapshot.is_some() {
            let what = "an internal snapshot cannot be opened for writing";
            return Err(Error::invalid(what).in_file(path));
        }
        let mut layers = Vec::new();
        let mut seen: Vec<Identity> = Vec::new();
        let disk = gate.open_image(path, options.writable)?;
        let mut next = Some((path.to_owned(), disk, options.format));
        while let Some((path, disk, format)) = next.take() {
            if seen.contains(&disk.identity()) || seen.len() == CHAIN_DEPTH_MAX {
                let message = if seen.len() == CHAIN_DEPTH_MAX {
                    format!("the backing chain is longer than {CHAIN_DEPTH_MAX} images")
                } else {
                    "the backing chain comes back to this image".to_owned()
                };
                return Err(Error::new(ErrorKind::Limit, message).in_file(&path));
            }
            seen.push(disk.identity());
            let top = layers.is_empty();
            let key = options.keys.get(layers.len()).and_then(Option::as_deref);
            let layer = open_layer(gate, disk, &path, format, top, key, options).await;
            let layer = layer.map_err(|e| e.in_file(&path))?;
            if let Some(data) = layer.data_identity() {
                if seen.contains(&data) {
                    let message = "the external data file is an image of the same chain";
                    return Err(Error::new(ErrorKind::Denied, message).in_file(&path));
                }
                seen.push(data);
            }
            let mut layer = layer;
            if options.backing {
                let below = options.below.get(layers.len()).unwrap_or(&Below::AsNamed);
                next = open_below(gate, &path, &mut layer, below).await?;
            }
            layers.push(layer);
        }
        let mut options = options.clone();
        options.keys.clear();
        let resizing = Exclusive::default();
        Ok(Self { inner: Arc::new(Inner { layers, options, resizing }) })
    }
}

type Backing<D> = Option<(PathBuf, D, Option<Format>)>;

/// Opens the file of the image below `layer`, if there is to be one.
async fn open_below<G: Gate>(
    gate: &G,
    image: &Path,
    layer: &mut Layer<G::Disk>,
    below: &Below,
) -> Result<Backing<G::Disk>> {
    match below {
        Below::AsNamed => open_backing(gate, image, layer, None).await,
        Below::Nothing => Ok(None),
        Below::Like(None, format) => open_backing(gate, image, layer, *format).await,
        Below::Like(Some(path), format) => {
            match layer {
                Layer::Qcow2(qcow2) => qcow2.names_backing = AtomicBool::new(true),
                Layer::Sealed(sealed) => sealed.expect_backing(),
                Layer::Raw(_) | Layer::Luks(_) => return Ok(None),
            }
            let disk = gate.open_image(path, false)?;
            Ok(Some((path.to_owned(), disk, *format)))
        }
    }
}

async fn open_backing<G: Gate>(
    gate: &G,
    image: &Path,
    layer: &Layer<G::Disk>,
    format: Option<Format>,
) -> Result<Backing<G::Disk>> {
    let named = match layer {
        Layer::Qcow2(qcow2) => {
            let header = lock(&qcow2.header);
            header.backing_name.clone().zip(Some(header.extensions.backing_format.clone()))
        }
        Layer::Sealed(sealed) => sealed.backing(),
        Layer::Raw(_) | Layer::Luks(_) => None,
    };
    let Some((name, named_format)) = named else { return Ok(None) };
    let format = match named_format.filter(|_| format.is_none()) {
        None => format,
        Some(format) => Some(Format::from_str(&format).map_err(|e| {
            Error::unsupported(e).context("Could not open backing file").in_file(image)
        })?),
    };
    let opened = gate.open_backing(image, &name);
    let (path, disk) = opened.map_err(|e| e.context("Could not open backing file"))?;
    if format.is_none() && probe(&disk).await? == Format::Raw {
        // A guest that may write to a raw disk can make it look like any format, with any backing file.
        let message = format!(
            "the backing file '{}' has no format in the image and is not qcow2: name its format (rebase -u -F raw)",
            path.display()
        );
        return Err(Error::new(ErrorKind::Denied, message).in_file(image));
    }
    Ok(Some((path, disk, format)))
}

async fn open_layer<G: Gate>(
    gate: &G,
    disk: G::Disk,
    path: &Path,
    format: Option<Format>,
    top: bool,
    key: Option<&Passphrase>,
    options: &OpenOptions,
) -> Result<Layer<G::Disk>> {
    let format = match format {
        Some(format) => format,
        None => probe(&disk).await?,
    };
    let snapshot = options.snapshot.as_ref().filter(|_| top);
    match format {
        Format::Raw | Format::Luks if snapshot.is_some() => {
            let what = format!(
                "Block format '{format}' used by device '' does not support temporarily loading internal snapshots"
            );
            Err(Error::unsupported(what).context(NOT_LOADED))
        }
        Format::Luks => Ok(Layer::Luks(
            Luks::open(disk, path, key, options.without_keys, options.flushes).await?,
        )),
        Format::Raw => Ok(Layer::Raw(Raw::new(disk, path, options.flushes)?)),
        Format::Qcow2 if is_sealed(&disk).await? => {
            let writable = top && options.writable;
            let sealed = Sealed::open(disk, path, writable, key, snapshot, options).await?;
            Ok(Layer::Sealed(Box::new(sealed)))
        }
        Format::Qcow2 => {
            let qcow2 = open_qcow2(gate, disk, path, top, snapshot, key, options).await?;
            Ok(Layer::Qcow2(Box::new(qcow2)))
        }
    }
}

async fn open_qcow2<G: Gate>(
    gate: &G,
    disk: G::Disk,
    path: &Path,
    top: bool,
    snapshot: Option<&SnapshotChoice>,
    key: Option<&Passphrase>,
    options: &OpenOptions,
) -> Result<Qcow2<G::Disk>> {
    let writable = top && options.writable;
    let distrusted = writable && options.flushes && !Bug::CacheIsTrusted.is_seeded();
    if distrusted {
        see_medium_unless_closed(&disk).await?;
    }
    let mut header = read_header(&disk).await?;
    refuse_unserved(&header, writable)?;
    let encryption = open_encryption(&disk, &header, key, options).await?;
    let data = DataFile::open(gate, path, &header, chosen(options, top), writable).await?;
    if let Some(data) = data.as_ref().filter(|_| distrusted)
        && let Err(e) = see_medium(&data.disk).await
    {
        forget_session(&disk).await;
        return Err(e.in_file(&data.path));
    }
    let state = header.extensions.mark.as_ref().map(Mark::state);
    let unsettled = state == Some(MarkState::Unsettled);
    if writable && (header.incompatible.contains(Incompatible::DIRTY) || unsettled) {
        header = repair_dirty(&disk, path).await?;
    }
    let geometry = header.geometry();
    let file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
    let snapshots = read_snapshots(&disk, &header, file_len).await?;
    let disk_then = match snapshot {
        Some(choice) => DiskThen::of(choice, options.vm_state, &snapshots.0, geometry, file_len)?,
        None => DiskThen::now(&header),
    };
    let l1 = disk_then.read_l1(&disk, geometry).await?;
    let refcount_table = if writable {
        let entries = geometry.bytes(header.refcount_table_clusters.into()) / 8;
        read_words(&disk, header.refcount_table_offset, entries, "refcount table").await?
    } else {
        Vec::new()
    };
    let mark = header.extensions.mark.as_ref();
    let may_leak = writable && mark.is_some_and(|mark| mark.state() != MarkState::Clean);
    let zero_flag = header.version == Version::V3;
    let l1 = WordTable::new(disk_then.l1_offset, l1);
    let refcount_table = WordTable::new(header.refcount_table_offset, refcount_table);
    let map = Map::new(geometry, zero_flag, l1, options.l2_cache_bytes_in(geometry));
    let encryption_header = header.extensions.encryption_header.map(|place| {
        // The whole of what the format lets it be is checked to be addressable.
        geometry.host_span(place.offset, place.length)
    });
    let mut meta = Meta::new(
        map.with_data_at(DataFile::place_of(data.as_ref())),
        Refcounts::new(geometry, refcount_table, REFCOUNT_CACHE_BYTES_DEFAULT)?,
        Allocator::new(geometry, file_len),
    );
    meta.set_encryption_header(encryption_header);
    let mut bitmaps = Bitmaps::default();
    if writable {
        map_regions(&disk, path, &header, &snapshots, &mut meta).await?;
        bitmaps = read_bitmaps(&disk, &header, &mut meta).await?;
    }
    Ok(Qcow2 {
        disk,
        path: path.to_owned(),
        data,
        encryption,
        geometry,
        size: AtomicU64::new(disk_then.virtual_size),
        compression: header.compression,
        unpackers: options.unpackers.clone(),
        flushes: options.flushes,
        adds_mark: options.adds_mark,
        names_backing: AtomicBool::new(header.backing_name.is_some()),
        header: Mutex::new(header),
        session: Mutex::new(None),
        records: AtomicBool::new(false),
        marked: AtomicBool::new(false),
        prepared: AtomicBool::new(false),
        laid_out: OnceLock::new(),
        bitmaps,
        may_leak: AtomicBool::new(may_leak),
        flush_lost: AtomicBool::new(false),
        lookaside: Arc::clone(meta.map.lookaside()),
        meta: Mutex::new(meta),
        changed: WaitQueue::default(),
        drain: Drain::default(),
        structure: Exclusive::default(),
        searching: Exclusive::default(),
        growing: Exclusive::default(),
    })
}

fn refuse_unserved(header: &Header, writable: bool) -> Result<()> {
    if writable && header.crypt_method != CryptMethod::None && header.has_raw_external_data() {
        let what = "an encrypted disk is no raw data file; cannot be opened read/write";
        return Err(Error::unsupported(what));
    }
    if writable && header.has_external_data() && header.snapshot_count > 0 {
        let count = header.snapshot_count;
        let what =
            format!("{count} snapshots in image with data file; cannot be opened read/write");
        return Err(Error::corrupt(what));
    }
    if writable && header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(Error::corrupt("Image is corrupt; cannot be opened read/write"));
    }
    Ok(())
}

impl<D: Disk> Qcow2<D> {
    /// Makes the file say what it must say before the first change of the disk: as [`Self::prepare_header`], and of the
    /// bitmaps that record what is written that they are in use.
    pub(super) async fn prepare_for_change(&self) -> Result<()> {
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        let prepared = self.guarded(async {
            let _changing = self.bitmaps.changing.acquire().await;
            let _structure = self.structure.acquire().await;
            self.prepare(true).await
        });
        Box::pin(prepared).await
    }

    /// Makes the header say what it must say before the image's first change.
    pub(super) async fn prepare_header(&self) -> Result<()> {
        if self.marked.load(Ordering::Acquire) {
            return Ok(());
        }
        let _structure = self.structure.acquire().await;
        self.prepare(false).await
    }

    /// The caller holds `structure` and, to change the disk, what keeps bitmaps as they are.
    async fn prepare(&self, to_change_disk: bool) -> Result<()> {
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut needs_barrier = false;
        if !self.marked.load(Ordering::Acquire) {
            needs_barrier |= self.clear_stale_statements().await?;
            self.fit_data_file(self.size.load(Ordering::Acquire)).await?;
            needs_barrier |= self.mark_unclean().await?;
        }
        if to_change_disk {
            needs_barrier |= self.use_recording_bitmaps().await?;
        }
        if needs_barrier && !Bug::NoBarrierAfterMark.is_seeded() {
            self.barrier().await?;
        }
        self.marked.store(true, Ordering::Release);
        self.leave_untied_redo();
        if to_change_disk {
            self.prepared.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Clears autoclear bits that vouch for data which this engine does not keep up to date; whether there were any.
    async fn clear_stale_statements(&self) -> Result<bool> {
        let mut header = lock(&self.header).clone();
        let mut kept = Autoclear(0);
        if self.bitmaps.exist() {
            kept = kept.with(Autoclear::BITMAPS);
        }
        if header.has_raw_external_data() {
            kept = kept.with(Autoclear::RAW_EXTERNAL_DATA);
        }
        if header.autoclear == kept {
            return Ok(false);
        }
        header.autoclear = kept;
        self.write_header(header).await?;
        Ok(true)
    }

    /// Writes the changed fields of `header`. The caller holds `structure`.
    pub(super) async fn write_header(&self, header: Header) -> Result<()> {
        let at = HostOffset::new(0);
        let mut sector = read_bytes(&self.disk, at, SECTOR_BYTES, "header").await?;
        header.patch_first_sector(&mut sector).map_err(|e| self.named(e))?;
        self.write_metadata(Kind::Header, at, &sector).await?;
        *lock(&self.header) = header;
        Ok(())
    }

    /// As [`Self::write_header`], and durable. Where it fails, which header the file has is not known, and nothing may be
    /// written any more that only one of both shows.
    pub(super) async fn commit_header(&self, header: Header) -> Result<()> {
        let written = match self.write_header(header).await {
            Ok(()) => self.barrier().await,
            failed => failed,
        };
        written.map_err(|e| {
            let lost = e.context("the header could not be replaced, the image is read-only now");
            let lost = self.named(lost);
            lock(&self.meta).fail(lost.clone());
            lost
        })
    }
}
