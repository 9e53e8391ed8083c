//! The memory of the record: made here, kept by the frontend, and believed by nobody when it comes back.
//!
//! ```text
//! queue 0, queue 1, ..       each at a multiple of 64 bytes, so that no two share a cache line
//! room for the redo log      1 MiB, at a multiple of a page
//! ```
//!
//! A page that is not there ends the process that touches it (SIGBUS). So the file has to be a memfd of ordinary pages that
//! is sealed against shrinking and long enough: its pages are in memory or come into being when they are touched, nobody can
//! cut it shorter, not even who made it, and what the host is short of is dealt with as any shortage of memory is. Huge pages
//! are refused, because they can run out; files are refused, because their disks can.
#![expect(
    unsafe_code,
    reason = "the memory is shared with another process, so it is reached by address"
)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use qcow::engine::SharedWords;
use vm_memory::{FileOffset, MmapRegion};

use crate::settings::{QUEUE_COUNT_MAX, QUEUE_SIZE_MAX};

/// Bytes of a word.
pub const WORD: usize = size_of::<u64>();
/// Words at the start of a queue's part.
pub const HEADER_WORDS: usize = 2;
/// Words per descriptor.
pub const ENTRY_WORDS: usize = 2;
/// Words of a cache line.
const LINE_WORDS: usize = 64 / WORD;
const PAGE: usize = 4096;
/// Bytes of the room for the redo log: for some 43,000 changes of mappings, half of which may wait for a flush that nobody
/// asks for.
const LOG_LEN: usize = 1 << 20;

/// A region that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    #[error(
        "a record of requests in flight for {queues} queues of {size}; up to {QUEUE_COUNT_MAX} of {QUEUE_SIZE_MAX} are \
         served"
    )]
    Shape { queues: u16, size: u16 },
    #[error(
        "the record of requests in flight has {len} bytes, not the {expected} of {queues} queues of {size}"
    )]
    Length { len: u64, expected: usize, queues: u16, size: u16 },
    #[error(
        "the record of requests in flight starts at byte {0} of its file, which is no multiple of a page"
    )]
    Offset(u64),
    #[error("the record of requests in flight reaches past the end of its file of {0} bytes")]
    PastEnd(u64),
    #[error(
        "the record of requests in flight is no memfd of ordinary pages that is sealed against shrinking"
    )]
    Unsafe,
    #[error("the record of requests in flight cannot be mapped: {0}")]
    Map(#[from] vm_memory::mmap::MmapRegionError),
    #[error("no memory for a record of requests in flight: {0}")]
    Make(#[from] io::Error),
}

/// How many queues a region is for, and of how many descriptors each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    queues: u16,
    size: u16,
}

impl Shape {
    fn new(queues: u16, size: u16) -> Result<Self, RegionError> {
        let served =
            (1..=QUEUE_COUNT_MAX).contains(&queues) && (1..=QUEUE_SIZE_MAX).contains(&size);
        served.then_some(Self { queues, size }).ok_or(RegionError::Shape { queues, size })
    }

    /// Words from one queue's part to the next.
    fn queue_words(self) -> usize {
        (HEADER_WORDS + ENTRY_WORDS * usize::from(self.size)).next_multiple_of(LINE_WORDS)
    }

    /// Where the room for the log begins, in bytes.
    fn log_at(self) -> usize {
        (self.queue_words() * usize::from(self.queues) * WORD).next_multiple_of(PAGE)
    }

    /// Bytes of all.
    fn len(self) -> usize {
        self.log_at() + LOG_LEN
    }
}

/// A region, mapped. It stays so until its last user is gone.
#[derive(Debug)]
pub struct Region {
    shape: Shape,
    mapping: MmapRegion,
}

impl Region {
    /// Makes the memory for `queues` queues of `size`, all zeros, for the frontend to keep. It is sealed: its length stays.
    ///
    /// Returns its length in bytes, too.
    pub fn make(queues: u16, size: u16) -> Result<(File, u64), RegionError> {
        let len = Shape::new(queues, size)?.len() as u64;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("inflight", flags).map_err(io::Error::from)?);
        file.set_len(len)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(io::Error::from)?;
        Ok((file, len))
    }

    /// Maps `len` bytes from byte `at` of `file` on, which should be the memory for `queues` queues of `size`.
    pub fn map(file: File, at: u64, len: u64, queues: u16, size: u16) -> Result<Self, RegionError> {
        let shape = Shape::new(queues, size)?;
        let expected = shape.len();
        if len != expected as u64 {
            return Err(RegionError::Length { len, expected, queues, size });
        }
        if !at.is_multiple_of(PAGE as u64) {
            return Err(RegionError::Offset(at));
        }
        // In this order: the seal makes the length a fact.
        if !is_sealed_memory(&file) {
            return Err(RegionError::Unsafe);
        }
        let file_len = file.metadata()?.len();
        if at.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(RegionError::PastEnd(file_len));
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, at), expected)?;
        Ok(Self { shape, mapping })
    }

    /// Queues that it has a part for.
    pub fn queues(&self) -> usize {
        self.shape.queues.into()
    }

    /// Descriptors of each queue.
    pub fn queue_size(&self) -> u16 {
        self.shape.size
    }

    /// The part of queue `index`, which there is.
    pub fn queue(&self, index: usize) -> &[AtomicU64] {
        assert!(index < self.queues());
        let start = index * self.shape.queue_words();
        let len = HEADER_WORDS + ENTRY_WORDS * usize::from(self.shape.size);
        &self.words()[start..start + len]
    }

    /// The room for the redo log.
    fn log(&self) -> &[AtomicU64] {
        &self.words()[self.shape.log_at() / WORD..]
    }

    fn words(&self) -> &[AtomicU64] {
        let start = self.mapping.as_ptr().cast::<AtomicU64>();
        // SAFETY: needed because memory that is shared by processes has no Rust object. The mapping starts at a page, can be
        // read and written, and lives as long as `self`; no page of it can go away, see the module. Other processes may
        // change it at any time, which is what atomics are for; nothing here refers to it in any other way.
        unsafe { std::slice::from_raw_parts(start, self.shape.len() / WORD) }
    }
}

/// The room for the redo log in a region.
#[derive(Debug)]
pub struct LogRoom(pub Arc<Region>);

impl SharedWords for LogRoom {
    fn words(&self) -> &[AtomicU64] {
        self.0.log()
    }
}

/// Whether `file` is memory that nobody can make shorter and that cannot run out as a file system can.
fn is_sealed_memory(file: &File) -> bool {
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    let is_sealed = seals.is_ok_and(|seals| seals.contains(SealFlag::F_SEAL_SHRINK));
    is_sealed && fstatfs(file).is_ok_and(|what| what.filesystem_type() == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    fn memory(len: u64, seals: SealFlag) -> File {
        let file = File::from(memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        file.set_len(len).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        file
    }

    #[test]
    fn what_was_made_is_mapped_again_and_holds_what_was_stored() {
        let (file, len) = Region::make(3, 100).unwrap();
        assert_eq!(len, 8192 + (1 << 20));
        assert!(file.set_len(0).is_err() && file.set_len(len + 1).is_err());
        let map = || Region::map(file.try_clone().unwrap(), 0, len, 3, 100).unwrap();
        let first = map();
        for index in 0..3 {
            let part = first.queue(index);
            assert_eq!(part.len(), 202);
            part.iter().for_each(|word| assert_eq!(word.swap(index as u64, Ordering::Relaxed), 0));
        }
        drop(first);
        let again = map();
        let holds = |index: usize| again.queue(index)[201].load(Ordering::Relaxed) == index as u64;
        assert!((0..3).all(holds));
    }

    #[test]
    fn what_lies_or_could_end_the_process_is_refused() {
        let shrink = SealFlag::F_SEAL_SHRINK;
        let len = Shape::new(1, 64).unwrap().len() as u64;
        let map = |file: File, at, len| Region::map(file, at, len, 1, 64).map(drop).unwrap_err();
        assert!(Region::map(memory(len, shrink), 0, len, 1, 64).is_ok());
        assert!(Region::map(memory(len + 4096, shrink), 4096, len, 1, 64).is_ok());
        assert!(matches!(map(memory(len, SealFlag::empty()), 0, len), RegionError::Unsafe));
        assert!(matches!(map(memory(len, SealFlag::F_SEAL_GROW), 0, len), RegionError::Unsafe));
        let plain = tempfile::tempfile().unwrap();
        plain.set_len(len).unwrap();
        assert!(matches!(map(plain, 0, len), RegionError::Unsafe));
        let pipe = File::from(nix::unistd::pipe().unwrap().0);
        assert!(matches!(map(pipe, 0, len), RegionError::Unsafe));
        assert!(matches!(map(memory(len - 1, shrink), 0, len), RegionError::PastEnd(_)));
        assert!(matches!(map(memory(len, shrink), 4096, len), RegionError::PastEnd(_)));
        let last_page = u64::MAX - 4095;
        assert!(matches!(map(memory(len, shrink), last_page, len), RegionError::PastEnd(_)));
        assert!(matches!(map(memory(len, shrink), 8, len), RegionError::Offset(8)));
        for wrong in [0, 1, len - 1, len + 1, u64::MAX] {
            assert!(matches!(map(memory(len, shrink), 0, wrong), RegionError::Length { .. }));
        }
        for (queues, size) in [(0, 64), (1, 0), (257, 64), (1, 1025)] {
            assert!(matches!(Region::make(queues, size), Err(RegionError::Shape { .. })));
            let mapped = Region::map(memory(len, shrink), 0, len, queues, size);
            assert!(matches!(mapped, Err(RegionError::Shape { .. })));
        }
    }

    #[test]
    fn huge_pages_are_refused() {
        let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB;
        // Not every kernel has them; where it has, they need not be there to make the file.
        let Ok(file) = memfd_create("test", flags).map(File::from) else { return };
        file.set_len(2 << 20).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        let len = Shape::new(1, 64).unwrap().len() as u64;
        assert!(matches!(Region::map(file, 0, len, 1, 64), Err(RegionError::Unsafe)));
    }
}
