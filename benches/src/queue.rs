//! A split virtqueue, driver side: offers chains of descriptors, collects used ones.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::descriptor::{Descriptor, NEXT};
use crate::memory::{Arena, GuestMemory};
use crate::ring::RingLayout;
use crate::{Error, Result};

/// A chain that the device has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Table index of the chain's first descriptor: what offering it returned.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// What ended a wait for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// At least one chain may have been completed.
    Used,
    /// The daemon closed the connection.
    Hangup,
    /// Neither happened in time.
    Timeout,
}

/// Marks of the two things a queue waits for.
const CALL: u64 = 0;
const CONNECTION: u64 = 1;

/// The driver's end of one virtqueue.
#[derive(Debug)]
pub struct DriverQueue {
    memory: Arc<GuestMemory>,
    layout: RingLayout,
    event_idx: bool,
    kick: EventFd,
    call: EventFd,
    waiter: Epoll,
    free: Vec<u16>,
    /// For each chain in flight, by its head: the descriptors it takes.
    in_flight: Box<[Vec<u16>]>,
    /// Index behind the last entry written to the available ring.
    available: u16,
    /// The part of `available` that the device has been told of.
    published: u16,
    /// Index of the next entry of the used ring to collect.
    collected: u16,
}

impl DriverQueue {
    /// Makes an empty queue of `size` descriptors in zeroed memory from `arena`.
    pub fn new(memory: Arc<GuestMemory>, arena: &mut Arena, size: u16) -> Result<Self> {
        let layout = RingLayout::place(size, arena)?;
        let eventfd = || EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"));
        let call = eventfd()?;
        let waiter = waiter(&call)?;
        Ok(Self {
            memory,
            layout,
            event_idx: false,
            kick: eventfd()?,
            call,
            waiter,
            free: (0..size).rev().collect(),
            in_flight: (0..size).map(|_| Vec::new()).collect(),
            available: 0,
            published: 0,
            collected: 0,
        })
    }

    /// Where the queue lies in guest memory.
    pub fn layout(&self) -> &RingLayout {
        &self.layout
    }

    /// Eventfd on which the device waits for work.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// Eventfd on which the driver waits for completions.
    pub fn call_fd(&self) -> &EventFd {
        &self.call
    }

    /// Says whether VIRTIO_RING_F_EVENT_IDX was negotiated. Before the queue starts.
    pub fn set_event_idx(&mut self, negotiated: bool) {
        self.event_idx = negotiated;
    }

    /// Writes `descriptors`, linked by [`crate::descriptor::link`] or wilfully otherwise, into free
    /// table entries and offers the first of them. `next` fields below the number of descriptors
    /// are positions in the list; others go to the device as they stand. The device sees the chain
    /// with the next [`Self::publish`].
    pub fn offer(&mut self, descriptors: &[Descriptor]) -> Result<u16> {
        let (wanted, free) = (descriptors.len(), self.free.len());
        if wanted == 0 || wanted > free {
            return Err(Error::QueueFull { wanted, free });
        }
        let chain = &self.free[free - wanted..];
        for (&index, descriptor) in chain.iter().zip(descriptors) {
            let mut placed = *descriptor;
            if placed.flags & NEXT != 0
                && let Some(&next) = chain.get(usize::from(placed.next))
            {
                placed.next = next;
            }
            self.memory.write(self.layout.descriptor(index), &placed.encode())?;
        }
        let head = chain[0];
        self.in_flight[usize::from(head)].extend(self.free.drain(free - wanted..));
        self.offer_head(head)?;
        Ok(head)
    }

    /// Puts any number into the available ring, be it the head of a chain or not.
    pub fn offer_head(&mut self, head: u16) -> Result<()> {
        let entry = self.layout.available_entry(self.available);
        self.memory.store_u16(entry, head, Ordering::Relaxed)?;
        self.available = self.available.wrapping_add(1);
        Ok(())
    }

    /// Shows the device what was offered and kicks it if it asks for that.
    pub fn publish(&mut self) -> Result<()> {
        let old = self.published;
        if old == self.available {
            return Ok(());
        }
        let index = self.layout.available_index();
        self.memory.store_u16(index, self.available, Ordering::Release)?;
        self.published = self.available;
        if self.device_wants_kick(old)? { self.kick() } else { Ok(()) }
    }

    /// Kicks the device, whether it asked for that or not.
    pub fn kick(&self) -> Result<()> {
        self.kick.write(1).map_err(Error::system("kick the device"))
    }

    /// Takes the next completed chain out of the used ring and frees its descriptors.
    pub fn collect(&mut self) -> Result<Option<Used>> {
        if !self.has_used()? {
            return Ok(None);
        }
        let mut entry = [0; 8];
        self.memory.read(self.layout.used_entry(self.collected), &mut entry)?;
        self.collected = self.collected.wrapping_add(1);
        let [a, b, c, d, e, f, g, h] = entry;
        let (id, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let chain = self.in_flight.get_mut(id as usize).filter(|chain| !chain.is_empty());
        let chain = chain.ok_or(Error::StrayUsed(id))?;
        self.free.append(chain);
        Ok(Some(Used { head: id as u16, len }))
    }

    /// Chains offered and not collected.
    pub fn chains_in_flight(&self) -> usize {
        self.in_flight.iter().filter(|chain| !chain.is_empty()).count()
    }

    /// Index up to which the device has completed chains: where a daemon that took the place of a
    /// crashed one resumes.
    pub fn used_index(&self) -> Result<u16> {
        self.memory.load_u16(self.layout.used_index(), Ordering::Acquire)
    }

    /// Lets [`Self::wait`] end when the daemon closes `connection`, and no other.
    pub fn watch_connection(&mut self, connection: &impl AsRawFd) -> Result<()> {
        // A new one, since a closed connection stays watched while a forked child holds a copy.
        self.waiter = waiter(&self.call)?;
        watch(&self.waiter, connection, EventSet::READ_HANG_UP, CONNECTION)
    }

    /// Blocks until the device calls, the daemon closes the connection, or time is out.
    pub fn wait(&mut self, timeout: Duration) -> Result<Wake> {
        self.ask_for_call(true)?;
        let wake = if self.has_used()? { Wake::Used } else { self.sleep(timeout)? };
        self.ask_for_call(false)?;
        Ok(wake)
    }

    fn sleep(&self, timeout: Duration) -> Result<Wake> {
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let mut events = [EpollEvent::default(); 2];
        let ready = match self.waiter.wait(timeout, &mut events) {
            Ok(0) => return Ok(Wake::Timeout),
            Ok(ready) => &events[..ready],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Wake::Used),
            Err(e) => return Err(Error::system("wait for the device")(e)),
        };
        if ready.iter().any(|event| event.data() == CALL) {
            // Non-blocking: it fails only when there is nothing to reset.
            let _ = self.call.read();
        } else if !self.has_used()? {
            return Ok(Wake::Hangup);
        }
        Ok(Wake::Used)
    }

    fn has_used(&self) -> Result<bool> {
        Ok(self.used_index()? != self.collected)
    }

    fn ask_for_call(&self, wanted: bool) -> Result<()> {
        if self.event_idx {
            // A stale `used_event` lies behind the used index and so asks for nothing.
            if wanted {
                let event = self.layout.used_event();
                self.memory.store_u16(event, self.collected, Ordering::Relaxed)?;
            }
        } else {
            let flags = if wanted { 0 } else { VRING_AVAIL_F_NO_INTERRUPT as u16 };
            self.memory.store_u16(self.layout.available, flags, Ordering::Relaxed)?;
        }
        // The device must see the wish before we look for what it completed meanwhile.
        fence(Ordering::SeqCst);
        Ok(())
    }

    fn device_wants_kick(&self, old: u16) -> Result<bool> {
        // The device must see the new index before we look whether it still wants to be told.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.memory.load_u16(self.layout.avail_event(), Ordering::Relaxed)?;
            Ok(crosses(event, old, self.published))
        } else {
            let flags = self.memory.load_u16(self.layout.used, Ordering::Relaxed)?;
            Ok(flags & VRING_USED_F_NO_NOTIFY as u16 == 0)
        }
    }
}

fn waiter(call: &EventFd) -> Result<Epoll> {
    let waiter = Epoll::new().map_err(Error::system("epoll"))?;
    watch(&waiter, call, EventSet::IN, CALL)?;
    Ok(waiter)
}

fn watch(waiter: &Epoll, fd: &impl AsRawFd, events: EventSet, mark: u64) -> Result<()> {
    waiter
        .ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(events, mark))
        .map_err(Error::system("watch for events"))
}

/// Whether an index that went from `old` to `new` passed the entry `event`, modulo 2^16.
fn crosses(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{WRITE, link};
    use crate::memory::BASE;

    const SIZE: u16 = 8;

    fn queue() -> DriverQueue {
        let memory = Arc::new(GuestMemory::new(RingLayout::bytes(SIZE)).unwrap());
        let mut arena = memory.arena();
        DriverQueue::new(memory, &mut arena, SIZE).unwrap()
    }

    fn chain(n: usize) -> Vec<Descriptor> {
        let mut chain = vec![Descriptor::readable(BASE, 1); n];
        link(&mut chain);
        chain
    }

    /// Completes a chain as a device would.
    fn complete(queue: &DriverQueue, at: u16, id: u32, len: u32) {
        let entry = [id.to_le_bytes(), len.to_le_bytes()].concat();
        queue.memory.write(queue.layout.used_entry(at), &entry).unwrap();
        let index = queue.layout.used_index();
        queue.memory.store_u16(index, at.wrapping_add(1), Ordering::Release).unwrap();
    }

    #[test]
    fn an_offered_chain_stands_in_the_table_and_in_the_ring() {
        let mut queue = queue();
        let mut list = chain(2);
        list[1].flags |= WRITE;
        let head = queue.offer(&list).unwrap();
        queue.publish().unwrap();
        let mut bytes = [0; 16];
        queue.memory.read(queue.layout.descriptor(head), &mut bytes).unwrap();
        let next = u16::from_le_bytes([bytes[14], bytes[15]]);
        assert_eq!(bytes[12], NEXT as u8);
        queue.memory.read(queue.layout.descriptor(next), &mut bytes).unwrap();
        assert_eq!(bytes[12], WRITE as u8);
        let entry = queue.layout.available_entry(0);
        assert_eq!(queue.memory.load_u16(entry, Ordering::Relaxed).unwrap(), head);
        let index = queue.layout.available_index();
        assert_eq!(queue.memory.load_u16(index, Ordering::Relaxed).unwrap(), 1);
        assert_eq!(queue.kick.read().unwrap(), 1);
    }

    #[test]
    fn descriptors_come_back_when_collected() {
        let mut queue = queue();
        for round in 0..20_u16 {
            let first = queue.offer(&chain(3)).unwrap();
            let second = queue.offer(&chain(5)).unwrap();
            assert!(matches!(queue.offer(&chain(1)), Err(Error::QueueFull { free: 0, .. })));
            complete(&queue, 2 * round, second.into(), 7);
            complete(&queue, 2 * round + 1, first.into(), 9);
            assert_eq!(queue.collect().unwrap(), Some(Used { head: second, len: 7 }));
            assert_eq!(queue.collect().unwrap(), Some(Used { head: first, len: 9 }));
            assert_eq!(queue.collect().unwrap(), None);
        }
    }

    #[test]
    fn a_used_entry_that_was_not_offered_is_an_error() {
        let mut queue = queue();
        for (at, id) in [(0, 0), (1, 8), (2, u32::MAX)] {
            complete(&queue, at, id, 0);
            assert!(matches!(queue.collect(), Err(Error::StrayUsed(stray)) if stray == id));
        }
    }

    #[test]
    fn next_beyond_the_list_reaches_the_device_as_it_stands() {
        let mut queue = queue();
        let mut list = chain(1);
        list[0].flags = NEXT;
        list[0].next = 999;
        let head = queue.offer(&list).unwrap();
        let mut bytes = [0; 16];
        queue.memory.read(queue.layout.descriptor(head), &mut bytes).unwrap();
        assert_eq!(u16::from_le_bytes([bytes[14], bytes[15]]), 999);
    }

    #[test]
    fn with_event_idx_only_crossing_the_event_kicks() {
        assert!(crosses(0, 0, 1));
        assert!(!crosses(1, 0, 1));
        assert!(!crosses(0, 1, 2));
        assert!(crosses(3, 2, 5));
        assert!(crosses(u16::MAX, u16::MAX, 1));
        assert!(!crosses(5, u16::MAX, 1));
    }
}
