//! A split virtqueue, device side: taking chains, returning them in batches, and telling when to be told.
//!
//! The three parts of the ring are looked up once, when the queue starts. Indices come from the guest and are checked
//! against the queue's size before use; a guest that breaks the ring itself stops its queue and nothing else.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};

use crate::inflight::Record;
use crate::memory::{QueueMemory, Window};

/// Bytes of a descriptor.
pub const DESCRIPTOR_LEN: usize = 16;
/// Bytes of flags and index at the start of the available and the used ring.
const HEADER_LEN: usize = 4;
const INDEX_AT: usize = 2;
const AVAIL_ENTRY_LEN: usize = 2;
const USED_ENTRY_LEN: usize = 8;
/// Bytes of the event field at the end of the available and the used ring.
const EVENT_LEN: usize = 2;

/// Where the parts of a ring lie in the frontend's address space.
#[derive(Clone, Copy, Debug)]
pub struct RingAddresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

/// One entry of a descriptor table, as the guest wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Guest physical address of the buffer.
    pub addr: u64,
    /// Bytes of the buffer.
    pub len: u32,
    flags: u16,
    /// Index of the descriptor that follows, if one does.
    pub next: u16,
}

impl Descriptor {
    /// What the bytes of an entry say.
    pub fn parse(bytes: [u8; DESCRIPTOR_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, len0, len1, len2, len3, flags0, flags1, next0, next1] = bytes;
        Self {
            addr: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([len0, len1, len2, len3]),
            flags: u16::from_le_bytes([flags0, flags1]),
            next: u16::from_le_bytes([next0, next1]),
        }
    }

    pub fn has_next(self) -> bool {
        self.has(VRING_DESC_F_NEXT)
    }

    pub fn is_writable(self) -> bool {
        self.has(VRING_DESC_F_WRITE)
    }

    pub fn is_indirect(self) -> bool {
        self.has(VRING_DESC_F_INDIRECT)
    }

    fn has(self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

/// The guest broke the ring beyond repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VirtqueueBroken {
    #[error("the available index jumped to {index} with {next} next in a queue of {size}")]
    AvailableIndex { index: u16, next: u16, size: u16 },
    #[error("descriptor {head} was offered in a queue of {size}")]
    Head { head: u16, size: u16 },
}

/// The device's side of one virtqueue.
#[derive(Debug)]
pub struct Virtqueue {
    size: u16,
    descriptors: Window,
    available: Window,
    used: Window,
    event_idx: bool,
    /// The next entry of the available ring to take.
    next_available: u16,
    /// The available index as last seen.
    seen_available: u16,
    /// The next entry of the used ring to fill.
    next_used: u16,
    /// The used index as the guest knows it.
    published_used: u16,
    /// Where it is noted which chains are in flight, if the frontend keeps that.
    record: Option<Record>,
    /// Chains that were taken before this ring started, and not returned; the first to be done stands last.
    unfinished: Vec<u16>,
}

impl Virtqueue {
    /// The ring of `size` entries (a power of two) at `addresses`, whose next chain is entry `base` of the available
    /// ring; `None` where a part of it does not lie in the guest's memory or is not aligned.
    pub fn new(
        memory: &Arc<QueueMemory>,
        addresses: RingAddresses,
        size: u16,
        base: u16,
        event_idx: bool,
    ) -> Option<Self> {
        assert!(size.is_power_of_two());
        let count = usize::from(size);
        let available_len = HEADER_LEN + count * AVAIL_ENTRY_LEN + EVENT_LEN;
        let used_len = HEADER_LEN + count * USED_ENTRY_LEN + EVENT_LEN;
        let window = |user, len: usize, align| Window::find(memory, user, len as u64, align);
        let used = window(addresses.used, used_len, 4)?;
        let next_used = used.load_u16(INDEX_AT, Ordering::Acquire);
        Some(Self {
            size,
            descriptors: window(addresses.descriptors, count * DESCRIPTOR_LEN, 16)?,
            available: window(addresses.available, available_len, 2)?,
            used,
            event_idx,
            next_available: base,
            seen_available: base,
            next_used,
            published_used: next_used,
            record: None,
            unfinished: Vec::new(),
        })
    }

    /// Keeps `record` from now on, which has these chains in flight. The ring goes on behind them.
    pub fn keep(&mut self, record: Record, unfinished: Vec<u16>) {
        let taken = self.next_used.wrapping_add(unfinished.len() as u16);
        (self.next_available, self.seen_available) = (taken, taken);
        (self.record, self.unfinished) = (Some(record), unfinished);
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The next entry of the available ring to take.
    pub fn next_available(&self) -> u16 {
        self.next_available
    }

    /// The next entry of the used ring to fill.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Whether there are chains left that were taken before the ring started.
    pub fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Takes the next chain that was taken before the ring started, and not returned.
    pub fn take_unfinished(&mut self) -> Option<u16> {
        self.unfinished.pop()
    }

    /// Takes the next chain that the guest has offered: the index of its first descriptor.
    pub fn take(&mut self) -> Result<Option<u16>, VirtqueueBroken> {
        if self.next_available == self.seen_available && !self.look()? {
            return Ok(None);
        }
        let entry = usize::from(self.next_available % self.size);
        let head = self.available.load_u16(HEADER_LEN + entry * AVAIL_ENTRY_LEN, Ordering::Relaxed);
        if head >= self.size {
            return Err(VirtqueueBroken::Head { head, size: self.size });
        }
        self.next_available = self.next_available.wrapping_add(1);
        if let Some(record) = &mut self.record {
            record.take(head);
        }
        Ok(Some(head))
    }

    /// Descriptor `index`, which is less than the size.
    pub fn descriptor(&self, index: u16) -> Descriptor {
        Descriptor::parse(self.descriptors.read_16(usize::from(index) * DESCRIPTOR_LEN))
    }

    /// Puts the chain that starts at `head` into the used ring, `written` bytes of it filled. The guest sees it with the
    /// next [`Self::publish`].
    pub fn put_used(&mut self, head: u16, written: u32) {
        let at = HEADER_LEN + usize::from(self.next_used % self.size) * USED_ENTRY_LEN;
        self.used.store_u32(at, head.into());
        self.used.store_u32(at + 4, written);
        if let Some(record) = &mut self.record {
            record.end(head);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Whether there are used chains that the guest has not been shown yet.
    pub fn has_unpublished(&self) -> bool {
        self.published_used != self.next_used
    }

    /// Shows the guest all used chains; whether it wants to be interrupted for them.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return false;
        }
        self.used.store_u16(INDEX_AT, new, Ordering::Release);
        self.published_used = new;
        // Only now: who is killed before this has noted as in flight what the guest was not shown.
        if let Some(record) = &mut self.record {
            record.show(new);
        }
        // The guest writes its event field or flag and then looks at the index; we do the opposite. Without a full
        // barrier both could miss each other.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = self.available.load_u16(0, Ordering::Relaxed);
            return u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        }
        let event = self.available.load_u16(self.used_event_at(), Ordering::Relaxed);
        // Whether the index passed the event on its way from old to new.
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Asks the guest not to kick while its chains are being taken anyway.
    pub fn disable_kicks(&self) {
        // With event indices a guest that has kicked once does not kick again until the event index moves.
        if !self.event_idx {
            self.used.store_u16(0, VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
        }
    }

    /// Asks the guest to kick for its next chain; whether it has offered one meanwhile, for which no kick may come.
    pub fn enable_kicks(&self) -> bool {
        if self.event_idx {
            self.used.store_u16(self.available_event_at(), self.next_available, Ordering::Relaxed);
        } else {
            self.used.store_u16(0, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.available.load_u16(INDEX_AT, Ordering::Relaxed) != self.next_available
    }

    /// Reads the available index; whether there is something to take.
    fn look(&mut self) -> Result<bool, VirtqueueBroken> {
        // Acquire: the entries and descriptors behind the index must not be read before it.
        let index = self.available.load_u16(INDEX_AT, Ordering::Acquire);
        let (next, size) = (self.next_available, self.size);
        if index.wrapping_sub(next) > size {
            return Err(VirtqueueBroken::AvailableIndex { index, next, size });
        }
        self.seen_available = index;
        Ok(index != next)
    }

    fn used_event_at(&self) -> usize {
        HEADER_LEN + usize::from(self.size) * AVAIL_ENTRY_LEN
    }

    fn available_event_at(&self) -> usize {
        HEADER_LEN + usize::from(self.size) * USED_ENTRY_LEN
    }
}
