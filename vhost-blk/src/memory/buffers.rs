//! The buffers of a request in guest memory, found once and then read or handed to I/O.
#![expect(
    unsafe_code,
    reason = "buffers belong to the guest and the kernel, so they are reached by address"
)]

use std::any::Any;
use std::sync::Arc;

use qcow::disk::Payload;
use smallvec::SmallVec;

use super::QueueMemory;
use super::table::Piece;

/// Bytes of a piece of all memory at most: as many as the kernel pins at a time.
const PIECE_LEN_MAX: u64 = 1 << 30;

/// The buffers of one direction of a request, in order. Each piece has been found in the guest's memory.
#[derive(Debug)]
pub struct Buffers<'m> {
    memory: &'m Arc<QueueMemory>,
    pieces: SmallVec<[Piece; 8]>,
    len: u64,
}

/// A buffer that does not lie in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideMemory;

impl<'m> Buffers<'m> {
    /// No buffers yet.
    pub fn new(memory: &'m Arc<QueueMemory>) -> Self {
        Self { memory, pieces: SmallVec::new(), len: 0 }
    }

    /// All of the guest's memory, for I/O, in pieces of at most [`PIECE_LEN_MAX`] bytes.
    pub fn whole_memory(memory: &Arc<QueueMemory>) -> Payload {
        let mut all = Buffers::new(memory);
        for (guest, len) in memory.table.places() {
            let pieces = (0..len).step_by(PIECE_LEN_MAX as usize);
            for at in pieces {
                let piece = (len - at).min(PIECE_LEN_MAX) as u32;
                all.push(guest + at, piece).expect("a region is memory");
            }
        }
        all.payload(0, all.len)
    }

    /// Adds the `len` bytes at guest address `guest`; none of them where not all of them exist.
    pub fn push(&mut self, guest: u64, len: u32) -> Result<(), OutsideMemory> {
        let (before, mut at, mut left) = (self.pieces.len(), guest, u64::from(len));
        while left > 0 {
            let Some((start, len)) = self.memory.table.piece(at, left) else {
                self.pieces.truncate(before);
                return Err(OutsideMemory);
            };
            self.pieces.push((start, len));
            left -= len as u64;
            // At the very end of the address space nothing is left.
            at = at.wrapping_add(len as u64);
        }
        self.len += u64::from(len);
        Ok(())
    }

    /// Bytes of all buffers together.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The `N` bytes from byte `at` on. Each is read exactly once, so that what is checked is what is used.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let mut filled = 0;
        for (start, len) in self.part(at, N as u64) {
            if len == N {
                // SAFETY: needed to read memory that the guest may write meanwhile. The piece lies in a region that the
                // table keeps mapped; any bytes make an array of bytes, which may lie at any address.
                return unsafe { start.cast::<[u8; N]>().read_volatile() };
            }
            for offset in 0..len {
                // SAFETY: as above; `offset` lies inside the piece.
                bytes[filled] = unsafe { start.add(offset).read_volatile() };
                filled += 1;
            }
        }
        bytes
    }

    /// `len` bytes from byte `at` on, for I/O.
    pub fn payload(&self, at: u64, len: u64) -> Payload {
        let owner: Arc<dyn Any + Send + Sync> = Arc::<QueueMemory>::clone(self.memory);
        // SAFETY: needed to do I/O on guest memory in place. Every piece was found in a region of the table that the owner
        // keeps mapped, readable and writable, and nobody makes references to guest memory. A payload is also copied in
        // bulk, by plain copies that race with the guest. Assumed is that such a copy moves bytes, some old and some new, and
        // does nothing else; no bounds or addresses are ever taken from the bytes of a payload.
        unsafe { Payload::from_raw(self.part(at, len), owner) }
    }

    /// The pieces that hold `len` bytes from byte `at` on; some may be empty.
    fn part(&self, at: u64, len: u64) -> impl Iterator<Item = Piece> {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "beyond the buffers");
        let (mut skip, mut left) = (at as usize, len as usize);
        self.pieces.iter().map(move |&(start, len)| {
            let before = skip.min(len);
            let taken = left.min(len - before);
            skip -= before;
            left -= taken;
            // SAFETY: needed for address arithmetic inside a piece: `before` is at most its length.
            (unsafe { start.add(before) }, taken)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryTable;
    use crate::memory::testing::{PAGE, file, place};

    #[test]
    fn a_buffer_may_cross_regions_but_not_a_gap() {
        let table = MemoryTable::default()
            .with(place(1, 900, 1), file(1), 0)
            .and_then(|t| t.with(place(2, 500, 1), file(1), 0))
            .and_then(|t| t.with(place(4, 700, 1), file(1), 0))
            .unwrap();
        let memory = QueueMemory::new(Arc::new(table));
        let mut buffers = Buffers::new(&memory);
        buffers.push(2 * PAGE - 2, 4).unwrap();
        assert_eq!(buffers.push(3 * PAGE - 2, 4), Err(OutsideMemory));
        assert_eq!(buffers.push(u64::MAX, 2), Err(OutsideMemory));
        assert_eq!(buffers.push(0, 1), Err(OutsideMemory));
        assert_eq!(buffers.len(), 4);
        buffers.payload(0, 4).copy_from(0, b"abcd");
        assert_eq!(&buffers.read::<2>(1), b"bc");
        assert_eq!(&buffers.read::<2>(2), b"cd");
    }
}
