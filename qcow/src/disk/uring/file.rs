//! A host file on io_uring: opening, locking, and the operations of [`Disk`].

use std::fs::OpenOptions;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::Whence;

use super::direct::{Alignment, BlockLocks};
use super::lock::{lock_image, unlock_image};
use super::ring::{self, Operation};
use super::upkeep;
use crate::addr::HostOffset;
use crate::disk::{Buffer, Disk, FileExtent, Identity, Payload};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;

/// Bytes of zeros that one write carries where the file system cannot zero a range by itself.
const ZERO_WRITE_LEN: u64 = 4 << 20;

/// Bytes that a bounce buffer holds at the most.
const BOUNCE_LEN: u64 = 1 << 20;

/// How a file is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read, and locked against writers.
    ReadOnly,
    /// Only read, whatever others do with the file meanwhile (`--force-share`).
    ReadOnlyShared,
    /// Read and written, and locked against everybody else.
    ReadWrite,
    /// Read and written without any lock: somebody else sees to it that nobody comes in between (`locking=off`).
    ReadWriteShared,
    /// As `ReadWrite`, and made first; an existing file is cut to nothing once its lock is held.
    Create,
}

/// Whether I/O goes through the host's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// Through the page cache.
    PageCache,
    /// Straight to the device (`O_DIRECT`).
    Direct,
}

/// One open host file. Cheap to share between threads; every thread uses its own ring.
#[derive(Debug)]
pub struct UringDisk {
    file: Arc<OwnedFd>,
    writable: bool,
    identity: Identity,
    /// Set when I/O bypasses the page cache.
    direct: Option<Direct>,
    /// The stretch of data that was found last. To find its end again, tmpfs looks at each of its pages; who walks a file
    /// would pay for that at every step. What somebody else has made a hole of meanwhile reads as zeros all the same.
    known_data: Mutex<Range<u64>>,
}

#[derive(Debug)]
struct Direct {
    alignment: Alignment,
    locks: BlockLocks,
}

impl UringDisk {
    /// Opens and locks the file at `path`.
    pub fn open(path: &Path, access: Access, cache: CacheMode) -> Result<Self> {
        Self::open_unnamed(path, access, cache).map_err(|e| e.in_file(path))
    }

    fn open_unnamed(path: &Path, access: Access, cache: CacheMode) -> Result<Self> {
        ring::set_up_ring().map_err(|e| {
            Error::io("cannot set up an io_uring (is kernel.io_uring_disabled set?)", &e)
        })?;
        let writable = !matches!(access, Access::ReadOnly | Access::ReadOnlyShared);
        let mut options = OpenOptions::new();
        options.read(true).write(writable).create(access == Access::Create);
        // Nonblocking, so that a FIFO in the image's place cannot hang the program; regular files ignore it.
        let direct = if cache == CacheMode::Direct { libc::O_DIRECT } else { 0 };
        options.custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | direct);
        let file = options.open(path).map_err(|e| Error::io("Could not open", &e))?;
        let metadata = file.metadata().map_err(|e| Error::io("stat", &e))?;
        refuse_odd_files(&metadata.file_type())?;
        // Kernels before 6.2 would let nonblocking I/O on some devices fail instead of waiting.
        let flags = OFlag::from_bits_retain(direct | libc::O_RDWR);
        let blocking = nix::fcntl::fcntl(&file, FcntlArg::F_SETFL(flags));
        blocking.map_err(|e| Error::io("set the file's flags", &e.into()))?;
        if !matches!(access, Access::ReadOnlyShared | Access::ReadWriteShared) {
            lock_image(&file, writable)?;
        }
        if access == Access::Create && metadata.is_file() {
            file.set_len(0).map_err(|e| Error::io("cut the file to nothing", &e))?;
        }
        let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
        let direct = (cache == CacheMode::Direct)
            .then(|| Direct { alignment: Alignment::of(&file), locks: BlockLocks::default() });
        let known_data = Mutex::default();
        Ok(Self { file: Arc::new(file.into()), writable, identity, direct, known_data })
    }

    /// The same file with a coarser alignment for direct I/O than the device asks for; for tests.
    #[must_use]
    pub fn with_alignment(mut self, offset: u64) -> Self {
        assert!(offset.is_power_of_two());
        let alignment = Alignment { memory: offset, offset };
        self.direct = Some(Direct { alignment, locks: BlockLocks::default() });
        self
    }

    async fn read_plain(&self, at: u64, into: &Payload) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let rest = if done == 0 { into.clone() } else { into.slice(done, into.len() - done) };
            match ring::submit(&self.file, Operation::Read { at: at + done, into: rest }).await {
                Ok(0) => break,
                Ok(read) => {
                    done += u64::from(read);
                    if self.ends_inside_block(done) {
                        break;
                    }
                }
                Err(e) if is_transient(&e) => {}
                Err(e) => return Err(e),
            }
        }
        into.zero(done, into.len() - done);
        Ok(())
    }

    /// Whether a direct read of `len` bytes must have met the end of the file: only there it stops inside a block.
    fn ends_inside_block(&self, len: u64) -> bool {
        self.direct.as_ref().is_some_and(|direct| !len.is_multiple_of(direct.alignment.offset))
    }

    async fn write_plain(&self, at: u64, from: &Payload) -> io::Result<()> {
        let mut done = 0;
        while done < from.len() {
            let rest = if done == 0 { from.clone() } else { from.slice(done, from.len() - done) };
            match ring::submit(&self.file, Operation::Write { at: at + done, from: rest }).await {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += u64::from(written),
                Err(e) if is_transient(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads what is not aligned, in pieces: a request must not cost its length in memory again.
    async fn read_bounced(&self, direct: &Direct, at: u64, into: &Payload) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let piece = (into.len() - done).min(BOUNCE_LEN);
            self.read_piece(direct, at + done, &into.slice(done, piece)).await?;
            done += piece;
        }
        Ok(())
    }

    async fn read_piece(&self, direct: &Direct, at: u64, into: &Payload) -> io::Result<()> {
        let wide = direct.alignment.widen(at..at + into.len());
        let bounce = Buffer::zeroed((wide.end - wide.start) as usize).payload();
        self.read_plain(wide.start, &bounce).await?;
        into.copy_from_payload(&bounce.slice(at - wide.start, into.len()));
        Ok(())
    }

    async fn write_direct(&self, direct: &Direct, at: u64, from: &Payload) -> io::Result<()> {
        let _blocks = direct.locks.hold(direct.alignment.widen(at..at + from.len())).await;
        if direct.alignment.fits(at, from) {
            return self.write_plain(at, from).await;
        }
        let mut done = 0;
        while done < from.len() {
            let piece = (from.len() - done).min(BOUNCE_LEN);
            self.write_piece(direct, at + done, &from.slice(done, piece)).await?;
            done += piece;
        }
        Ok(())
    }

    /// Writes whole blocks, around `from` with what they hold now. The caller has the blocks to itself.
    async fn write_piece(&self, direct: &Direct, at: u64, from: &Payload) -> io::Result<()> {
        let wide = direct.alignment.widen(at..at + from.len());
        // Where the last block reaches past the end of the file, the file grows by the zeros read there.
        let bounce = Buffer::zeroed((wide.end - wide.start) as usize).payload();
        if wide != (at..at + from.len()) {
            self.read_plain(wide.start, &bounce).await?;
        }
        bounce.slice(at - wide.start, from.len()).copy_from_payload(from);
        self.write_plain(wide.start, &bounce).await
    }

    fn is_block_device(&self) -> io::Result<bool> {
        let mode = nix::sys::stat::fstat(&self.file)?.st_mode;
        Ok(mode & libc::S_IFMT == libc::S_IFBLK)
    }

    async fn fallocate(&self, mode: FallocateFlags, at: HostOffset, len: u64) -> io::Result<()> {
        let done = loop {
            let operation = Operation::Fallocate { mode: mode.bits(), at: at.get(), len };
            match upkeep::perform(&self.file, operation).await {
                Ok(_) => break Ok(()),
                Err(e) if is_transient(&e) => {}
                Err(e) => break Err(e),
            }
        };
        self.forget_data();
        done
    }

    /// There may be holes where there was data.
    fn forget_data(&self) {
        *lock(&self.known_data) = 0..0;
    }

    /// Makes a range read as zeros and keep its space, without writing; an error where this file cannot.
    async fn zero_range(&self, at: HostOffset, len: u64) -> io::Result<()> {
        match self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, at, len).await {
            // As tmpfs: a hole, and then space for it, come to the same.
            Err(e) if is_unsupported(&e) && self.punch_hole(at, len).await? => {
                self.allocate(at, len).await
            }
            other => other,
        }
    }

    async fn write_zeroes_by_hand(&self, at: HostOffset, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ZERO_WRITE_LEN);
            self.write(at.plus(done), &Payload::zeros(piece)).await?;
            done += piece;
        }
        Ok(())
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        unlock_image(&self.file);
    }
}

impl Disk for UringDisk {
    async fn read(&self, at: HostOffset, into: &Payload) -> io::Result<()> {
        assert!(into.is_writable(), "a read into a read-only payload");
        match &self.direct {
            Some(direct) if !direct.alignment.fits(at.get(), into) => {
                self.read_bounced(direct, at.get(), into).await
            }
            _ => self.read_plain(at.get(), into).await,
        }
    }

    async fn write(&self, at: HostOffset, from: &Payload) -> io::Result<()> {
        match &self.direct {
            Some(direct) => self.write_direct(direct, at.get(), from).await,
            None => self.write_plain(at.get(), from).await,
        }
    }

    async fn write_zeroes(&self, at: HostOffset, len: u64) -> io::Result<()> {
        let zeroed = {
            // A neighbour's read-modify-write must not bring the old bytes back.
            let _blocks = match &self.direct {
                Some(direct) => {
                    let range = at.get()..at.get() + len;
                    Some(direct.locks.hold(direct.alignment.widen(range)).await)
                }
                None => None,
            };
            self.zero_range(at, len).await
        };
        match zeroed {
            Err(e) if is_unsupported(&e) => self.write_zeroes_by_hand(at, len).await,
            other => other,
        }
    }

    async fn punch_hole(&self, at: HostOffset, len: u64) -> io::Result<bool> {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match self.fallocate(mode, at, len).await {
            Ok(()) => Ok(true),
            Err(e) if is_unsupported(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn unmap_zeroes(&self, at: HostOffset, len: u64) -> io::Result<()> {
        match self.punch_hole(at, len).await {
            // A hole of a file reads as zeros, and one that cannot be punched is not there.
            Ok(true) => Ok(()),
            Ok(false) => self.write_zeroes(at, len).await,
            Err(e) => Err(e),
        }
    }

    async fn allocate(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::empty(), at, len).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        if self.is_block_device()? {
            // It has the length it has.
            let fits = len <= self.len()?;
            return if fits { Ok(()) } else { Err(Errno::ENOSPC.into()) };
        }
        let set = upkeep::perform(&self.file, Operation::SetLen { len }).await;
        self.forget_data();
        match set {
            Ok(_) => Ok(()),
            // Kernels before 6.9 have no asynchronous ftruncate.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                let len = i64::try_from(len).map_err(|_| io::Error::from(Errno::EFBIG))?;
                Ok(nix::unistd::ftruncate(&self.file, len)?)
            }
            Err(e) => Err(e),
        }
    }

    async fn sync(&self) -> io::Result<()> {
        loop {
            match upkeep::perform(&self.file, Operation::Sync).await {
                Ok(_) => return Ok(()),
                Err(e) if is_transient(&e) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn drop_cache(&self, bytes: Range<u64>) -> io::Result<()> {
        let (at, len) = (bytes.start as i64, (bytes.end - bytes.start) as i64);
        match posix_fadvise(&self.file, at, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
            // A device of characters, or a file system without a cache.
            Ok(()) | Err(Errno::EINVAL | Errno::ESPIPE | Errno::EOPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn len(&self) -> io::Result<u64> {
        if self.is_block_device()? {
            // A block device has no length of its own; its end is where seeking ends.
            return Ok(nix::unistd::lseek64(&self.file, 0, Whence::SeekEnd)? as u64);
        }
        Ok(nix::sys::stat::fstat(&self.file)?.st_size as u64)
    }

    fn allocated_len(&self) -> io::Result<u64> {
        Ok(nix::sys::stat::fstat(&self.file)?.st_blocks as u64 * 512)
    }

    fn extent_at(&self, at: HostOffset) -> io::Result<FileExtent> {
        let known = lock(&self.known_data).clone();
        if known.contains(&at.get()) {
            return Ok(FileExtent { len: known.end - at.get(), data: true });
        }
        let start = at.get() as i64;
        let hole = match nix::unistd::lseek64(&self.file, start, Whence::SeekHole) {
            Ok(hole) => hole,
            // No holes known here: everything is data.
            Err(Errno::EINVAL | Errno::ENXIO) => self.len()? as i64,
            Err(e) => return Err(e.into()),
        };
        if hole > start {
            *lock(&self.known_data) = at.get()..hole as u64;
            return Ok(FileExtent { len: (hole - start) as u64, data: true });
        }
        let data = match nix::unistd::lseek64(&self.file, start, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => self.len()? as i64,
            Err(e) => return Err(e.into()),
        };
        Ok(FileExtent { len: (data - start).max(0) as u64, data: false })
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn identity(&self) -> Identity {
        self.identity
    }

    fn random_number(&self) -> u64 {
        // The keys of the standard library's hash maps come from the kernel's random numbers.
        RandomState::new().build_hasher().finish()
    }
}

fn refuse_odd_files(kind: &std::fs::FileType) -> Result<()> {
    let what = if kind.is_dir() {
        "is a directory, not an image"
    } else if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else {
        "is neither a regular file nor a block device"
    };
    Err(Error::new(ErrorKind::Invalid, what))
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Whether this file cannot do it, or (`EINVAL`) not in blocks as small as these.
fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [libc::EOPNOTSUPP, libc::ENOSYS, libc::ENODEV, libc::EINVAL];
    error.raw_os_error().is_some_and(|errno| unsupported.contains(&errno))
}
