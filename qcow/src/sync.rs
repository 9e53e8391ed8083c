//! Waiting for shared state to change, from futures on any thread.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Locks `mutex`. A panic elsewhere while it was held has ended that request, not the data behind it: every critical
/// section of ours leaves the state consistent at each point where it can panic.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Futures that wait until something holds, woken whenever it may have come true.
#[derive(Debug, Default)]
pub struct WaitQueue {
    waiters: Mutex<Vec<Waker>>,
}

impl WaitQueue {
    /// Completes with the first `Some` that `ready` returns. `ready` is asked at once and after every [`Self::wake_all`].
    pub async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| {
            if let Some(value) = ready() {
                return Poll::Ready(value);
            }
            self.register(context.waker());
            // Asked again after registering: a change between the two would otherwise wake nobody.
            ready().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Wakes every waiter to ask again. Call it after the state has changed and its lock is free.
    pub fn wake_all(&self) {
        let waiters = std::mem::take(&mut *lock(&self.waiters));
        waiters.into_iter().for_each(Waker::wake);
    }

    fn register(&self, waker: &Waker) {
        let mut waiters = lock(&self.waiters);
        if !waiters.iter().any(|w| w.will_wake(waker)) {
            waiters.push(waker.clone());
        }
    }
}

/// A lock for sections that wait: one holder at a time, the others as futures.
#[derive(Debug, Default)]
pub struct Exclusive {
    held: Mutex<bool>,
    released: WaitQueue,
}

/// The right to be the only one, until dropped.
#[derive(Debug)]
pub struct ExclusiveGuard<'a>(&'a Exclusive);

impl Exclusive {
    /// Waits until nobody else holds it.
    pub async fn acquire(&self) -> ExclusiveGuard<'_> {
        self.released
            .until(|| (!std::mem::replace(&mut *lock(&self.held), true)).then_some(()))
            .await;
        ExclusiveGuard(self)
    }
}

impl Drop for ExclusiveGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.0.held) = false;
        self.0.released.wake_all();
    }
}
