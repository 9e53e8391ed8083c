//! Unpacking compressed clusters: on the thread that asks, or on threads of its own.
//!
//! Unpacking a cluster takes as long as a hundred small reads. A queue that does it itself keeps all its other requests
//! waiting for so long, and uses one core; so a daemon hands it to [`Unpackers`], and a tool or a simulation does not.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::codec::Decompressor;
use crate::disk::Buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::compression::CompressionType;
use crate::limits::UNPACKED_ELSEWHERE_MIN;
use crate::sync::{WaitQueue, lock};

thread_local! {
    /// Contexts are large and slow to make: one set for each thread.
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// A cluster to be unpacked. Its buffers come from the thread that asks, and go back there, which keeps them for the next one:
/// memory that one thread takes and another gives back is asked of the kernel anew each time.
#[derive(Debug)]
pub(super) struct Task {
    compression: CompressionType,
    /// The compressed bytes, and whatever follows them up to the end of their last sector.
    packed: Buffer,
    /// Room for the cluster.
    cluster: Buffer,
    /// How many of the cluster's bytes, from the start on, are needed.
    len: usize,
}

impl Task {
    /// To unpack at least `len` bytes of the `cluster_len` that are packed in `packed`.
    pub fn new(
        compression: CompressionType,
        packed: Buffer,
        cluster_len: usize,
        len: usize,
    ) -> Self {
        Self { compression, packed, cluster: Buffer::scratch(cluster_len), len }
    }

    /// Unpacks at least what is needed: what there is of the cluster, from its start on.
    pub fn run(mut self) -> Result<Buffer> {
        let filled = self.unpack()?;
        Ok(self.take(filled))
    }

    /// As [`Self::run`], but leaves the bytes here: how many there are.
    fn unpack(&mut self) -> Result<usize> {
        let (packed, cluster) = (self.packed.make_mut(), self.cluster.make_mut());
        DECOMPRESSOR.with_borrow_mut(|decompressor| {
            decompressor.decompress_start(self.compression, packed, cluster, self.len)
        })
    }

    /// The first `filled` bytes; no more memory than these take is kept.
    fn take(mut self, filled: usize) -> Buffer {
        if filled == self.cluster.make_mut().len() {
            return self.cluster;
        }
        Buffer::from_bytes(&self.cluster.make_mut()[..filled])
    }

    /// Bytes of the cluster.
    pub fn cluster_len(&self) -> usize {
        self.cluster.len()
    }
}

/// Who unpacks clusters for an image. Clones are the same threads; the default is none: whoever asks does it.
#[derive(Clone, Debug, Default)]
pub struct Unpackers {
    pool: Option<Arc<Pool>>,
}

impl Unpackers {
    /// `count` threads, which start with the first cluster that there is to unpack, and end with the last clone.
    pub fn threads(count: usize) -> Self {
        let pool = Pool { count, queue: Arc::default(), threads: OnceLock::new() };
        Self { pool: Some(Arc::new(pool)) }
    }

    /// The threads, if they are to unpack clusters of `cluster_len` bytes: small ones are unpacked sooner than handed over.
    pub(super) fn for_clusters_of(&self, cluster_len: usize) -> Option<&Pool> {
        let pool = self.pool.as_deref().filter(|_| cluster_len >= UNPACKED_ELSEWHERE_MIN)?;
        pool.is_running().then_some(pool)
    }
}

/// Threads that unpack.
#[derive(Debug)]
pub(super) struct Pool {
    count: usize,
    queue: Arc<Queue>,
    threads: OnceLock<Vec<JoinHandle<()>>>,
}

/// What they have to do.
#[derive(Debug, Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Whether no more will come.
    closed: bool,
}

#[derive(Debug)]
struct Job {
    task: Task,
    answer: Answer,
}

impl Pool {
    /// Unpacks at least what is needed of a cluster: what there is, from its start on.
    pub async fn unpack(&self, task: Task) -> Result<Buffer> {
        let reply = Arc::new(Reply::default());
        let answer = Answer(Arc::clone(&reply));
        lock(&self.queue.jobs).waiting.push_back(Job { task, answer });
        self.queue.more.notify_one();
        let (task, filled) = reply.given.until(|| lock(&reply.result).take()).await?;
        Ok(task.take(filled))
    }

    /// Whether there are threads, which are started now if they have not been. A host may have none to give.
    fn is_running(&self) -> bool {
        let start = || (0..self.count).map_while(|index| self.start(index)).collect();
        !self.threads.get_or_init(start).is_empty()
    }

    fn start(&self, index: usize) -> Option<JoinHandle<()>> {
        let queue = Arc::clone(&self.queue);
        let started = Builder::new().name(format!("unpack {index}")).spawn(move || {
            while let Some(Job { mut task, answer }) = queue.next() {
                let filled = task.unpack();
                answer.give(filled.map(|filled| (task, filled)));
            }
        });
        started.inspect_err(|e| tracing::warn!("no thread to unpack clusters: {e}")).ok()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.queue.jobs).closed = true;
        self.queue.more.notify_all();
        for thread in self.threads.take().into_iter().flatten() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Queue {
    /// Waits for the next job; `None` when no more will come.
    fn next(&self) -> Option<Job> {
        let idle = |jobs: &mut Jobs| jobs.waiting.is_empty() && !jobs.closed;
        let jobs = self.more.wait_while(lock(&self.jobs), idle);
        jobs.unwrap_or_else(PoisonError::into_inner).waiting.pop_front()
    }
}

/// Where a thread leaves what a future waits for.
#[derive(Debug, Default)]
struct Reply {
    /// The task, and how many bytes of its cluster there are.
    result: Mutex<Option<Result<(Task, usize)>>>,
    given: WaitQueue,
}

/// The duty to answer; one that is dropped without is a failure.
#[derive(Debug)]
struct Answer(Arc<Reply>);

impl Answer {
    fn give(self, result: Result<(Task, usize)>) {
        *lock(&self.0.result) = Some(result);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let failed = || Err(Error::new(ErrorKind::Limit, "unpacking was cut short"));
        lock(&self.0.result).get_or_insert_with(failed);
        self.0.given.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    const LEN: usize = UNPACKED_ELSEWHERE_MIN;

    fn task(seed: u8, len: usize) -> Task {
        let mut packed = vec![0; LEN + 1000];
        let plain = vec![seed; LEN];
        let packed_len = zstd_safe::compress(&mut packed[..], &plain, 1).unwrap();
        packed.truncate(packed_len);
        Task::new(CompressionType::Zstd, Buffer::from_bytes(&packed), LEN, len)
    }

    /// Runs `future` to its end on a thread that has nothing else to do.
    fn wait<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn all_that_is_handed_over_comes_back() {
        let unpackers = Unpackers::threads(2);
        let pool = unpackers.for_clusters_of(LEN).expect("threads");
        let tasks = (0..50).map(|seed| pool.unpack(task(seed, LEN)));
        let unpacked = wait(crate::exec::join_all(tasks));
        for (seed, bytes) in (0..).zip(unpacked) {
            assert_eq!(bytes.unwrap().to_vec(), vec![seed; LEN]);
        }
        let cut = Task { packed: Buffer::from_bytes(&[1, 2, 3]), ..task(0, LEN) };
        assert_eq!(wait(pool.unpack(cut)).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(unpackers.for_clusters_of(LEN - 1).is_none(), "sooner unpacked than handed over");
    }

    #[test]
    fn a_job_that_nobody_does_fails() {
        let reply = Arc::new(Reply::default());
        drop(Job { task: task(0, LEN), answer: Answer(Arc::clone(&reply)) });
        assert!(wait(reply.given.until(|| lock(&reply.result).take())).is_err());
    }
}
