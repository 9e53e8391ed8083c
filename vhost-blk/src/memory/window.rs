//! A part of a virtqueue in guest memory, read and written field by field.
#![expect(
    unsafe_code,
    reason = "the guest uses the fields at the same time, so they are reached by address"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use super::QueueMemory;

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
    /// `len` bytes at `user`, an address in the frontend, aligned to `align`; `None` where they do not lie in one region
    /// or not so aligned.
    pub fn find(memory: &Arc<QueueMemory>, user: u64, len: u64, align: u64) -> Option<Self> {
        let start = memory.table.host_address(user, len)?;
        let aligned = (start as u64).is_multiple_of(align);
        aligned.then(|| Self { start, len: len as usize, _memory: Arc::clone(memory) })
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryTable;
    use crate::memory::testing::{PAGE, file, place};

    #[test]
    fn windows_lie_inside_one_region_and_are_aligned() {
        let table = MemoryTable::default()
            .with(place(1, 900, 1), file(1), 0)
            .and_then(|t| t.with(place(2, 901, 1), file(1), 0))
            .unwrap();
        let memory = QueueMemory::new(Arc::new(table));
        let window_at = |user, len, align| Window::find(&memory, user, len, align);
        assert!(window_at(900 * PAGE, PAGE, 16).is_some());
        assert!(window_at(900 * PAGE + 8, 16, 16).is_none());
        assert!(window_at(900 * PAGE + 16, PAGE, 16).is_none());
        assert!(window_at(899 * PAGE, 16, 16).is_none());
        let window = window_at(901 * PAGE, 64, 16).unwrap();
        window.store_u16(6, 0x1234, Ordering::Release);
        window.store_u32(8, 7);
        assert_eq!(window.load_u16(6, Ordering::Acquire), 0x1234);
        assert_eq!(window.read_16(0)[6..9], [0x34, 0x12, 7]);
    }
}
