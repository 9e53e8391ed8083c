//! Direct I/O for requests that are not aligned as the device wants it: through an aligned bounce buffer.
//!
//! A write that covers a block only in part reads the block, changes it and writes it back. Two such writes to one block,
//! or one of them and an aligned write, must not overlap in time, or the older bytes win; [`BlockLocks`] keeps them apart.

#![expect(
    unsafe_code,
    reason = "statx, which tells the alignment, has no safe wrapper among our dependencies"
)]

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use crate::sync::{WaitQueue, lock};

/// Alignment where the kernel does not tell: right for every disk in use.
const ALIGNMENT_FALLBACK: u64 = 4096;

/// What the device asks of direct I/O, in bytes; both powers of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alignment {
    pub memory: u64,
    pub offset: u64,
}

impl Alignment {
    /// What direct I/O on `file` asks for, as the kernel tells since 6.1.
    pub fn of(file: &File) -> Self {
        let fallback = Self { memory: ALIGNMENT_FALLBACK, offset: ALIGNMENT_FALLBACK };
        // SAFETY: needed because the answer has no safe zero constructor; all-zero bytes are a valid `statx`.
        let mut answer: libc::statx = unsafe { std::mem::zeroed() };
        // SAFETY: needed to ask. The descriptor is open, the path is an empty C string, and `answer` is ours to fill.
        let result = unsafe {
            let fd = file.as_raw_fd();
            libc::statx(
                fd,
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_DIOALIGN,
                &raw mut answer,
            )
        };
        let told = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
        let (memory, offset) =
            (answer.stx_dio_mem_align.into(), answer.stx_dio_offset_align.into());
        if told && u64::is_power_of_two(memory) && u64::is_power_of_two(offset) {
            // Guests and tables are addressed in sectors of 512 bytes; nothing smaller is ever needed.
            return Self { memory, offset: offset.max(crate::limits::SECTOR_BYTES) };
        }
        fallback
    }

    /// `range` widened to whole blocks.
    pub fn widen(&self, range: Range<u64>) -> Range<u64> {
        range.start & !(self.offset - 1)..range.end.next_multiple_of(self.offset)
    }

    /// Whether a transfer of these memory segments at `at` can go to the device as it is.
    pub fn fits(&self, at: u64, payload: &crate::disk::Payload) -> bool {
        at.is_multiple_of(self.offset)
            && payload.segments().iter().all(|s| {
                (s.start() as u64).is_multiple_of(self.memory)
                    && (s.len() as u64).is_multiple_of(self.offset)
            })
    }
}

/// The byte ranges of the file that are being written, so that a read-modify-write has its blocks to itself.
#[derive(Debug, Default)]
pub(super) struct BlockLocks {
    writing: Mutex<Vec<Range<u64>>>,
    changed: WaitQueue,
}

impl BlockLocks {
    /// Waits until nobody writes to `range` and holds it until the guard is dropped.
    pub async fn hold(&self, range: Range<u64>) -> BlockGuard<'_> {
        self.changed
            .until(|| {
                let mut writing = lock(&self.writing);
                let clash = writing.iter().any(|w| w.start < range.end && range.start < w.end);
                (!clash).then(|| writing.push(range.clone()))
            })
            .await;
        BlockGuard { locks: self, range }
    }
}

pub(super) struct BlockGuard<'a> {
    locks: &'a BlockLocks,
    range: Range<u64>,
}

impl Drop for BlockGuard<'_> {
    fn drop(&mut self) {
        let mut writing = lock(&self.locks.writing);
        if let Some(at) = writing.iter().position(|w| *w == self.range) {
            writing.swap_remove(at);
        }
        drop(writing);
        self.locks.changed.wake_all();
    }
}
