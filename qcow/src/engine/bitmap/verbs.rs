//! Bitmaps by name: listing, adding, removing, clearing, enabling, disabling, merging.
//!
//! Each change is made in memory and then committed. Messages are QEMU's.

use std::ffi::{OsStr, OsString};
use std::sync::atomic::Ordering;

use super::load::{check_recording, read_bits, read_directory, read_entry};
use super::{Bitmap, Content};
use crate::disk::Disk;
use crate::engine::Image;
use crate::engine::layer::{Layer, Qcow2};
use crate::engine::load::read_header;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::{BitmapFlags, directory_len};
use crate::format::header::Version;
use crate::limits::{
    BITMAP_BYTES_MAX, BITMAP_COUNT_MAX, BITMAP_DIRECTORY_BYTES_MAX, BITMAP_GRANULARITY_BITS,
    BITMAP_NAME_BYTES_MAX,
};
use crate::meta::bitmap::Bits;
use crate::meta::bitmap::measure::bytes_needed;
use crate::sync::{ExclusiveGuard, lock};

/// Granularity of new bitmaps in bytes: that of the clusters, within these bounds (QEMU's).
const GRANULARITY_DEFAULT: std::ops::RangeInclusive<u64> = 4096..=65536;

/// What is known of a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: OsString,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// Whether it records what is written.
    pub enabled: bool,
    /// Whether its bits mean something; otherwise it can only be removed.
    pub usable: bool,
}

impl<D: Disk> Image<D> {
    /// The persistent bitmaps of the top image, in the order of its directory.
    ///
    /// # Errors
    /// The image is not open for writing, and its directory cannot be read.
    pub async fn bitmaps(&self) -> Result<Vec<BitmapInfo>> {
        let Layer::Qcow2(qcow2) = self.top() else { return Ok(Vec::new()) };
        if self.is_writable() {
            return Ok(lock(&qcow2.bitmaps.list).iter().map(Bitmap::info).collect());
        }
        let header = read_header(&qcow2.disk).await.map_err(|e| qcow2.named(e))?;
        let entries = read_directory(&qcow2.disk, &header).await.map_err(|e| qcow2.named(e))?;
        Ok(entries.into_iter().map(|entry| Bitmap::from_entry(entry, Vec::new()).info()).collect())
    }

    /// Whether the top image can have persistent bitmaps at all.
    pub fn keeps_bitmaps(&self) -> bool {
        match self.top() {
            Layer::Qcow2(qcow2) => lock(&qcow2.header).version == Version::V3,
            Layer::Sealed(_) | Layer::Raw(_) | Layer::Luks(_) => false,
        }
    }

    /// Fails unless the image, which is open for writing, has a bitmap called `name` whose bits mean something.
    ///
    /// # Errors
    /// There is none (`NotFound`), or it is inconsistent (`Unsupported`).
    pub fn check_bitmap(&self, name: &OsStr) -> Result<()> {
        let Layer::Qcow2(qcow2) = self.top() else { return Err(not_found(name)) };
        let index = qcow2.bitmaps.find(name).ok_or_else(|| not_found(name))?;
        lock(&qcow2.bitmaps.list)[index].check_usable()
    }

    /// The bits of the bitmap called `name`, as they are now.
    ///
    /// # Errors
    /// There is none of that name (`NotFound`), its bits mean nothing, or they cannot be read.
    pub async fn read_bitmap(&self, name: &OsStr) -> Result<Bits> {
        let Layer::Qcow2(qcow2) = self.top() else { return Err(not_found(name)) };
        if self.is_writable() {
            let _changing = qcow2.bitmaps.changing.acquire().await;
            let index = qcow2.usable(name).await?;
            return Ok(qcow2.with_bits(index, |bits| bits.clone()));
        }
        let header = read_header(&qcow2.disk).await.map_err(|e| qcow2.named(e))?;
        let entries = read_directory(&qcow2.disk, &header).await.map_err(|e| qcow2.named(e))?;
        let entry = entries.into_iter().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| not_found(name))?;
        let bits = read_entry(&qcow2.disk, qcow2.geometry, header.virtual_size(), entry).await;
        bits.map_err(|e| qcow2.named(e))
    }

    /// Adds a bitmap without any bit set; one that is `enabled` records what is written from now on. Each bit stands for
    /// `granularity` bytes of the disk, a power of two from 512 to 2^31; where it is not given, for a cluster, but at least
    /// 4 KiB and at most 64 KiB. Durable once it succeeds, as all these verbs are.
    ///
    /// # Errors
    /// The name is taken, empty or too long; the image cannot have bitmaps, or not one more of this kind; or the host
    /// failed.
    pub async fn add_bitmap(
        &self,
        name: &OsStr,
        granularity: Option<u64>,
        enabled: bool,
    ) -> Result<()> {
        self.check_change(0, 0)?;
        let Layer::Qcow2(qcow2) = self.top() else {
            granularity.map(granularity_bits).transpose()?;
            return Err(Error::unsupported(
                "Can't store persistent bitmaps: Operation not supported",
            ));
        };
        let default = || {
            qcow2
                .geometry
                .cluster_size()
                .clamp(*GRANULARITY_DEFAULT.start(), *GRANULARITY_DEFAULT.end())
        };
        let granularity = granularity.unwrap_or_else(default);
        let _changing = qcow2.begin_bitmap_change().await?;
        qcow2.check_new_bitmap(name, granularity).map_err(|e| qcow2.named(e))?;
        let granularity_bits = granularity.ilog2() as u8;
        qcow2.check_recording(enabled.then_some(granularity_bits)).map_err(|e| qcow2.named(e))?;
        let bits = Bits::new(self.virtual_size(), granularity_bits, qcow2.geometry);
        lock(&qcow2.bitmaps.list).push(Bitmap {
            name: name.to_owned(),
            granularity_bits,
            extra: Vec::new(),
            enabled,
            content: Content::Loaded(bits),
            on_disk: None,
        });
        qcow2.bitmaps.update_recording();
        let committed = qcow2.guarded(qcow2.commit_changed(None)).await;
        if committed.is_err() {
            lock(&qcow2.bitmaps.list).pop();
            qcow2.bitmaps.update_recording();
        }
        committed
    }

    /// Removes the bitmap called `name`, usable or not.
    ///
    /// # Errors
    /// There is none of that name, or the host failed.
    pub async fn remove_bitmap(&self, name: &OsStr) -> Result<()> {
        let (qcow2, _changing) = self.begin_bitmap_change(name).await?;
        let index = qcow2.bitmaps.find(name).ok_or_else(|| not_found(name))?;
        let leaving = lock(&qcow2.bitmaps.list).remove(index);
        qcow2.bitmaps.update_recording();
        let committed = qcow2.guarded(qcow2.commit_changed(Some(&leaving))).await;
        if committed.is_err() {
            lock(&qcow2.bitmaps.list).insert(index, leaving);
            qcow2.bitmaps.update_recording();
        }
        committed
    }

    /// Clears all bits of the bitmap called `name`.
    ///
    /// # Errors
    /// There is none of that name, its bits mean nothing, or the host failed.
    pub async fn clear_bitmap(&self, name: &OsStr) -> Result<()> {
        let (qcow2, _changing) = self.begin_bitmap_change(name).await?;
        let index = qcow2.usable(name).await?;
        qcow2.change_bits(index, Bits::clear).await
    }

    /// Sets the bits of the bitmap called `name` that stand for any part of the disk that is marked in `bits`: those of
    /// another bitmap, of this image or of one with a disk of the same size.
    ///
    /// # Errors
    /// There is none of that name, its bits mean nothing, the disks differ in size, or the host failed.
    pub async fn merge_bitmap(&self, name: &OsStr, bits: &Bits) -> Result<()> {
        let (qcow2, _changing) = self.begin_bitmap_change(name).await?;
        let index = qcow2.usable(name).await?;
        let (to, from) = (qcow2.with_bits(index, |to| to.size()), bits.size());
        if to != from {
            return Err(Error::invalid(format!(
                "Bitmaps are of different sizes (destination size is {to}, source size is {from}) and can't be merged"
            )));
        }
        qcow2.change_bits(index, |to| to.merge(bits)).await
    }

    /// Makes the bitmap called `name` record what is written from now on, or not any more.
    ///
    /// # Errors
    /// There is none of that name, its bits mean nothing, too many bitmaps record already, or the host failed.
    pub async fn enable_bitmap(&self, name: &OsStr, enable: bool) -> Result<()> {
        let (qcow2, _changing) = self.begin_bitmap_change(name).await?;
        let index = qcow2.usable(name).await?;
        let (was, granularity_bits) = {
            let list = lock(&qcow2.bitmaps.list);
            (list[index].enabled, list[index].granularity_bits)
        };
        if was == enable {
            return Ok(());
        }
        qcow2.check_recording(enable.then_some(granularity_bits)).map_err(|e| qcow2.named(e))?;
        qcow2.bitmaps.set_enabled(index, enable);
        let committed = qcow2.guarded(qcow2.commit_changed(None)).await;
        if committed.is_err() {
            qcow2.bitmaps.undo_enable(index, was);
        }
        committed
    }

    /// The image, if its bitmap `name` may be changed, and the right to do so.
    async fn begin_bitmap_change(&self, name: &OsStr) -> Result<(&Qcow2<D>, ExclusiveGuard<'_>)> {
        self.check_change(0, 0)?;
        let Layer::Qcow2(qcow2) = self.top() else { return Err(not_found(name)) };
        Ok((qcow2, qcow2.begin_bitmap_change().await?))
    }
}

impl super::Bitmaps {
    fn set_enabled(&self, index: usize, enabled: bool) {
        lock(&self.list)[index].enabled = enabled;
        self.update_recording();
    }

    /// Takes back what could not be committed. A bitmap that did not record meanwhile, while the file says that it is in
    /// use, may miss something.
    fn undo_enable(&self, index: usize, was: bool) {
        {
            let bitmap = &mut lock(&self.list)[index];
            bitmap.enabled = was;
            let flags = bitmap.on_disk.as_ref().map_or(BitmapFlags::default(), |now| now.flags);
            if was && flags.contains(BitmapFlags::IN_USE) {
                bitmap.content = Content::Inconsistent;
            }
        }
        self.update_recording();
    }
}

impl<D: Disk> Qcow2<D> {
    /// The right to change bitmaps, of an image whose header says what it must say before a change.
    async fn begin_bitmap_change(&self) -> Result<ExclusiveGuard<'_>> {
        let changing = self.bitmaps.changing.acquire().await;
        self.guarded(self.prepare_header()).await?;
        Ok(changing)
    }

    /// Commits a change. While the image is being written, what records goes on in memory.
    async fn commit_changed(&self, leaving: Option<&Bitmap>) -> Result<()> {
        let in_session = self.prepared.load(Ordering::Acquire);
        self.commit_bitmaps(in_session, leaving).await
    }

    /// Where the bitmap called `name` stands, whose bits mean something and are in memory now.
    async fn usable(&self, name: &OsStr) -> Result<usize> {
        let index = self.bitmaps.find(name).ok_or_else(|| not_found(name))?;
        lock(&self.bitmaps.list)[index].check_usable()?;
        self.load_bits(index).await?;
        Ok(index)
    }

    /// Brings the bits of the bitmap at `index`, which is usable, into memory. The caller holds `Bitmaps::changing`.
    pub(super) async fn load_bits(&self, index: usize) -> Result<()> {
        let (granularity_bits, table) = {
            let list = lock(&self.bitmaps.list);
            match (&list[index].content, &list[index].on_disk) {
                (Content::InFile, Some(now)) => (list[index].granularity_bits, now.table.clone()),
                _ => return Ok(()),
            }
        };
        let size = self.size.load(Ordering::Acquire);
        let bits = read_bits(&self.disk, self.geometry, size, granularity_bits, &table).await;
        let bits = bits.map_err(|e| self.named(e))?;
        lock(&self.bitmaps.list)[index].content = Content::Loaded(bits);
        Ok(())
    }

    /// What `look` sees of the bits of the bitmap at `index`, which are in memory.
    fn with_bits<T>(&self, index: usize, look: impl FnOnce(&mut Bits) -> T) -> T {
        match &mut lock(&self.bitmaps.list)[index].content {
            Content::Loaded(bits) => look(bits),
            content => unreachable!("the bits are in memory, not {content:?}"),
        }
    }

    async fn change_bits(&self, index: usize, change: impl FnOnce(&mut Bits)) -> Result<()> {
        let before = self.with_bits(index, |bits| {
            let before = bits.clone();
            change(bits);
            before
        });
        let committed = self.guarded(self.commit_changed(None)).await;
        if committed.is_err() {
            self.with_bits(index, |bits| {
                // What has been recorded meanwhile stays.
                bits.merge(&before);
                bits.mark_changed();
            });
        }
        committed
    }

    /// Fails unless a bitmap called `name` can be added.
    fn check_new_bitmap(&self, name: &OsStr, granularity: u64) -> Result<()> {
        if name.is_empty() {
            return Err(Error::invalid("Bitmap name cannot be empty"));
        }
        let granularity_bits = granularity_bits(granularity)?;
        if self.bitmaps.find(name).is_some() {
            return Err(Error::invalid(format!("Bitmap already exists: {}", name.display())));
        }
        self.check_storable(name, granularity_bits)
            .map_err(|e| e.context(format!("Can't make bitmap '{}' persistent", name.display())))
    }

    /// Fails unless the image has room for one more bitmap called `name`.
    fn check_storable(&self, name: &OsStr, granularity_bits: u8) -> Result<()> {
        if lock(&self.header).version == Version::V2 {
            return Err(Error::unsupported("Cannot store dirty bitmaps in qcow2 v2 files"));
        }
        let size = self.size.load(Ordering::Acquire);
        if size == 0 {
            return Err(Error::unsupported("the disk has no bytes to keep a bitmap of"));
        }
        if bytes_needed(size, granularity_bits) > BITMAP_BYTES_MAX {
            return Err(Error::limit(
                "Too much space will be occupied by the bitmap. Use larger granularity",
            ));
        }
        if name.len() > BITMAP_NAME_BYTES_MAX.into() {
            return Err(Error::limit(format!(
                "Name length exceeds maximum ({BITMAP_NAME_BYTES_MAX} characters)"
            )));
        }
        let list = lock(&self.bitmaps.list);
        if list.len() >= BITMAP_COUNT_MAX as usize {
            return Err(Error::limit("Maximum number of persistent bitmaps is already reached"));
        }
        let lens = list.iter().map(|b| directory_len(b.name.len(), b.extra.len()));
        if lens.sum::<u64>() + directory_len(name.len(), 0) > BITMAP_DIRECTORY_BYTES_MAX {
            return Err(Error::limit("Not enough space in the bitmap directory"));
        }
        Ok(())
    }

    /// Fails where one bitmap more, of this granularity, cannot record what is written.
    fn check_recording(&self, one_more: Option<u8>) -> Result<()> {
        let Some(one_more) = one_more else { return Ok(()) };
        let size = self.size.load(Ordering::Acquire);
        let list = lock(&self.bitmaps.list);
        let recording = list.iter().filter(|bitmap| bitmap.enabled).map(|b| b.granularity_bits);
        check_recording(recording.chain([one_more]).map(|bits| bytes_needed(size, bits)).sum())
    }
}

impl Bitmap {
    fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.name.clone(),
            granularity: 1 << self.granularity_bits,
            enabled: self.enabled,
            usable: matches!(self.content, Content::InFile | Content::Loaded(_)),
        }
    }

    /// Fails unless its bits mean something.
    pub(super) fn check_usable(&self) -> Result<()> {
        let name = self.name.display();
        match self.content {
            Content::InFile | Content::Loaded(_) => Ok(()),
            Content::Inconsistent => Err(Error::unsupported(format!(
                "Bitmap '{name}' is inconsistent and cannot be used"
            ))),
            Content::Foreign => Err(Error::unsupported(format!(
                "Bitmap '{name}' has extra data of an unknown kind and cannot be used"
            ))),
        }
    }
}

/// log2 of a granularity in bytes.
fn granularity_bits(granularity: u64) -> Result<u8> {
    let bits = granularity.checked_ilog2().and_then(|bits| u8::try_from(bits).ok());
    let valid = bits.filter(|bits| BITMAP_GRANULARITY_BITS.contains(bits));
    valid
        .filter(|_| granularity.is_power_of_two())
        .ok_or_else(|| Error::invalid("Granularity must be power of 2 and at least 512"))
}

fn not_found(name: &OsStr) -> Error {
    Error::new(ErrorKind::NotFound, format!("Dirty bitmap '{}' not found", name.display()))
}
