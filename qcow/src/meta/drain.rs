//! Requests in flight, counted so that a freed cluster is reused only after everyone who could still see it has ended.
//!
//! Every request that follows a mapping to a host cluster is inside [`Drain::enter`] from before it looks the mapping up
//! until its I/O has ended. Requests enter under the current of two counters. Once a cluster is unlinked, no later
//! request can find it; so as soon as each counter has been seen at zero after that, nobody knows the cluster any more.
//! Turning the current counter over makes sure that each gets to zero under constant load.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts the requests in flight.
#[derive(Debug, Default)]
pub struct Drain {
    current: AtomicUsize,
    inside: [AtomicU64; 2],
}

/// A request in flight.
#[derive(Debug)]
pub struct Inside<'a> {
    drain: &'a Drain,
    counter: usize,
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
        self.inside[counter].fetch_add(1, Ordering::SeqCst);
        Inside { drain: self, counter }
    }

    /// Whether no request is in flight right now.
    pub fn is_empty(&self) -> bool {
        self.inside.iter().all(|counter| counter.load(Ordering::SeqCst) == 0)
    }

    /// Looks at the counters for the benefit of `grace`; whether its waiting is over.
    pub fn has_passed(&self, grace: &mut Grace) -> bool {
        for counter in 0..2 {
            if self.inside[counter].load(Ordering::SeqCst) == 0 {
                grace.seen_empty[counter] = true;
            }
        }
        let current = self.current.load(Ordering::SeqCst);
        if !grace.seen_empty[current] && grace.seen_empty[1 - current] {
            // New requests go to the other counter from now on, so that this one can empty.
            self.current.store(1 - current, Ordering::SeqCst);
        }
        grace.seen_empty == [true; 2]
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.drain.inside[self.counter].fetch_sub(1, Ordering::SeqCst);
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
