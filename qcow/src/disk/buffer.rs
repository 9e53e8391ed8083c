//! Memory that I/O reads and writes in place.
//!
//! A [`Payload`] is a list of memory segments plus whatever keeps that memory alive. Guest memory and our own
//! [`Buffer`]s look alike through it. Both may change under our hands (a guest writes to a buffer that it has submitted,
//! the kernel fills one), so nobody ever holds a Rust reference into a payload: bytes are copied in and out.
#![expect(unsafe_code, reason = "guest memory and in-flight I/O buffers cannot be Rust references")]

use std::any::Any;
use std::cell::{RefCell, UnsafeCell};
use std::fmt;
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

/// Alignment of every [`Buffer`], in bytes: enough for direct I/O on any disk.
pub const BUFFER_ALIGN: usize = 4096;

/// Bytes that are compared at a time.
const COMPARE_LEN: usize = 4096;

/// Length of the shared block of zeros, in bytes.
const ZEROS_LEN: usize = 64 << 10;

/// Pages of a buffer that is kept for the next one: a cluster of the usual size.
const SPARE_PAGES: usize = 16;
/// Buffers that a thread keeps: for as many copies on write as are usually under way at a time.
const SPARE_COUNT_MAX: usize = 128;

thread_local! {
    /// Pages that this thread has done with.
    static SPARE: RefCell<Vec<Box<[Page]>>> = const { RefCell::new(Vec::new()) };
}

/// One stretch of memory.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    start: *mut u8,
    len: usize,
}

impl Segment {
    /// Its first byte.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Memory segments in the order in which they map to consecutive bytes of a file.
#[derive(Clone)]
pub struct Payload {
    segments: SmallVec<[Segment; 2]>,
    len: u64,
    writable: bool,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: needed because raw pointers are not Send. The memory is kept alive by the owner, which is Send and Sync, and
// is only ever accessed by copying bytes, never through references.
unsafe impl Send for Payload {}
// SAFETY: as above; copying from two threads at once can at worst mix bytes, which callers must expect of guest memory.
unsafe impl Sync for Payload {}

impl Payload {
    /// A payload over memory that somebody else owns.
    ///
    /// # Safety
    ///
    /// Every segment (start, length) must be memory that is mapped readable and writable as long as `owner` lives, and
    /// to which no Rust reference exists in that time.
    pub unsafe fn from_raw(
        segments: impl IntoIterator<Item = (*mut u8, usize)>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let segments: SmallVec<[Segment; 2]> = segments
            .into_iter()
            .filter(|&(_, len)| len > 0)
            .map(|(start, len)| Segment { start, len })
            .collect();
        let len = segments.iter().map(|s| s.len as u64).sum();
        Self { segments, len, writable: true, _owner: owner }
    }

    /// `len` zeros, to write; they cost no memory.
    pub fn zeros(len: u64) -> Self {
        static ZEROS: OnceLock<Buffer> = OnceLock::new();
        let block = ZEROS.get_or_init(|| Buffer::zeroed(ZEROS_LEN)).payload();
        let start = block.segments[0].start;
        let mut segments = SmallVec::new();
        let mut left = len;
        while left > 0 {
            let piece = left.min(ZEROS_LEN as u64) as usize;
            segments.push(Segment { start, len: piece });
            left -= piece as u64;
        }
        Self { segments, len, writable: false, _owner: block._owner }
    }

    /// Several payloads as one, in order.
    pub fn concat(parts: Vec<Payload>) -> Self {
        let segments = parts.iter().flat_map(|p| p.segments.iter().copied()).collect();
        let len = parts.iter().map(|p| p.len).sum();
        let writable = parts.iter().all(|p| p.writable);
        Self { segments, len, writable, _owner: Arc::new(parts) }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments in file order; none is empty.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether it may be read into.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The `len` bytes that start at byte `offset` of this payload.
    #[must_use]
    pub fn slice(&self, offset: u64, len: u64) -> Self {
        let mut segments = SmallVec::new();
        self.for_each(offset, len, |start, len, _| segments.push(Segment { start, len }));
        Self { segments, len, writable: self.writable, _owner: Arc::clone(&self._owner) }
    }

    /// Copies bytes out, from byte `offset` of this payload on.
    pub fn copy_to(&self, offset: u64, into: &mut [u8]) {
        let target = into.as_mut_ptr();
        self.for_each(offset, into.len() as u64, |start, len, at| {
            // SAFETY: needed to read memory that others may write meanwhile. The segment is alive (owner), `for_each`
            // stays inside it, and `at + len` stays inside `into`, which is ours alone and so does not overlap.
            unsafe { std::ptr::copy_nonoverlapping(start, target.add(at), len) }
        });
    }

    /// Copies bytes in, from byte `offset` of this payload on.
    pub fn copy_from(&self, offset: u64, from: &[u8]) {
        assert!(self.writable, "a read-only payload as the target of a copy");
        let source = from.as_ptr();
        self.for_each(offset, from.len() as u64, |start, len, at| {
            // SAFETY: as in `copy_to`, in the other direction.
            unsafe { std::ptr::copy_nonoverlapping(source.add(at), start, len) }
        });
    }

    /// Zeroes `len` bytes from byte `offset` on.
    pub fn zero(&self, offset: u64, len: u64) {
        assert!(self.writable, "a read-only payload as the target of a fill");
        self.for_each(offset, len, |start, len, _| {
            // SAFETY: needed to fill memory without a reference to it; alive and in bounds as in `copy_to`.
            unsafe { std::ptr::write_bytes(start, 0, len) }
        });
    }

    /// Copies all of `from` into the start of this payload.
    pub fn copy_from_payload(&self, from: &Payload) {
        assert!(self.writable && from.len <= self.len);
        let mut done = 0;
        for segment in &from.segments {
            let (source, base) = (segment.start, done);
            self.for_each(base, segment.len as u64, |start, len, at| {
                // SAFETY: both segments are alive and in bounds as in `copy_to`; they may overlap when a guest names the
                // same memory twice, hence `copy`.
                unsafe { std::ptr::copy(source.add(at), start, len) }
            });
            done += segment.len as u64;
        }
    }

    /// All bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.copy_to(0, &mut bytes);
        bytes
    }

    /// Whether every byte is zero right now.
    pub fn is_zero(&self) -> bool {
        self.first_difference(&Self::zeros(self.len)).is_none()
    }

    /// The first byte in which this payload and `other`, which is as long, differ right now.
    pub fn first_difference(&self, other: &Payload) -> Option<u64> {
        assert_eq!(self.len, other.len, "payloads of one length are compared");
        // Copied in pieces that stay in the processor's cache: the bytes may change under a reference.
        let (mut one, mut two) = ([0u8; COMPARE_LEN], [0u8; COMPARE_LEN]);
        let mut at = 0;
        while at < self.len {
            let piece = (self.len - at).min(COMPARE_LEN as u64) as usize;
            let (one, two) = (&mut one[..piece], &mut two[..piece]);
            self.copy_to(at, one);
            other.copy_to(at, two);
            if one != two {
                let differs = |(a, b): (&u8, &u8)| a != b;
                return one.iter().zip(two.iter()).position(differs).map(|i| at + i as u64);
            }
            at += piece as u64;
        }
        None
    }

    /// Calls `visit(start, len, position)` for the memory behind bytes `offset..offset + len`, in order.
    fn for_each(&self, offset: u64, len: u64, mut visit: impl FnMut(*mut u8, usize, usize)) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "beyond the payload");
        let (mut skip, mut left, mut at) = (offset, len as usize, 0);
        for segment in &self.segments {
            if left == 0 {
                break;
            }
            if skip >= segment.len as u64 {
                skip -= segment.len as u64;
                continue;
            }
            let piece = left.min(segment.len - skip as usize);
            // SAFETY: needed for pointer arithmetic inside a segment: `skip` is less than its length.
            visit(unsafe { segment.start.add(skip as usize) }, piece, at);
            skip = 0;
            at += piece;
            left -= piece;
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload")
            .field("len", &self.len)
            .field("segments", &self.segments.len())
            .finish()
    }
}

/// Heap memory for I/O, aligned for direct I/O and zeroed at first.
#[derive(Clone)]
pub struct Buffer {
    pages: Arc<Pages>,
    len: usize,
}

#[repr(align(4096))]
struct Page(UnsafeCell<[u8; BUFFER_ALIGN]>);

struct Pages(Box<[Page]>);

impl Drop for Pages {
    fn drop(&mut self) {
        if self.0.len() == SPARE_PAGES {
            let pages = std::mem::take(&mut self.0);
            // A thread that is ending keeps nothing.
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < SPARE_COUNT_MAX {
                    spare.push(pages);
                }
            });
        }
    }
}

// SAFETY: needed to share pages with the kernel and between threads; their bytes are only ever copied in and out.
unsafe impl Sync for Pages {}

impl Buffer {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let count = len.div_ceil(BUFFER_ALIGN).max(1);
        let pages = (0..count).map(|_| Page(UnsafeCell::new([0; BUFFER_ALIGN]))).collect();
        Self { pages: Arc::new(Pages(pages)), len }
    }

    /// `len` bytes, whatever they are: for whoever is going to write all of them.
    pub fn scratch(len: usize) -> Self {
        let spare = match len.div_ceil(BUFFER_ALIGN) {
            0..=SPARE_PAGES => SPARE.with(|spare| spare.borrow_mut().pop()),
            _ => None,
        };
        let buffer = match spare {
            Some(pages) => Self { pages: Arc::new(Pages(pages)), len },
            None => {
                let room = if len <= SPARE_PAGES * BUFFER_ALIGN {
                    SPARE_PAGES * BUFFER_ALIGN
                } else {
                    len
                };
                Self { len, ..Self::zeroed(room) }
            }
        };
        if cfg!(debug_assertions) {
            // Whoever takes them for zeros is found out.
            buffer.payload().copy_from(0, &vec![0xa5; len]);
        }
        buffer
    }

    /// A copy of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let buffer = Self::zeroed(bytes.len());
        buffer.payload().copy_from(0, bytes);
        buffer
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty buffer is nothing special")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The buffer as a payload; both see the same bytes.
    pub fn payload(&self) -> Payload {
        let start = self.pages.0[0].0.get().cast::<u8>();
        let owner: Arc<dyn Any + Send + Sync> = Arc::<Pages>::clone(&self.pages);
        // SAFETY: needed to hand out heap memory like guest memory. The pages are contiguous (`size_of::<Page>()` is its
        // alignment), hold at least `len` bytes, live as long as the owner, and no reference into them exists.
        unsafe { Payload::from_raw([(start, self.len)], owner) }
    }

    /// Its bytes, for us alone. As long as a payload sees them too, these are a copy, which the payload does not see.
    pub fn make_mut(&mut self) -> &mut [u8] {
        if Arc::get_mut(&mut self.pages).is_none() {
            *self = Self::from_bytes(&self.to_vec());
        }
        let pages = Arc::get_mut(&mut self.pages).expect("a buffer without payloads");
        let start = pages.0.as_mut_ptr().cast::<u8>();
        // SAFETY: needed to see pages as one slice. They are contiguous, hold at least `len` bytes, and are borrowed as
        // long as the slice; nobody else has a pointer to them, as every payload would hold a reference to the pages.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }

    /// A copy of its bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.payload().to_vec()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cross_segments_and_share_memory() {
        let (a, b) = (Buffer::from_bytes(b"abcd"), Buffer::from_bytes(b"efgh"));
        let both = Payload::concat(vec![a.payload(), b.payload()]);
        assert_eq!(both.slice(2, 4).to_vec(), b"cdef");
        both.slice(3, 2).copy_from(0, b"XY");
        assert_eq!((a.to_vec(), b.to_vec()), (b"abcX".to_vec(), b"Yfgh".to_vec()));
        both.zero(2, 5);
        assert!(both.slice(2, 5).is_zero());
        assert_eq!(both.to_vec(), b"ab\0\0\0\0\0h");
    }

    #[test]
    fn bytes_in_use_by_a_payload_are_not_changed_in_place() {
        let mut buffer = Buffer::from_bytes(b"abcd");
        let before = buffer.payload();
        buffer.make_mut()[0] = b'X';
        assert_eq!((before.to_vec(), buffer.to_vec()), (b"abcd".to_vec(), b"Xbcd".to_vec()));
        let start = buffer.payload().segments()[0].start();
        buffer.make_mut()[1] = b'Y';
        assert_eq!(buffer.payload().segments()[0].start(), start, "alone, it is no copy");
        assert_eq!(buffer.to_vec(), b"XYcd");
    }

    #[test]
    fn zeros_are_zero_at_any_length() {
        let zeros = Payload::zeros(3 * ZEROS_LEN as u64 + 17);
        assert!(zeros.is_zero() && !zeros.is_writable());
        assert_eq!(zeros.to_vec().len() as u64, zeros.len());
    }

    #[test]
    fn the_first_difference_is_found_across_segments() {
        let mut bytes = vec![7; 10_000];
        let one = Buffer::from_bytes(&bytes).payload();
        bytes[9_000] = 8;
        let (head, tail) = bytes.split_at(4_097);
        let parts = [head, tail].map(|part| Buffer::from_bytes(part).payload());
        let two = Payload::concat(parts.to_vec());
        assert_eq!(one.first_difference(&two), Some(9_000));
        assert_eq!(one.slice(0, 9_000).first_difference(&two.slice(0, 9_000)), None);
    }
}
