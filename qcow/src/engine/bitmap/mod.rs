//! Persistent bitmaps of an image that is open for writing: what they are, and the recording of what is written.
//!
//! ```text
//! open          enabled bitmaps are read into memory; what a crash has left in use stays unusable
//! first change  enabled bitmaps are marked in use in the file, durably: from here on only memory knows their bits
//! each change   sets bits in memory before its request ends
//! close         bits that have changed are written beside the old ones, a new directory names them, and the header is
//!               pointed to it in one sector
//! ```
//!
//! So the file has, at each moment, a bitmap that covers every change, or one that says of itself that it means nothing.
//! Verbs that change a bitmap are durable once they succeed, each by the same one sector.

use std::ffi::{OsStr, OsString};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::addr::HostOffset;
use crate::disk::Disk;
use crate::format::bitmap::{BitmapCluster, BitmapEntry, BitmapFlags};
use crate::meta::bitmap::Bits;
use crate::seeded_bugs::Bug;
use crate::sync::{Exclusive, lock};

use super::Image;
use super::layer::Layer;

mod commit;
mod in_use;
mod load;
mod resize;
mod verbs;

pub(super) use load::read_bitmaps;
pub use load::read_directory;
pub use verbs::BitmapInfo;

/// The bitmaps of one image.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    /// In the order of the directory.
    list: Mutex<Vec<Bitmap>>,
    /// Whether any of them records what is written.
    recording: AtomicBool,
    /// Held by whoever changes more of a bitmap than its bits, and by the first change of a session; taken before
    /// `Qcow2::structure`.
    pub changing: Exclusive,
}

/// One bitmap.
#[derive(Debug)]
struct Bitmap {
    name: OsString,
    granularity_bits: u8,
    extra: Vec<u8>,
    /// Whether it is to record what is written.
    enabled: bool,
    content: Content,
    /// What the directory in the file says of it; `None` until it is there.
    on_disk: Option<OnDisk>,
}

#[derive(Debug)]
enum Content {
    /// It was in use when a program died: it means nothing, and can only be removed.
    Inconsistent,
    /// Only a program that knows its extra data may use it.
    Foreign,
    /// As the file has it.
    InFile,
    /// Here.
    Loaded(Bits),
}

/// A bitmap in the file.
#[derive(Clone, Debug)]
struct OnDisk {
    flags: BitmapFlags,
    table_offset: HostOffset,
    table: Vec<BitmapCluster>,
}

impl Bitmap {
    /// What the directory is to say of it. While the image is being changed (`in_session`), an enabled bitmap is in use.
    fn flags(&self, in_session: bool) -> BitmapFlags {
        let now = self.on_disk.as_ref().map_or(BitmapFlags::default(), |on_disk| on_disk.flags);
        match self.content {
            Content::Inconsistent | Content::Foreign => now,
            Content::InFile | Content::Loaded(_) => {
                let in_use =
                    self.enabled && in_session && !Bug::BitmapValidWhileWritten.is_seeded();
                now.with(BitmapFlags::AUTO, self.enabled).with(BitmapFlags::IN_USE, in_use)
            }
        }
    }

    /// The bitmap that `entry` describes, with its table, which is in the file.
    fn from_entry(entry: BitmapEntry, table: Vec<BitmapCluster>) -> Self {
        let known =
            entry.extra.is_empty() || entry.flags.contains(BitmapFlags::EXTRA_DATA_COMPATIBLE);
        let content = match entry.flags.contains(BitmapFlags::IN_USE) {
            true => Content::Inconsistent,
            false if known => Content::InFile,
            false => Content::Foreign,
        };
        Self {
            enabled: entry.flags.contains(BitmapFlags::AUTO),
            content,
            on_disk: Some(OnDisk { flags: entry.flags, table_offset: entry.table_offset, table }),
            name: entry.name,
            granularity_bits: entry.granularity_bits,
            extra: entry.extra,
        }
    }

    /// Its directory entry, with a table of `table_size` entries at `table_offset`.
    fn entry(
        &self,
        flags: BitmapFlags,
        table_offset: HostOffset,
        table_size: usize,
    ) -> BitmapEntry {
        BitmapEntry {
            name: self.name.clone(),
            flags,
            granularity_bits: self.granularity_bits,
            table_offset,
            // Within a limit that was checked before the table was made or read.
            table_size: table_size as u32,
            extra: self.extra.clone(),
        }
    }

    /// Its bits, where it records what is written.
    fn recording(&mut self) -> Option<&mut Bits> {
        match &mut self.content {
            Content::Loaded(bits) if self.enabled => Some(bits),
            _ => None,
        }
    }
}

impl Bitmaps {
    fn new(list: Vec<Bitmap>) -> Self {
        let bitmaps = Self { list: Mutex::new(list), ..Self::default() };
        bitmaps.update_recording();
        bitmaps
    }

    /// Whether there is any, usable or not.
    pub fn exist(&self) -> bool {
        !lock(&self.list).is_empty()
    }

    /// Whether any bitmap records what is written.
    pub fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Acquire)
    }

    /// Sets the bits of `len` bytes at `at` in every bitmap that records, when the guard is dropped: however the request
    /// ends, its bytes may have changed.
    pub fn record(&self, at: u64, len: u64) -> Recording<'_> {
        Recording { bitmaps: self, at, len }
    }

    /// To be called after bitmaps came, left, or were enabled or disabled.
    fn update_recording(&self) {
        let mut list = lock(&self.list);
        let recording = list.iter_mut().any(|bitmap| bitmap.recording().is_some());
        self.recording.store(recording, Ordering::Release);
    }

    /// Where the bitmap called `name` stands.
    fn find(&self, name: &OsStr) -> Option<usize> {
        lock(&self.list).iter().position(|bitmap| bitmap.name == name)
    }
}

/// A change under way.
#[derive(Debug)]
pub(super) struct Recording<'a> {
    bitmaps: &'a Bitmaps,
    at: u64,
    len: u64,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.bitmaps.is_recording() {
            return;
        }
        for bits in lock(&self.bitmaps.list).iter_mut().filter_map(Bitmap::recording) {
            bits.set(self.at, self.len);
        }
    }
}

impl<D: Disk> Image<D> {
    /// As [`Bitmaps::record`], of the top image.
    pub(super) fn record(&self, at: u64, len: u64) -> Option<Recording<'_>> {
        match self.top() {
            Layer::Qcow2(qcow2) => Some(qcow2.bitmaps.record(at, len)),
            Layer::Sealed(_) | Layer::Raw(_) | Layer::Luks(_) => None,
        }
    }
}
