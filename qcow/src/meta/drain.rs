//! Requests in flight, counted so that a freed cluster is reused only after everyone who could still see it has ended.
//!
//! Every request that follows a mapping to a host cluster is inside [`Drain::enter`] from before it looks the mapping up
//! until its I/O has ended. Requests enter under the current of two counters. Once a cluster is unlinked, no later
//! request can find it; so as soon as each counter has been seen at zero after that, nobody knows the cluster any more.
//! Turning the current counter over makes sure that each gets to zero under constant load.
//!
//! Each counter is a sum of stripes, one for each thread as far as they go round, so that queues do not pass a cache line
//! around with every request. Each stripe has to be seen at zero, not all in the same moment: who entered before the
//! unlink is in one of them until he has left.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Stripes of the counters: more threads than this share.
const STRIPE_COUNT: usize = 16;

thread_local! {
    /// The stripe that this thread enters by.
    static STRIPE: usize = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % STRIPE_COUNT
    };
}

/// Counts the requests in flight.
#[derive(Debug, Default)]
pub struct Drain {
    current: AtomicUsize,
    stripes: [Stripe; STRIPE_COUNT],
}

/// The requests of some threads, by the counter that they entered under. A pair of cache lines to itself.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    inside: [AtomicU64; 2],
}

/// A request in flight.
#[derive(Debug)]
pub struct Inside<'a> {
    entered: &'a AtomicU64,
}

/// What has been seen of the two counters since a cluster was unlinked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grace {
    seen_empty: [bool; 2],
}

impl Drain {
    /// Counts a request in until the guard is dropped.
    pub fn enter(&self) -> Inside<'_> {
        let counter = self.current.load(Ordering::SeqCst);
        let entered = &self.stripes[STRIPE.with(|stripe| *stripe)].inside[counter];
        entered.fetch_add(1, Ordering::SeqCst);
        Inside { entered }
    }

    /// Whether no request is in flight right now.
    pub fn is_empty(&self) -> bool {
        self.is_counter_empty(0) && self.is_counter_empty(1)
    }

    /// Looks at the counters for the benefit of `grace`; whether its waiting is over.
    pub fn has_passed(&self, grace: &mut Grace) -> bool {
        for counter in 0..2 {
            grace.seen_empty[counter] |= self.is_counter_empty(counter);
        }
        let current = self.current.load(Ordering::SeqCst);
        if !grace.seen_empty[current] && grace.seen_empty[1 - current] {
            // New requests go to the other counter from now on, so that this one can empty.
            self.current.store(1 - current, Ordering::SeqCst);
        }
        grace.seen_empty == [true; 2]
    }

    fn is_counter_empty(&self, counter: usize) -> bool {
        self.stripes.iter().all(|stripe| stripe.inside[counter].load(Ordering::SeqCst) == 0)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.entered.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_only_after_everyone_inside_has_left() {
        let drain = Drain::default();
        let early = drain.enter();
        let mut grace = Grace::default();
        assert!(!drain.has_passed(&mut grace));
        let late = drain.enter();
        assert!(!drain.has_passed(&mut grace));
        drop(early);
        // The late request entered after the unlink, so nobody has to wait for it.
        assert!(drain.has_passed(&mut grace));
        drop(late);
    }

    #[test]
    fn passes_under_constant_load() {
        let drain = Drain::default();
        let mut grace = Grace::default();
        let mut previous = drain.enter();
        let passed = (0..10).any(|_| {
            let next = drain.enter();
            drop(std::mem::replace(&mut previous, next));
            drain.has_passed(&mut grace)
        });
        assert!(passed);
    }
}
