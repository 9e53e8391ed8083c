//! Guest memory: the regions that the frontend shares, and the only ways to touch them.
//!
//! The guest runs on other processors and may change any byte at any time, so no Rust reference ever points at it:
//! bytes are copied, ring fields are accessed as atomics, and I/O goes through [`Payload`]s that keep the mapping alive.
#![expect(
    unsafe_code,
    reason = "guest memory is shared with the guest and the kernel, so it is reached by address"
)]

use std::any::Any;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use qcow::disk::Payload;
use smallvec::SmallVec;
use vm_memory::{FileOffset, MmapRegion};

/// Most regions of one guest: what other vhost-user backends take, too.
pub const REGION_COUNT_MAX: usize = 509;

/// Where a region lies, as the frontend tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionPlace {
    /// Guest physical address of its first byte.
    pub guest: u64,
    /// Address of its first byte in the frontend, which names rings that way.
    pub user: u64,
    /// Bytes.
    pub len: u64,
}

/// A region that cannot be part of the memory.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    #[error("the memory region at guest address {:#x} is empty or wraps around", .0.guest)]
    Bounds(RegionPlace),
    #[error("the memory region at guest address {:#x} overlaps another", .0.guest)]
    Overlap(RegionPlace),
    #[error("the memory region at guest address {:#x} reaches past the end of its file", .0.guest)]
    PastEnd(RegionPlace),
    #[error("there is no memory region at guest address {:#x} like the one to remove", .0.guest)]
    Unknown(RegionPlace),
    #[error("more than {REGION_COUNT_MAX} memory regions")]
    TooMany,
    #[error("the memory region at guest address {:#x} cannot be mapped: {source}", place.guest)]
    Map { place: RegionPlace, source: vm_memory::mmap::MmapRegionError },
}

/// All memory of a guest at one time. Changed memory is a new table; the old one lives until its last user is gone.
#[derive(Debug, Default)]
pub struct MemoryTable {
    /// By guest address; none overlap.
    regions: Vec<Arc<Region>>,
}

#[derive(Debug)]
struct Region {
    place: RegionPlace,
    mapping: MmapRegion,
}

/// Host memory by address: the first byte and the length.
type Piece = (*mut u8, usize);

impl MemoryTable {
    /// This table and one region more, which starts at `file_offset` of `file`.
    pub fn with(
        &self,
        place: RegionPlace,
        file: File,
        file_offset: u64,
    ) -> Result<Self, RegionError> {
        let region = Arc::new(Region::map(place, file, file_offset)?);
        let at = self.regions.partition_point(|r| r.place.guest < place.guest);
        let clash = |other: Option<&Arc<Region>>| other.is_some_and(|r| r.overlaps(place));
        if clash(self.regions.get(at)) || clash(at.checked_sub(1).and_then(|i| self.regions.get(i)))
        {
            return Err(RegionError::Overlap(place));
        }
        if self.regions.len() == REGION_COUNT_MAX {
            return Err(RegionError::TooMany);
        }
        let mut regions = self.regions.clone();
        regions.insert(at, region);
        Ok(Self { regions })
    }

    /// This table without one of its regions.
    pub fn without(&self, place: RegionPlace) -> Result<Self, RegionError> {
        let mut regions = self.regions.clone();
        let at =
            regions.iter().position(|r| r.place == place).ok_or(RegionError::Unknown(place))?;
        regions.remove(at);
        Ok(Self { regions })
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The memory at `guest` as far as it lies in one region, at most `len` bytes.
    fn piece(&self, guest: u64, len: u64) -> Option<Piece> {
        let after = self.regions.partition_point(|r| r.place.guest <= guest);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let offset = guest - region.place.guest;
        let left = region.place.len.checked_sub(offset).filter(|&left| left > 0)?;
        Some((region.address(offset), left.min(len) as usize))
    }
}

impl Region {
    fn map(place: RegionPlace, file: File, file_offset: u64) -> Result<Self, RegionError> {
        let RegionPlace { guest, user, len } = place;
        let wraps = guest.checked_add(len).is_none() || user.checked_add(len).is_none();
        if len == 0 || wraps || isize::try_from(len).is_err() {
            return Err(RegionError::Bounds(place));
        }
        // Touching a page past the end of a file would end this process.
        let file_len = file.metadata().map_or(0, |m| if m.is_file() { m.len() } else { u64::MAX });
        if file_offset.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(RegionError::PastEnd(place));
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, file_offset), len as usize)
            .map_err(|source| RegionError::Map { place, source })?;
        Ok(Self { place, mapping })
    }

    fn overlaps(&self, other: RegionPlace) -> bool {
        self.place.guest < other.guest + other.len
            && other.guest < self.place.guest + self.place.len
    }

    /// Host address of the byte `offset` of this region, which is less than its length.
    fn address(&self, offset: u64) -> *mut u8 {
        assert!(offset < self.place.len);
        // SAFETY: needed for address arithmetic inside the mapping, which is as long as the region.
        unsafe { self.mapping.as_ptr().add(offset as usize) }
    }
}

/// The guest's memory as one queue holds it. Every queue counts its own users, so that queues on different processors do
/// not fight for one counter.
#[derive(Debug)]
pub struct QueueMemory {
    table: Arc<MemoryTable>,
}

impl QueueMemory {
    /// A queue's share of `table`.
    pub fn new(table: Arc<MemoryTable>) -> Arc<Self> {
        Arc::new(Self { table })
    }

    /// `len` bytes at `user`, an address in the frontend, aligned to `align`; `None` where they do not lie in one region
    /// or not so aligned.
    pub fn window(self: &Arc<Self>, user: u64, len: u64, align: u64) -> Option<Window> {
        let inside = |r: &&Arc<Region>| {
            user.checked_sub(r.place.user)
                .is_some_and(|at| at < r.place.len && len <= r.place.len - at)
        };
        let region = self.table.regions.iter().find(inside)?;
        let start = region.address(user - region.place.user);
        let aligned = (start as u64).is_multiple_of(align);
        aligned.then(|| Window { start, len: len as usize, _memory: Arc::clone(self) })
    }
}

/// A contiguous stretch of guest memory: one part of a virtqueue.
#[derive(Debug)]
pub struct Window {
    start: *mut u8,
    len: usize,
    _memory: Arc<QueueMemory>,
}

// SAFETY: needed because raw pointers are not Send. The memory is mapped as long as the window holds its owner, at the
// same address for every thread.
unsafe impl Send for Window {}

impl Window {
    /// The 16-bit field at byte `at`.
    pub fn load_u16(&self, at: usize, order: Ordering) -> u16 {
        let field = self.field::<u16>(at);
        // SAFETY: needed to share the field with the guest; mapped, in bounds and aligned by `field`. Both sides use
        // atomic accesses, as virtio asks.
        u16::from_le(unsafe { AtomicU16::from_ptr(field) }.load(order))
    }

    /// Sets the 16-bit field at byte `at`.
    pub fn store_u16(&self, at: usize, value: u16, order: Ordering) {
        let field = self.field::<u16>(at);
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(field) }.store(value.to_le(), order);
    }

    /// Sets the 32-bit field at byte `at`; whoever publishes it does so with a later store.
    pub fn store_u32(&self, at: usize, value: u32) {
        let field = self.field::<u32>(at);
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU32::from_ptr(field) }.store(value.to_le(), Ordering::Relaxed);
    }

    /// A copy of the 16 bytes at `at`.
    pub fn read_16(&self, at: usize) -> [u8; 16] {
        let bytes = self.field::<[u8; 16]>(at);
        // SAFETY: needed to read memory that the guest may write meanwhile; mapped and in bounds by `field`. Any bytes
        // make an array of bytes.
        unsafe { bytes.read_volatile() }
    }

    fn field<T>(&self, at: usize) -> *mut T {
        assert!(
            at.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len),
            "beyond the window"
        );
        // SAFETY: needed for address arithmetic; just checked to stay inside the window.
        let field = unsafe { self.start.add(at) }.cast::<T>();
        assert!(field.is_aligned(), "an unaligned field");
        field
    }
}

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

    /// Copies bytes out, from byte `at` on.
    pub fn read(&self, at: u64, into: &mut [u8]) {
        let mut rest = into;
        for (start, len) in self.part(at, rest.len() as u64) {
            let (target, behind) = rest.split_at_mut(len);
            // SAFETY: needed to read memory that the guest may write meanwhile. The piece lies in a region that the table
            // keeps mapped, and `target` is as long and ours alone.
            unsafe { std::ptr::copy_nonoverlapping(start, target.as_mut_ptr(), len) };
            rest = behind;
        }
    }

    /// `len` bytes from byte `at` on, for I/O.
    pub fn payload(&self, at: u64, len: u64) -> Payload {
        let owner: Arc<dyn Any + Send + Sync> = Arc::<QueueMemory>::clone(self.memory);
        // SAFETY: needed to do I/O on guest memory in place. Every piece was found in a region of the table that the owner
        // keeps mapped, readable and writable, and nobody makes references to guest memory.
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

    const PAGE: u64 = 4096;

    fn file(pages: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(pages * PAGE).unwrap();
        file
    }

    fn place(guest_page: u64, user_page: u64, pages: u64) -> RegionPlace {
        RegionPlace { guest: guest_page * PAGE, user: user_page * PAGE, len: pages * PAGE }
    }

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
        let mut middle = [0; 2];
        buffers.read(1, &mut middle);
        assert_eq!(&middle, b"bc");
    }

    #[test]
    fn regions_that_lie_are_refused() {
        let table = MemoryTable::default().with(place(1, 900, 2), file(2), 0).unwrap();
        let refused = |place, file, at| table.with(place, file, at).unwrap_err();
        assert!(matches!(refused(place(2, 0, 1), file(1), 0), RegionError::Overlap(_)));
        assert!(matches!(refused(place(0, 0, 2), file(2), 0), RegionError::Overlap(_)));
        assert!(matches!(refused(place(9, 0, 2), file(1), 0), RegionError::PastEnd(_)));
        assert!(matches!(refused(place(9, 0, 1), file(1), PAGE), RegionError::PastEnd(_)));
        assert!(matches!(refused(place(9, 0, 0), file(1), 0), RegionError::Bounds(_)));
        let wrapped = RegionPlace { guest: u64::MAX - 100, user: 0, len: PAGE };
        assert!(matches!(refused(wrapped, file(1), 0), RegionError::Bounds(_)));
        assert!(matches!(table.without(place(9, 0, 1)), Err(RegionError::Unknown(_))));
        assert!(table.without(place(1, 900, 2)).unwrap().is_empty());
    }

    #[test]
    fn windows_lie_inside_one_region_and_are_aligned() {
        let table = MemoryTable::default()
            .with(place(1, 900, 1), file(1), 0)
            .and_then(|t| t.with(place(2, 901, 1), file(1), 0))
            .unwrap();
        let memory = QueueMemory::new(Arc::new(table));
        assert!(memory.window(900 * PAGE, PAGE, 16).is_some());
        assert!(memory.window(900 * PAGE + 8, 16, 16).is_none());
        assert!(memory.window(900 * PAGE + 16, PAGE, 16).is_none());
        assert!(memory.window(899 * PAGE, 16, 16).is_none());
        let window = memory.window(901 * PAGE, 64, 16).unwrap();
        window.store_u16(6, 0x1234, Ordering::Release);
        window.store_u32(8, 7);
        assert_eq!(window.load_u16(6, Ordering::Acquire), 0x1234);
        assert_eq!(window.read_16(0)[6..9], [0x34, 0x12, 7]);
    }
}
