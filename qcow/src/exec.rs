//! A small single-threaded executor: one root future per thread, request slots without allocation, and joins.
//!
//! The executor knows nothing of I/O. When its root future has nothing left to do it calls [`Park::park`], which submits
//! and waits for I/O (`disk::uring`) or picks the next event of a simulation (`disk::sim`).

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::sync::lock;

/// What a thread does while its root future waits.
pub trait Park {
    /// Submits what has been queued, then waits until something may have been woken, unless `woken` turns true first.
    fn park(&self, woken: &AtomicBool);

    /// Lets this thread's `park` return from another thread.
    fn unparker(&self) -> Arc<dyn Unpark>;
}

/// Ends a [`Park::park`] from any thread.
pub trait Unpark: Send + Sync {
    /// Makes the thread look at its wake-ups again; cheap when it is not parked.
    fn unpark(&self);
}

/// Runs `root` to its end on this thread.
pub fn block_on<T>(park: &impl Park, root: impl Future<Output = T>) -> T {
    let flag = Arc::new(RootWaker { woken: AtomicBool::new(true), unparker: park.unparker() });
    let waker = Waker::from(Arc::clone(&flag));
    let mut context = Context::from_waker(&waker);
    let mut root = pin!(root);
    loop {
        if flag.woken.swap(false, Ordering::SeqCst)
            && let Poll::Ready(value) = root.as_mut().poll(&mut context)
        {
            return value;
        }
        // Also when it has been woken again: I/O goes on however busy the root keeps itself.
        park.park(&flag.woken);
    }
}

struct RootWaker {
    woken: AtomicBool,
    unparker: Arc<dyn Unpark>,
}

impl Wake for RootWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            self.unparker.unpark();
        }
    }
}

/// Gives other futures of this thread a turn.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A fixed number of slots for futures of one type that run at the same time: the requests of one queue.
///
/// All memory is allocated up front; inserting a future moves it into its slot.
pub struct SlotPool<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    ready: Arc<ReadyList>,
    choose: Option<Choose>,
}

/// Picks one of so many futures that are ready to run.
type Choose = Box<dyn FnMut(usize) -> usize>;

struct Slot<F> {
    future: Pin<Box<Option<F>>>,
    signal: Arc<SlotWaker>,
    waker: Waker,
}

impl<F> Slot<F> {
    fn new(slot: usize, ready: &Arc<ReadyList>) -> Self {
        let queued = AtomicBool::new(false);
        let signal = Arc::new(SlotWaker { slot, queued, ready: Arc::clone(ready) });
        let waker = Waker::from(Arc::clone(&signal));
        Self { future: Box::pin(None), signal, waker }
    }
}

/// Slots whose future was woken, and the waker of whoever polls the pool.
struct ReadyList {
    inner: std::sync::Mutex<ReadyInner>,
}

struct ReadyInner {
    slots: VecDeque<usize>,
    poller: Option<Waker>,
}

struct SlotWaker {
    slot: usize,
    queued: AtomicBool,
    ready: Arc<ReadyList>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::SeqCst) {
            return;
        }
        let poller = {
            let mut inner = lock(&self.ready.inner);
            inner.slots.push_back(self.slot);
            inner.poller.take()
        };
        if let Some(poller) = poller {
            poller.wake();
        }
    }
}

impl<F: Future> SlotPool<F> {
    /// A pool of `count` slots.
    pub fn new(count: usize) -> Self {
        let inner = ReadyInner { slots: VecDeque::with_capacity(count), poller: None };
        let ready = Arc::new(ReadyList { inner: std::sync::Mutex::new(inner) });
        let slots = (0..count).map(|slot| Slot::new(slot, &ready)).collect();
        Self { slots, free: (0..count).rev().collect(), ready, choose: None }
    }

    /// A pool that lets `choose` say which of so many woken futures runs next, instead of the one woken first.
    pub fn with_schedule(count: usize, choose: impl FnMut(usize) -> usize + 'static) -> Self {
        Self { choose: Some(Box::new(choose)), ..Self::new(count) }
    }

    /// How many futures are running.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no future is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every slot is taken.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Starts `future` and runs it as far as it gets; its value if that is the end of it. The pool must not be full.
    pub fn insert(&mut self, future: F) -> Option<F::Output> {
        let index = self.free.pop().expect("a free slot for the request");
        let slot = &mut self.slots[index];
        slot.future.set(Some(future));
        self.poll_slot(index)
    }

    /// Runs woken futures; the value of one that ended. `Pending` when none is ready to run, also when the pool is empty.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            let next = {
                let mut inner = lock(&self.ready.inner);
                let next = match &mut self.choose {
                    Some(choose) if !inner.slots.is_empty() => {
                        let chosen = choose(inner.slots.len());
                        inner.slots.swap_remove_back(chosen)
                    }
                    _ => inner.slots.pop_front(),
                };
                if next.is_none()
                    && !inner.poller.as_ref().is_some_and(|p| p.will_wake(context.waker()))
                {
                    inner.poller = Some(context.waker().clone());
                }
                next
            };
            let Some(index) = next else { return Poll::Pending };
            if let Some(value) = self.poll_slot(index) {
                return Poll::Ready(value);
            }
        }
    }

    fn poll_slot(&mut self, index: usize) -> Option<F::Output> {
        let slot = &mut self.slots[index];
        slot.signal.queued.store(false, Ordering::SeqCst);
        let future = slot.future.as_mut().as_pin_mut()?;
        let Poll::Ready(value) = future.poll(&mut Context::from_waker(&slot.waker)) else {
            return None;
        };
        slot.future.set(None);
        self.free.push(index);
        Some(value)
    }
}

impl<F> std::fmt::Debug for SlotPool<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotPool")
            .field("slots", &self.slots.len())
            .field("free", &self.free.len())
            .finish()
    }
}

/// Runs all `futures`, at most `limit` at a time, and says whether each succeeded: the first failure otherwise.
pub async fn try_join_all<F, E>(limit: usize, futures: impl IntoIterator<Item = F>) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
{
    let mut waiting = futures.into_iter();
    let mut result = Ok(());
    let mut pool = SlotPool::new(limit.min(waiting.size_hint().1.unwrap_or(limit)).max(1));
    let mut note = |ended: Option<Result<(), E>>| {
        if let Some(Err(e)) = ended
            && result.is_ok()
        {
            result = Err(e);
        }
    };
    loop {
        while !pool.is_full()
            && let Some(future) = waiting.next()
        {
            note(pool.insert(future));
        }
        if pool.is_empty() {
            return result;
        }
        note(Some(std::future::poll_fn(|context| pool.poll_next(context)).await));
    }
}

/// Runs all `futures` at the same time; their values in the order given.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut values: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, value) in running.iter_mut().zip(&mut values) {
            if value.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(done) => *value = Some(done),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    values.into_iter().map(|v| v.expect("every joined future has ended")).collect()
}
