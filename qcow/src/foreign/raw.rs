//! Raw images: the disk's bytes and nothing else, or behind a header that others know.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{HostOffset, sector_ceil};
use crate::disk::{Disk, FileExtent, Payload};
use crate::error::{Error, Result};
use crate::sync::lock;

/// Zeros that one write carries.
const ZERO_WRITE_LEN: u64 = 4 << 20;

/// Direct I/O is done in blocks of so many bytes at most.
const BLOCK_LEN_MAX: u64 = 64 << 10;

/// What a file that grows has in its new part; all of it reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewPart {
    /// A hole.
    Hole,
    /// Space that is kept for it.
    Reserved,
    /// Zeros that were written.
    Zeros,
}

/// An open raw image.
#[derive(Debug)]
pub struct Raw<D: Disk> {
    disk: D,
    path: PathBuf,
    /// The byte of the file where the disk starts.
    start: u64,
    size: AtomicU64,
    /// The most bytes that the file is to have: up to the disk's end, but while it grows.
    len_max: AtomicU64,
    flushes: bool,
    failure: Mutex<Option<Error>>,
}

impl<D: Disk> Raw<D> {
    /// The raw image in `disk`; its virtual size is the file's, rounded up to whole sectors.
    ///
    /// # Errors
    /// The length of the file cannot be found, or is beyond all bounds.
    pub fn new(disk: D, path: &Path, flushes: bool) -> Result<Self> {
        Self::behind(disk, path, 0, flushes)
    }

    /// As [`Self::new`], of a disk that starts at byte `start` of the file, a multiple of 512.
    ///
    /// # Errors
    /// As [`Self::new`]; or the file ends in front of that.
    pub fn behind(disk: D, path: &Path, start: u64, flushes: bool) -> Result<Self> {
        let len = disk.len().map_err(|e| Error::io("find the length", &e).in_file(path))?;
        let size = size_of(len, start).map_err(|e| e.in_file(path))?;
        let (size, len_max) = (AtomicU64::new(size), AtomicU64::new(start + size));
        let (path, failure) = (path.to_owned(), Mutex::new(None));
        Ok(Self { disk, path, start, size, len_max, flushes, failure })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Where the byte `at` of the disk lies in the file.
    pub fn place_of(&self, at: u64) -> HostOffset {
        HostOffset::new(self.start + at)
    }

    /// Cuts or extends the disk to `len` bytes, and makes that durable.
    pub async fn resize(&self, len: u64, new: NewPart) -> Result<()> {
        let too_long = || Error::limit("the file would be too long");
        let len = self.start.checked_add(len).ok_or_else(too_long)?;
        let end = sector_ceil(len).ok_or_else(too_long)?;
        let old = self.disk.len().map_err(|e| self.failed("find the length", 0, &e))?;
        self.len_max.fetch_max(end, Ordering::AcqRel);
        if let Err(e) = set_len(&self.disk, old, len, new).await {
            if len > old && self.disk.set_len(old).await.is_err() {
                tracing::warn!("{}: the file stays longer than it was", self.path.display());
            }
            return Err(e.in_file(&self.path));
        }
        self.flush().await?;
        self.size.store(end - self.start, Ordering::Release);
        self.len_max.store(end, Ordering::Release);
        Ok(())
    }

    /// Fails once a flush has failed.
    pub fn health(&self) -> Result<()> {
        lock(&self.failure).clone().map_or(Ok(()), Err)
    }

    /// Reads from `at`; bytes past the end are zeros.
    pub async fn read(&self, at: u64, into: &Payload) -> Result<()> {
        let read = self.disk.read(self.place_of(at), into).await;
        read.map_err(|e| self.failed("read", at, &e))
    }

    /// Writes at `at`.
    pub async fn write(&self, at: u64, from: &Payload) -> Result<()> {
        let written = self.disk.write(self.place_of(at), from).await;
        self.cut_off_rest(at + from.len()).await?;
        written.map_err(|e| self.failed("write", at, &e))
    }

    /// Cuts off what a change that ended at `end` has put behind the end of the disk: direct I/O writes whole blocks.
    async fn cut_off_rest(&self, end: u64) -> Result<()> {
        let end = self.start + end;
        let len_max = self.len_max.load(Ordering::Acquire);
        let end_of_block = end.next_multiple_of(BLOCK_LEN_MAX);
        if end_of_block <= len_max {
            return Ok(());
        }
        let cut = async {
            // A file that is longer than that has become so in another way.
            match (len_max + 1..=end_of_block).contains(&self.disk.len()?) {
                true => self.disk.set_len(len_max).await,
                false => Ok(()),
            }
        };
        cut.await.map_err(|e| self.failed("cut off what lies behind", len_max, &e))
    }

    /// Makes a range read as zeros; with `unmap` its space is given back where the host can.
    pub async fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<()> {
        if unmap && self.punch(at, len).await? {
            return Ok(());
        }
        let zeroed = self.disk.write_zeroes(self.place_of(at), len).await;
        self.cut_off_rest(at + len).await?;
        zeroed.map_err(|e| self.failed("write zeroes", at, &e))
    }

    /// Gives the space of a range back.
    pub async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.punch(at, len).await.map(drop)
    }

    async fn punch(&self, at: u64, len: u64) -> Result<bool> {
        let punched = self.disk.punch_hole(self.place_of(at), len).await;
        punched.map_err(|e| self.failed("discard", at, &e))
    }

    /// Makes completed writes durable; after a failure the image takes no more writes.
    pub async fn flush(&self) -> Result<()> {
        if !self.flushes {
            return Ok(());
        }
        self.health()?;
        let synced = self.disk.sync().await;
        synced.map_err(|e| {
            let lost =
                Error::io("a flush failed, the image is read-only now", &e).in_file(&self.path);
            lock(&self.failure).get_or_insert(lost).clone()
        })
    }

    /// The stretch of data or hole at `at`, which lies inside the disk. What fills up the last sector is a hole.
    pub fn extent_at(&self, at: u64) -> Result<FileExtent> {
        let len = self.disk.len().map_err(|e| self.failed("map", at, &e))?;
        let (place, rest) = (self.place_of(at), self.size().saturating_sub(at));
        if place.get() >= len {
            return Ok(FileExtent { len: rest, data: false });
        }
        let mut extent = self.disk.extent_at(place).map_err(|e| self.failed("map", at, &e))?;
        if place.get() + extent.len == len && !extent.data {
            extent.len = rest.max(extent.len);
        }
        Ok(extent)
    }

    fn failed(&self, what: &str, at: u64, error: &std::io::Error) -> Error {
        Error::io(format!("{what} at {at:#x}"), error).in_file(&self.path)
    }
}

/// Cuts `disk`, which has `old` bytes, to `len`, or extends it so.
///
/// # Errors
/// The host failed.
pub(super) async fn set_len<D: Disk>(disk: &D, old: u64, len: u64, new: NewPart) -> Result<()> {
    let (start, added) = (HostOffset::new(old), len.saturating_sub(old));
    if new == NewPart::Reserved && added > 0 {
        let allocated = disk.allocate(start, added).await;
        return allocated.map_err(|e| Error::io("Could not preallocate new data", &e));
    }
    let resized = disk.set_len(len).await;
    resized.map_err(|e| Error::io("Could not resize file", &e))?;
    let mut done = 0;
    while new == NewPart::Zeros && done < added {
        let zeros = Payload::zeros(ZERO_WRITE_LEN.min(added - done));
        let written = disk.write(start.plus(done), &zeros).await;
        written.map_err(|e| Error::io("Could not write zeros for preallocation", &e))?;
        done += zeros.len();
    }
    Ok(())
}

/// Bytes of a disk that starts at byte `start`, a multiple of 512, of a file of `file_len` bytes: up to its end, in whole
/// sectors.
///
/// # Errors
/// The file ends in front of that, or is too long.
pub(crate) fn size_of(file_len: u64, start: u64) -> Result<u64> {
    let end = sector_ceil(file_len).ok_or_else(|| Error::limit("the file is too long"))?;
    end.checked_sub(start).ok_or_else(|| {
        let what = format!(
            "the file ends at {file_len:#x}, in front of the disk, which starts at {start:#x}"
        );
        Error::corrupt(what)
    })
}
