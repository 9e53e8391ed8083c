//! Memory for what must not get out: kept from swap and core dumps, and wiped when it is let go of.
//!
//! It is locked as far as the host lets this process lock memory (`RLIMIT_MEMLOCK`); where that fails, the content may reach
//! swap, and all else holds. A child process does not get it at all: one that went on with such memory emptied would
//! encrypt with a key of zeros. What a computation leaves on the stack, [`scrubbing`] wipes.
#![expect(unsafe_code, reason = "locked pages come from the kernel, not from the allocator")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use zeroize::Zeroize;

/// Bytes of stack that a computation on keys may have used: ours; the largest use less than half.
const SCRUBBED_BYTES: usize = 32 << 10;

/// Whole pages of our own.
struct Pages {
    start: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// At least `len` zero bytes.
    fn new(len: usize) -> Self {
        // Largest page of any machine this runs on would do as well; the kernel rounds up by itself.
        let len = len.max(1);
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: needed to get pages that nothing else shares. A new anonymous mapping, at no given address, touches
        // nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        assert!(start != libc::MAP_FAILED, "no memory for {len} bytes of secrets");
        let pages = Self { start: NonNull::new(start.cast()).expect("a mapping is not at 0"), len };
        // SAFETY: needed to keep the pages out of swap, core dumps and children. These calls do not change what the pages
        // hold, and concern the mapping that has just been made; each may fail without harm.
        unsafe {
            libc::mlock(start, len);
            libc::madvise(start, len, libc::MADV_DONTDUMP);
            libc::madvise(start, len, libc::MADV_DONTFORK);
        }
        pages
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: needed to wipe and give back what `new` has mapped. Nobody has a reference into it any more: all are
        // borrowed from the owner, which is being dropped.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len).zeroize();
            libc::munmap(self.start.as_ptr().cast(), self.len);
        }
    }
}

// SAFETY: needed because of the raw pointer. The pages belong to this value alone, like a box's.
unsafe impl Send for Pages {}
// SAFETY: as above; through a shared reference they are only read.
unsafe impl Sync for Pages {}

/// Bytes in locked memory.
pub struct LockedBytes {
    pages: Pages,
    len: usize,
}

impl LockedBytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { pages: Pages::new(len), len }
    }

    /// `len` random bytes of the kernel's.
    pub fn random(len: usize) -> Self {
        let mut bytes = Self::zeroed(len);
        super::fill_random(&mut bytes);
        bytes
    }

    /// Keeps only the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self[len..].zeroize();
            self.len = len;
        }
    }
}

impl Deref for LockedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: needed to see the pages as bytes: they are mapped, initialised, at least `len` long, and borrowed.
        unsafe { std::slice::from_raw_parts(self.pages.start.as_ptr(), self.len) }
    }
}

impl DerefMut for LockedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and borrowed for writing by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.pages.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for LockedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A value in locked memory.
pub struct Locked<T> {
    pages: Pages,
    value: PhantomData<T>,
}

impl<T> Locked<T> {
    /// Moves `value` there. The copy that it came from stays on the stack: see [`scrubbing`].
    pub fn new(value: T) -> Self {
        const { assert!(align_of::<T>() <= 4096, "a page is aligned enough") };
        let pages = Pages::new(size_of::<T>());
        // SAFETY: needed to put a value into pages: they are large enough, aligned to a page, and hold no value yet.
        unsafe { pages.start.cast::<T>().write(value) };
        Self { pages, value: PhantomData }
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: needed to see the value that `new` has put there, which lives as long as the pages.
        unsafe { self.pages.start.cast::<T>().as_ref() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: needed to drop the value that `new` has put there; the pages are wiped and given back after it.
        unsafe { self.pages.start.cast::<T>().drop_in_place() }
    }
}

impl<T> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Runs `compute`, and wipes what that and all that it has called may have left on the stack. What it returns is copied as
/// any value is: a key has to be in locked memory by then.
pub fn scrubbing<T>(compute: impl FnOnce() -> T) -> T {
    /// Never a part of its caller: of his own frame nobody could wipe anything.
    #[inline(never)]
    fn below<T>(compute: impl FnOnce() -> T) -> T {
        compute()
    }
    let value = below(compute);
    scrub_stack_of::<SCRUBBED_BYTES>();
    value
}

/// Wipes so many bytes of what calls that have returned may have left below the caller on the stack: for what is done so often
/// that wiping more than it takes would be felt.
#[inline(never)]
pub fn scrub_stack_of<const LEN: usize>() {
    let mut below = [0u8; LEN];
    // Whoever has its address might read it, so that the zeros have to be there.
    std::hint::black_box(&mut below);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_kept_and_never_shown() {
        let mut bytes = LockedBytes::zeroed(5000);
        assert!(bytes.iter().all(|byte| *byte == 0));
        bytes[4999] = 7;
        bytes.truncate(4999);
        assert_eq!((bytes.len(), format!("{bytes:?}").as_str()), (4999, "(secret)"));
        assert_ne!(*LockedBytes::random(32), *LockedBytes::random(32));
    }

    #[test]
    fn values_are_dropped_with_their_pages() {
        let counted = std::sync::Arc::new(());
        let locked = Locked::new(std::sync::Arc::clone(&counted));
        assert_eq!(std::sync::Arc::strong_count(&locked), 2);
        drop(locked);
        assert_eq!(std::sync::Arc::strong_count(&counted), 1);
    }

    #[test]
    fn dumps_and_children_go_without() {
        let mut bytes = LockedBytes::zeroed(4096);
        bytes[0] = 1;
        let address = format!("{:x}", bytes.as_ptr() as usize);
        let map = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = map
            .lines()
            .skip_while(|line| !line.starts_with(&address))
            .find(|line| line.starts_with("VmFlags"))
            .expect("a mapping that starts there");
        for flag in [" dd", " dc"] {
            assert!(flags.contains(flag), "{flag} in {flags}");
        }
    }
}
