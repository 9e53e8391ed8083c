//! Keeps the queues of a disk full and measures: one thread per queue.

pub mod bare;
mod check;
pub mod content;
pub mod plan;
pub mod report;
pub(crate) mod rng;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use crate::Result;
use crate::config::SECTOR;
use crate::cpu::CpuClock;
use crate::frontend::{Connection, Features};
use crate::memory::GuestMemory;
use crate::process;
use content::Record;
use plan::{Access, Generator, Mix, Op, Sweep};
use report::{Report, Server, Window};
use worker::{Driver, Phase, Progress, Tally, Worker};

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After this time, counted from the end of the warm-up.
    Time(Duration),
    /// After this many requests on all queues together, counted from the end of the warm-up.
    Requests(u64),
}

/// One run against one daemon.
#[derive(Clone, Debug)]
pub struct Job {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Queues, each with a thread.
    pub queues: u16,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Bytes per request, a multiple of 512.
    pub block_size: u64,
    /// What the requests are.
    pub mix: Mix,
    /// Where they go.
    pub access: Access,
    /// Bytes from one place that may be used to the next, a multiple of the block size; `None`: blocks
    /// follow each other. See [`Access`].
    pub stretch: Option<u64>,
    /// First byte of the disk that is used, a multiple of the block size.
    pub offset: u64,
    /// Bytes of the disk that are used; `None`: to its end.
    pub range: Option<u64>,
    /// A flush follows this many writes of a queue; 0: none.
    pub flush_every: u64,
    /// Determines places, order and data.
    pub seed: u64,
    /// When to end.
    pub limit: Limit,
    /// Time under load before anything is counted.
    pub warmup: Duration,
    /// Check all that is read, and at the end all that was written.
    pub verify: bool,
    /// With `verify`: what this run has not written, an earlier run with the same seed has.
    pub expect_written: bool,
    /// Process whose CPU time is counted; `None`: the one that listens on the socket.
    pub server_pid: Option<i32>,
    /// Ring features to ask for.
    pub features: Features,
    /// How long the daemon may stay without completing anything.
    pub timeout: Duration,
}

impl Job {
    /// Five seconds of random reads of 4 KiB on one queue with 32 in flight, over the whole disk,
    /// after one second of warm-up.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            queues: 1,
            depth: 32,
            block_size: 4096,
            mix: Mix::only(Op::Read),
            access: Access::Random,
            stretch: None,
            offset: 0,
            range: None,
            flush_every: 0,
            seed: 1,
            limit: Limit::Time(Duration::from_secs(5)),
            warmup: Duration::from_secs(1),
            verify: false,
            expect_written: false,
            server_pid: None,
            features: Features { inflight: false, ..Features::default() },
            timeout: Duration::from_secs(30),
        }
    }

    /// Blocks in each stretch.
    fn stretch_blocks(&self) -> u64 {
        self.stretch.map_or(1, |stretch| stretch / self.block_size)
    }
}

/// Runs `job` and reports. Fails when the daemon does, and on the first wrong byte; requests that
/// complete with an error are counted in the report.
pub fn run(job: &Job) -> Result<Report> {
    let mut connection = Connection::open(&job.socket, job.queues, job.features, job.timeout)?;
    check::supported(job, &connection)?;
    let config = connection.config();
    let blocks = check::blocks(job, config.bytes(), SECTOR.max(config.blk_size.into()))?;
    let server_pid = job.server_pid.map_or_else(|| connection.server_pid(), Ok)?;
    let clocks = Clocks { server: CpuClock::of(server_pid)?, own: CpuClock::own() };
    let record =
        job.verify.then(|| Record::new(job.seed, blocks.end, job.block_size, job.expect_written));

    let indirect = connection.has(VIRTIO_RING_F_INDIRECT_DESC);
    let share = worker::memory_needed(job, indirect);
    let memory = Arc::new(GuestMemory::new(share * u64::from(job.queues))?);
    let mut arena = memory.arena();
    let mut workers = Vec::new();
    for index in 0..job.queues {
        let mut part = arena.split(share)?;
        workers.push(Worker::new(
            job,
            index,
            indirect,
            memory.clone(),
            &mut part,
            record.as_ref(),
        )?);
    }
    let size = workers.first_mut().map_or(0, |worker| worker.queue().layout().size);
    let inflight = connection.get_inflight(size)?;
    connection.start(&memory, inflight.as_ref(), workers.iter_mut().map(Worker::queue))?;

    let generators = (0..job.queues).map(|index| Generator::new(job, index, &blocks));
    let (window, tally) = measure(job, clocks, &mut workers, generators.collect())?;
    let resident = process::resident(server_pid)?;
    let checked_after = match &record {
        Some(_) => sweep(job, &blocks, &mut workers)?,
        None => 0,
    };
    for index in 0..workers.len() {
        connection.stop_queue(index)?;
    }
    Ok(Report::new(job, Server { pid: server_pid, resident }, &window, &tally, checked_after))
}

/// The CPU clocks of both sides.
#[derive(Clone, Copy)]
struct Clocks {
    server: CpuClock,
    own: CpuClock,
}

impl Clocks {
    fn sample(self) -> Result<(Instant, Duration, Duration)> {
        Ok((Instant::now(), self.server.read()?, self.own.read()?))
    }
}

/// Warm-up, then the part that counts.
fn measure<D: Driver>(
    job: &Job,
    clocks: Clocks,
    workers: &mut [D],
    sources: Vec<Generator>,
) -> Result<(Window, Tally)> {
    let progress = &Progress::default();
    let (ended, endings) = mpsc::channel();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (worker, mut source) in workers.iter_mut().zip(sources) {
            let ended = ended.clone();
            threads.push(scope.spawn(move || {
                let tally = worker.run(&mut source, progress);
                if tally.is_err() {
                    progress.enter(Phase::Stop);
                }
                // Nobody listens any more when another queue has failed before.
                let _ = ended.send(());
                tally
            }));
        }
        drop(ended);
        let window = conduct(job, clocks, progress, &endings);
        progress.enter(Phase::Stop);
        let tally = join(threads)?;
        Ok((window?, tally))
    })
}

/// Leads the workers, each of which sends a word when it ends, from one phase to the next.
fn conduct(
    job: &Job,
    clocks: Clocks,
    progress: &Progress,
    endings: &mpsc::Receiver<()>,
) -> Result<Window> {
    // A worker that ends now has failed; its error comes with its tally.
    let _ = endings.recv_timeout(job.warmup);
    let before = clocks.sample()?;
    progress.enter(Phase::Measure);
    match job.limit {
        Limit::Time(time) => {
            let _ = endings.recv_timeout(time);
        }
        Limit::Requests(_) => while endings.recv().is_ok() {},
    }
    let after = clocks.sample()?;
    Ok(Window::between(before, after))
}

/// Reads back all that the run wrote, with nothing else going on. Returns the number of blocks.
fn sweep(job: &Job, blocks: &std::ops::Range<u64>, workers: &mut [Worker<'_>]) -> Result<u64> {
    let progress = &Progress::default();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (index, worker) in (0..job.queues).zip(workers) {
            let mut source = Sweep::new(job, index, blocks);
            threads.push(scope.spawn(move || worker.run(&mut source, progress)));
        }
        Ok(join(threads)?.checked)
    })
}

/// Waits for the workers and adds up what they counted.
fn join(threads: Vec<ScopedJoinHandle<'_, Result<Tally>>>) -> Result<Tally> {
    let mut sum = Tally::default();
    for thread in threads {
        match thread.join() {
            Ok(tally) => sum.add(&tally?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(sum)
}
