//! Flushes, space and lengths of files: what is no transfer, asked for by a thread of its own.
//!
//! The kernel carries out buffered writes to a file one after the other, on a worker of the thread whose ring they come
//! from. Anything else that it cannot do at once makes it start a second worker, and from then on the two pass the writes
//! to each other, with two wake-ups for each. So a program whose threads write a lot lets one thread call
//! [`serve_upkeep`]; all others then leave such operations to it. How many run at a time is still up to the kernel.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use super::block_on;
use super::ring::{Operation, submit};
use crate::exec::SlotPool;
use crate::sync::{WaitQueue, lock};

/// Operations under way at a time; more wait.
const RUNNING_MAX: usize = 64;

/// Where operations are left, once there is somebody to fetch them.
static INBOX: OnceLock<Inbox> = OnceLock::new();

thread_local! {
    static IS_SERVER: Cell<bool> = const { Cell::new(false) };
}

/// Carries out for all other threads of this process, from now on, what is no transfer.
pub fn serve_upkeep() -> ! {
    IS_SERVER.set(true);
    let inbox = INBOX.get_or_init(Inbox::default);
    let mut running = SlotPool::new(RUNNING_MAX);
    let serving = poll_fn(|context| {
        while running.poll_next(context).is_ready() {}
        while !running.is_full()
            && let Some(errand) = inbox.fetch(context)
        {
            // Most often the kernel needs time for it, and the pool says when it has ended.
            let _ = running.insert(errand.carry_out());
        }
        Poll::<Infallible>::Pending
    });
    match block_on(serving) {}
}

/// Has `operation`, which is no transfer, carried out on `file`; the kernel's non-negative result.
pub(super) async fn perform(file: &Arc<OwnedFd>, operation: Operation) -> io::Result<u32> {
    match INBOX.get().filter(|_| !IS_SERVER.get()) {
        Some(inbox) => inbox.leave(file, operation).await,
        None => submit(file, operation).await,
    }
}

#[derive(Default)]
struct Inbox {
    inner: Mutex<InboxInner>,
}

#[derive(Default)]
struct InboxInner {
    errands: VecDeque<Errand>,
    server: Option<Waker>,
}

struct Errand {
    file: Arc<OwnedFd>,
    operation: Operation,
    answer: Arc<Answer>,
}

#[derive(Default)]
struct Answer {
    result: Mutex<Option<io::Result<u32>>>,
    given: WaitQueue,
}

impl Inbox {
    async fn leave(&self, file: &Arc<OwnedFd>, operation: Operation) -> io::Result<u32> {
        let answer = Arc::new(Answer::default());
        let errand = Errand { file: Arc::clone(file), operation, answer: Arc::clone(&answer) };
        let server = {
            let mut inner = lock(&self.inner);
            inner.errands.push_back(errand);
            inner.server.take()
        };
        if let Some(server) = server {
            server.wake();
        }
        answer.given.until(|| lock(&answer.result).take()).await
    }

    /// The next errand; where there is none, whoever leaves one wakes the caller.
    fn fetch(&self, context: &Context<'_>) -> Option<Errand> {
        let mut inner = lock(&self.inner);
        let next = inner.errands.pop_front();
        if next.is_none() {
            inner.server = Some(context.waker().clone());
        }
        next
    }
}

impl Errand {
    async fn carry_out(self) {
        let result = submit(&self.file, self.operation).await;
        // Whoever waits for the answer may close the file then.
        drop(self.file);
        *lock(&self.answer.result) = Some(result);
        self.answer.given.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::thread;

    use super::*;

    #[test]
    fn results_and_errors_come_back_to_whoever_asked() {
        thread::spawn(|| serve_upkeep());
        let made = tempfile::NamedTempFile::new().expect("a file");
        let writable: Arc<OwnedFd> = Arc::new(made.reopen().expect("the file").into());
        let read_only: Arc<OwnedFd> = Arc::new(File::open(made.path()).expect("the file").into());
        // Whether the other thread serves already does not matter.
        let ask = |file: &Arc<OwnedFd>, operation| block_on(perform(file, operation));
        for len in 1..100 {
            ask(&writable, Operation::Fallocate { mode: 0, at: 0, len }).expect("room");
            ask(&writable, Operation::Sync).expect("a disk");
            assert_eq!(made.as_file().metadata().expect("its length").len(), len);
        }
        let error = ask(&read_only, Operation::Fallocate { mode: 0, at: 0, len: 1 });
        assert_eq!(error.expect_err("not writable").raw_os_error(), Some(libc::EBADF));
        assert_eq!(Arc::strong_count(&writable), 1, "nobody keeps the file open");
    }
}
