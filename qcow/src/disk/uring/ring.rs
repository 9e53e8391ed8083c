//! The calling thread's io_uring: queueing operations, parking until one ends, and waking from other threads.
//!
//! An operation keeps its buffers and its file alive inside the ring's slot until the kernel has finished with them, even
//! when the future that asked for it is dropped: forgetting or cancelling a future can never free memory under DMA.
#![expect(
    unsafe_code,
    reason = "submission entries name memory and descriptors by address and number"
)]

use std::cell::{OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::restrict::enable_restricted;
use crate::disk::buffer::{Payload, Segment};
use crate::exec::{Park, Unpark};

/// Submission entries of a ring; more operations than this only means more system calls.
const RING_ENTRIES: u32 = 256;
/// Longest segment list that the kernel takes (`UIO_MAXIOV`).
const SEGMENT_COUNT_MAX: usize = 1024;
/// `user_data` of the poll on the ring's own wake-up descriptor.
const WAKE_UP: u64 = u64::MAX;

thread_local! {
    static RING: OnceCell<Rc<RefCell<Ring>>> = const { OnceCell::new() };
}

/// Sets up the calling thread's ring, unless it has one. A thread that does not call this sets its ring up on first use,
/// and panics where that fails: only threads that may start at a bad time need it.
///
/// # Errors
/// The host is short of descriptors or memory, or does not allow io_uring.
pub fn set_up_ring() -> io::Result<()> {
    RING.with(|ring| {
        if ring.get().is_none() {
            let fresh = Rc::new(RefCell::new(Ring::new()?));
            assert!(ring.set(fresh).is_ok(), "a ring is set up once");
        }
        Ok(())
    })
}

/// Pins all of `memory`, in place of what was pinned before, for I/O of this thread: the kernel then has no pages to look up
/// for an operation whose memory lies in one segment of it. All of it takes up memory of the host from here on. It is kept
/// mapped until it is unpinned: see [`unpin_memory`]. Segments are at most 1 GiB long.
///
/// # Errors
/// The host limits locked memory (`RLIMIT_MEMLOCK`), is short of memory, or does not take so many segments. Then nothing is
/// pinned, and I/O goes on as ever.
pub fn pin_memory(memory: Payload) -> io::Result<()> {
    unpin_memory();
    let ring = this_ring();
    let mut ring = ring.borrow_mut();
    let mut iovecs = Vec::new();
    fill_iovecs(&mut iovecs, memory.segments());
    if iovecs.len() < memory.segments().len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: needed to hand addresses to the kernel. The payload keeps them mapped; it is let go of only after the kernel
    // has done so ([`unpin_memory`]) or with the ring itself, and no reference to its bytes exists.
    unsafe { ring.uring.submitter().register_buffers(&iovecs) }?;
    ring.pinned = Some(memory);
    Ok(())
}

/// Takes back [`pin_memory`]. Operations that are still under way keep their pages until they end.
pub fn unpin_memory() {
    let ring = this_ring();
    let mut ring = ring.borrow_mut();
    if ring.pinned.is_some() {
        let unpinned = ring.uring.submitter().unregister_buffers();
        unpinned.expect("what was registered can be taken back");
        ring.pinned = None;
    }
}

fn this_ring() -> Rc<RefCell<Ring>> {
    if let Err(e) = set_up_ring() {
        panic!("cannot set up an io_uring: {e} (is kernel.io_uring_disabled set?)");
    }
    RING.with(|ring| Rc::clone(ring.get().expect("a ring that has just been set up")))
}

/// What the kernel is asked to do with a file.
#[derive(Debug)]
pub(super) enum Operation {
    Read { at: u64, into: Payload },
    Write { at: u64, from: Payload },
    Sync,
    Fallocate { mode: i32, at: u64, len: u64 },
    SetLen { len: u64 },
}

struct Ring {
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Memory that the kernel has pinned and knows by the places of its segments.
    pinned: Option<Payload>,
    unparker: Arc<RingUnpark>,
}

/// One operation from its submission to its completion.
struct Slot {
    state: SlotState,
    /// Whatever the kernel may touch until the operation ends.
    held: Option<Held>,
    iovecs: Vec<libc::iovec>,
}

#[derive(Debug)]
enum SlotState {
    Free,
    InFlight(Option<Waker>),
    Done(i32),
    /// Nobody waits for the result; the slot is freed on completion.
    Orphaned,
    /// A poll that completes again and again, with the events since the last look.
    Repeating {
        fired: bool,
        ended: bool,
        /// The descriptor is broken or its other side is gone: there is nothing more to wait for.
        over: bool,
        waker: Option<Waker>,
    },
}

struct Held {
    _file: Arc<OwnedFd>,
    operation: Option<Operation>,
}

impl Ring {
    fn new() -> io::Result<Self> {
        let unparker = Arc::new(RingUnpark::new()?);
        let uring = set_up()?;
        let (slots, free) = (Vec::new(), Vec::new());
        let mut ring = Self { uring, slots, free, pinned: None, unparker };
        ring.watch_wake_ups();
        Ok(ring)
    }

    fn watch_wake_ups(&mut self) {
        let fd = types::Fd(self.unparker.event.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        self.push(&poll.user_data(WAKE_UP));
    }

    fn take_slot(&mut self, state: SlotState) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { state: SlotState::Free, held: None, iovecs: Vec::new() });
            self.slots.len() - 1
        });
        self.slots[index].state = state;
        index
    }

    fn release(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.state = SlotState::Free;
        slot.held = None;
        self.free.push(index);
    }

    fn start(&mut self, file: &Arc<OwnedFd>, operation: Operation) -> usize {
        let index = self.take_slot(SlotState::InFlight(None));
        let slot = &mut self.slots[index];
        let pinned = self.pinned.as_ref().and_then(|pinned| place_in(pinned, &operation));
        let entry = build(types::Fd(file.as_raw_fd()), &operation, pinned, &mut slot.iovecs);
        slot.held = Some(Held { _file: Arc::clone(file), operation: Some(operation) });
        self.push(&entry.user_data(index as u64));
        index
    }

    fn watch(&mut self, file: &Arc<OwnedFd>) -> usize {
        let index = self.take_slot(SlotState::Repeating {
            fired: false,
            ended: false,
            over: false,
            waker: None,
        });
        self.slots[index].held = Some(Held { _file: Arc::clone(file), operation: None });
        let fd = types::Fd(file.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        self.push(&poll.user_data(index as u64));
        index
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: needed to hand addresses to the kernel. Everything the entry points to lives in the slot that its
            // `user_data` names (payload, iovecs, file), which is not released before the completion arrives.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: what is in it goes to the kernel, which always takes at least one entry.
            self.enter(0);
        }
    }

    /// Hands what is queued to the kernel, and lets it finish what it has put off; without a system call where there is
    /// neither.
    fn enter_if_needed(&mut self) {
        let queue = self.uring.submission();
        if !queue.is_empty() || queue.taskrun() || queue.cq_overflow() {
            drop(queue);
            self.enter(0);
        }
    }

    fn enter(&mut self, wait_for: usize) {
        match self.uring.submit_and_wait(wait_for) {
            Ok(_) => {}
            // Interrupted by a signal, or short of completion room or memory for the moment: reap and come back.
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(e) => panic!("io_uring_enter failed for good: {e}"),
        }
    }

    /// Takes completions off the ring; the wakers to call once the ring is no longer borrowed.
    fn reap(&mut self, wakers: &mut Vec<Waker>) {
        let mut rearm = false;
        let completions: smallvec::SmallVec<[cqueue::Entry; 64]> =
            self.uring.completion().collect();
        for completion in completions {
            if completion.user_data() == WAKE_UP {
                rearm |= !cqueue::more(completion.flags());
            } else {
                self.complete(&completion, wakers);
            }
        }
        if rearm {
            self.watch_wake_ups();
        }
    }

    fn complete(&mut self, completion: &cqueue::Entry, wakers: &mut Vec<Waker>) {
        let index = completion.user_data() as usize;
        let more = cqueue::more(completion.flags());
        let slot = &mut self.slots[index];
        match &mut slot.state {
            SlotState::InFlight(waker) => {
                wakers.extend(waker.take());
                slot.held = None;
                slot.state = SlotState::Done(completion.result());
            }
            SlotState::Repeating { fired, ended, over, waker } => {
                *fired = true;
                *ended = !more;
                // An error or the other side's end stays: watching on would only spin.
                *over |= completion.result() & !i32::from(libc::POLLIN) != 0;
                wakers.extend(waker.take());
            }
            SlotState::Orphaned if !more => self.release(index),
            SlotState::Orphaned => {}
            SlotState::Free | SlotState::Done(_) => unreachable!("a completion for an idle slot"),
        }
    }
}

impl Drop for Ring {
    /// Waits for operations that nobody waits for any more: the kernel may still be writing to memory that dies with
    /// the slots.
    fn drop(&mut self) {
        let mut wakers = Vec::new();
        while self.slots.iter().any(Slot::is_transferring) {
            self.enter(1);
            self.reap(&mut wakers);
        }
    }
}

impl Slot {
    /// Whether the kernel may be using the operation's memory.
    fn is_transferring(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.operation.is_some())
    }
}

fn set_up() -> io::Result<IoUring> {
    let mut modern = IoUring::builder();
    modern.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_clamp();
    let ring = modern
        .setup_r_disabled()
        .build(RING_ENTRIES)
        // Kernels before 6.1 lack deferred task work; everything else works the same.
        .or_else(|_| IoUring::builder().setup_r_disabled().build(RING_ENTRIES))?;
    enable_restricted(&ring)?;
    Ok(ring)
}

/// Which segment of `pinned` holds all the memory that `operation` uses.
fn place_in(pinned: &Payload, operation: &Operation) -> Option<u16> {
    let (Operation::Read { into: memory, .. } | Operation::Write { from: memory, .. }) = operation
    else {
        return None;
    };
    let [one] = memory.segments() else { return None };
    let holds = |segment: &Segment| {
        let before = (one.start() as usize).checked_sub(segment.start() as usize);
        before.is_some_and(|before| before <= segment.len() && one.len() <= segment.len() - before)
    };
    pinned.segments().iter().position(holds).and_then(|place| u16::try_from(place).ok())
}

/// The entry for `operation` on the file `fd`; `pinned` says which pinned segment its memory lies in.
fn build(
    fd: types::Fd,
    operation: &Operation,
    pinned: Option<u16>,
    iovecs: &mut Vec<libc::iovec>,
) -> squeue::Entry {
    match operation {
        Operation::Read { at, into } => match (into.segments(), pinned) {
            ([one], Some(place)) => {
                let len = one.len() as u32;
                opcode::ReadFixed::new(fd, one.start(), len, place).offset(*at).build()
            }
            ([one], None) => {
                opcode::Read::new(fd, one.start(), one.len() as u32).offset(*at).build()
            }
            (many, _) => {
                let (list, count) = fill_iovecs(iovecs, many);
                opcode::Readv::new(fd, list, count).offset(*at).build()
            }
        },
        Operation::Write { at, from } => match (from.segments(), pinned) {
            ([one], Some(place)) => {
                let len = one.len() as u32;
                opcode::WriteFixed::new(fd, one.start(), len, place).offset(*at).build()
            }
            ([one], None) => {
                opcode::Write::new(fd, one.start(), one.len() as u32).offset(*at).build()
            }
            (many, _) => {
                let (list, count) = fill_iovecs(iovecs, many);
                opcode::Writev::new(fd, list, count).offset(*at).build()
            }
        },
        Operation::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Fallocate { mode, at, len } => {
            opcode::Fallocate::new(fd, *len).offset(*at).mode(*mode).build()
        }
        Operation::SetLen { len } => opcode::Ftruncate::new(fd, *len).build(),
    }
}

fn fill_iovecs(iovecs: &mut Vec<libc::iovec>, segments: &[Segment]) -> (*const libc::iovec, u32) {
    iovecs.clear();
    iovecs.extend(
        segments
            .iter()
            .take(SEGMENT_COUNT_MAX)
            .map(|s| libc::iovec { iov_base: s.start().cast(), iov_len: s.len() }),
    );
    (iovecs.as_ptr(), iovecs.len() as u32)
}

/// An operation on the ring of this thread; its value is the kernel's non-negative result.
pub(super) fn submit(
    file: &Arc<OwnedFd>,
    operation: Operation,
) -> impl Future<Output = io::Result<u32>> {
    let state = PendingState::Unsubmitted(Arc::clone(file), Some(operation));
    Pending { state, ring: this_ring() }
}

/// Not `Send`: it lives and dies on the thread whose ring it uses.
struct Pending {
    state: PendingState,
    ring: Rc<RefCell<Ring>>,
}

enum PendingState {
    Unsubmitted(Arc<OwnedFd>, Option<Operation>),
    Submitted(usize),
    Ended,
}

impl Future for Pending {
    type Output = io::Result<u32>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut ring = this.ring.borrow_mut();
        let index = match &mut this.state {
            PendingState::Unsubmitted(file, operation) => {
                let operation = operation.take().expect("an operation is submitted once");
                let index = ring.start(file, operation);
                this.state = PendingState::Submitted(index);
                index
            }
            PendingState::Submitted(index) => *index,
            PendingState::Ended => panic!("an operation polled after its end"),
        };
        match &mut ring.slots[index].state {
            SlotState::InFlight(waker) => {
                remember(waker, context.waker());
                Poll::Pending
            }
            SlotState::Done(result) => {
                let result = *result;
                ring.release(index);
                this.state = PendingState::Ended;
                Poll::Ready(
                    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)),
                )
            }
            other => unreachable!("a waited-for operation in state {other:?}"),
        }
    }
}

/// Makes `waker` the one to call. It most often is already.
fn remember(waker: &mut Option<Waker>, new: &Waker) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(new)) {
        *waker = Some(new.clone());
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let PendingState::Submitted(index) = self.state {
            let mut ring = self.ring.borrow_mut();
            match ring.slots[index].state {
                SlotState::InFlight(_) => ring.slots[index].state = SlotState::Orphaned,
                _ => ring.release(index),
            }
        }
    }
}

/// Tells, again and again, that a descriptor has become readable; for an eventfd: that it was written to.
///
/// The descriptor is never read: the ring reports each write by itself, so a signal costs no system call here.
pub struct Readiness {
    index: usize,
    file: Arc<OwnedFd>,
    ring: Rc<RefCell<Ring>>,
}

impl Readiness {
    /// Watches `file` on this thread's ring.
    pub fn watch(file: Arc<OwnedFd>) -> Self {
        let ring = this_ring();
        let index = ring.borrow_mut().watch(&file);
        Self { index, file, ring }
    }

    /// Ready once per signal or burst of signals since the last time.
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut ring = self.ring.borrow_mut();
        let SlotState::Repeating { fired, ended, over, waker } = &mut ring.slots[self.index].state
        else {
            unreachable!("a watch lost its slot");
        };
        if !std::mem::take(fired) {
            remember(waker, context.waker());
            return Poll::Pending;
        }
        if *ended && !*over {
            // The kernel ends a repeating poll when it runs out of completion room; the signal has been seen.
            ring.release(self.index);
            self.index = ring.watch(&self.file);
        }
        Poll::Ready(())
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        let mut ring = self.ring.borrow_mut();
        let ended =
            matches!(ring.slots[self.index].state, SlotState::Repeating { ended: true, .. });
        if ended {
            ring.release(self.index);
            return;
        }
        ring.slots[self.index].state = SlotState::Orphaned;
        let cancel = opcode::PollRemove::new(self.index as u64).build();
        let index = ring.take_slot(SlotState::Orphaned);
        ring.push(&cancel.user_data(index as u64));
    }
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Parks this thread in its ring.
pub struct RingPark {
    ring: Rc<RefCell<Ring>>,
}

impl RingPark {
    /// The calling thread's ring, set up on first use.
    pub fn new() -> Self {
        Self { ring: this_ring() }
    }
}

impl Default for RingPark {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for RingPark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RingPark")
    }
}

impl Park for RingPark {
    fn park(&self, woken: &AtomicBool) {
        let mut wakers = Vec::new();
        {
            let mut ring = self.ring.borrow_mut();
            let unparker = Arc::clone(&ring.unparker);
            unparker.parked.store(true, Ordering::SeqCst);
            // A wake-up before the store above left no signal, so it must be seen here.
            match woken.load(Ordering::SeqCst) {
                false => ring.enter(1),
                true => ring.enter_if_needed(),
            }
            unparker.parked.store(false, Ordering::SeqCst);
            ring.reap(&mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::<RingUnpark>::clone(&self.ring.borrow().unparker)
    }
}

struct RingUnpark {
    event: EventFd,
    parked: AtomicBool,
}

impl RingUnpark {
    fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, parked: AtomicBool::new(false) })
    }
}

impl Unpark for RingUnpark {
    fn unpark(&self) {
        if self.parked.load(Ordering::SeqCst) {
            // The counter cannot overflow in the life of a program, and nothing else makes this write fail.
            let _ = self.event.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel answers to `entry` on a ring of this engine.
    fn answer(entry: &squeue::Entry) -> io::Result<i32> {
        let mut uring = set_up()?;
        // SAFETY: needed to ask for what no operation of this module asks for. It names memory that is static, or none.
        unsafe { uring.submission().push(entry) }.map_err(io::Error::other)?;
        uring.submit_and_wait(1)?;
        uring
            .completion()
            .next()
            .map(|entry| entry.result())
            .ok_or_else(|| io::ErrorKind::Other.into())
    }

    #[test]
    fn a_ring_opens_no_files_and_no_sockets() -> io::Result<()> {
        let path = c"/etc/passwd".as_ptr();
        let root = types::Fd(libc::AT_FDCWD);
        let denied = [
            opcode::OpenAt::new(root, path).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            opcode::UnlinkAt::new(root, path).build(),
            opcode::Close::new(types::Fd(0)).build(),
            opcode::Nop::new().build(),
        ];
        for entry in &denied {
            assert_eq!(answer(entry)?, -libc::EACCES, "{entry:?}");
        }
        let nowhere = opcode::Fsync::new(types::Fd(-1)).build();
        assert_eq!(answer(&nowhere)?, -libc::EBADF);
        Ok(())
    }
}
