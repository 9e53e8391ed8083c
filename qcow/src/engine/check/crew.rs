//! Who does the work of a check: the thread that asks for it, or several.

use std::future::Future;
use std::pin::Pin;

/// Work for one thread.
pub type Work<'w> = Pin<Box<dyn Future<Output = ()> + 'w>>;

/// The threads of a check.
#[derive(Clone, Copy, Debug)]
pub struct Crew {
    threads: usize,
    run: fn(Work<'_>),
}

impl Crew {
    /// The calling thread alone. Right wherever others use that thread, too.
    pub const ALONE: Self = Self { threads: 1, run: |_| () };

    /// So many threads, each with a ring of its own; the calling thread waits for them and does nothing else meanwhile.
    pub fn of_rings(threads: usize) -> Self {
        Self { threads, run: |work| crate::disk::uring::block_on(work) }
    }

    pub(super) fn threads(self) -> usize {
        self.threads
    }

    pub(super) fn run(self, work: Work<'_>) {
        (self.run)(work);
    }
}
