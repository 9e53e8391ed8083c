//! The floor: the same requests straight to a file, by one io_uring for each queue and with nothing
//! in between. What a daemon needs more than this loop is its own doing.
#![expect(unsafe_code, reason = "submission entries name memory by its address")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use nix::fcntl::OFlag;

use super::plan::{Generator, Next, Op, Source};
use super::report::{Report, Server};
use super::rng::Rng;
use super::worker::{Driver, Phase, Progress, Tally};
use super::{Clocks, Job, check};
use crate::config::SECTOR;
use crate::cpu::CpuClock;
use crate::memory::GuestMemory;
use crate::{Error, Result, process};

/// Runs `job`, whose socket does not matter, on the raw image `path`. With a raw image `below`, a write
/// copies all of the stretch that it lies in from there: the least that copy-on-write of a stretch can be.
/// The CPU time in the report is that of this whole process: the loop is server and client in one.
pub fn run(job: &Job, path: &Path, below: Option<&Path>, direct: bool) -> Result<Report> {
    if job.mix.read + job.mix.write != 100 || job.flush_every > 0 || job.verify {
        return Err(Error::Invalid("the bare loop reads and writes, and nothing else".to_owned()));
    }
    let flags = if direct { OFlag::O_DIRECT } else { OFlag::empty() };
    let file = File::options()
        .read(true)
        .write(job.mix.modifies())
        .custom_flags(flags.bits())
        .open(path)
        .map_err(Error::system("open the image"))?;
    let below = below.map(File::open).transpose().map_err(Error::system("open the image below"))?;
    let length = file.metadata().map_err(Error::system("find the length of the image"))?.len();
    let blocks = check::blocks(job, length, SECTOR)?;

    let generators = (0..job.queues).map(|index| Generator::new(job, index, &blocks));
    let generators = generators.collect();
    let loops = (0..job.queues).map(|index| Loop::new(job, index, &file, below.as_ref()));
    let mut loops = loops.collect::<Result<Vec<_>>>()?;
    let own = CpuClock::own();
    let clocks = Clocks { server: own, own };
    let (window, tally) = super::measure(job, clocks, &mut loops, generators)?;
    let pid = std::process::id() as i32;
    let server = Server { pid, resident: process::resident(pid)? };
    Ok(Report::new(job, server, &window, &tally, 0))
}

/// One queue's worth of requests.
#[derive(Debug)]
struct Loop<'a> {
    file: &'a File,
    below: Option<&'a File>,
    /// Of the same kind as a guest's, so that the kernel copies to and from the same kind of pages.
    memory: Arc<GuestMemory>,
    /// Addresses in `memory` of one block for each request in flight, at multiples of a page as
    /// O_DIRECT wants it.
    buffers: Vec<u64>,
    started: Vec<Instant>,
    idle: Vec<usize>,
    block_size: u64,
    /// Bytes that are read or written for a request, at a multiple of as many: a block, or what is copied.
    span: u32,
    tally: Tally,
}

impl<'a> Loop<'a> {
    fn new(job: &Job, index: u16, file: &'a File, below: Option<&'a File>) -> Result<Self> {
        let span = match below {
            Some(_) => job.stretch.unwrap_or(job.block_size),
            None => job.block_size,
        };
        let share = span.next_multiple_of(PAGE);
        let memory = GuestMemory::new(share * u64::from(job.depth))?;
        let mut arena = memory.arena();
        let mut scratch = vec![0; span as usize];
        let mut rng = Rng::new(job.seed, 1 << 32 | u64::from(index));
        let mut buffers = Vec::new();
        for _ in 0..job.depth {
            let buffer = arena.take(span, PAGE)?;
            rng.fill(&mut scratch);
            memory.write(buffer, &scratch)?;
            buffers.push(memory.user_address(buffer)?);
        }
        Ok(Self {
            file,
            below,
            memory: Arc::new(memory),
            started: vec![Instant::now(); buffers.len()],
            idle: (0..buffers.len()).collect(),
            buffers,
            block_size: job.block_size,
            span: span as u32,
            tally: Tally::default(),
        })
    }

    /// Starts requests until all buffers are in use. Returns whether there will be no more.
    fn fill<S: Source>(
        &mut self,
        ring: &mut IoUring,
        source: &mut S,
        progress: &Progress,
    ) -> Result<bool> {
        let phase = progress.phase();
        let now = Instant::now();
        while let Some(&slot) = self.idle.last() {
            let counted = self.tally.requests + self.in_flight() as u64;
            let enough = source.quota().is_some_and(|quota| counted >= quota);
            if phase == Phase::Stop || (phase == Phase::Measure && enough) {
                return Ok(true);
            }
            let Next::Do(op, block, _) = source.next(None) else { return Ok(true) };
            for entry in self.entries(slot, op, block) {
                // SAFETY: the entry's buffer is a span of `self.memory`, which stays mapped until the
                // last completion (see `run`), and is shared memory that Rust holds no reference to.
                // The slot was idle, so that no other request uses its buffer.
                unsafe { ring.submission().push(&entry) }
                    .map_err(|full| Error::system("queue a request")(io::Error::other(full)))?;
            }
            self.started[slot] = now;
            self.idle.pop();
        }
        Ok(false)
    }

    /// What a request takes: the last one completes it.
    fn entries(&self, slot: usize, op: Op, block: u64) -> impl Iterator<Item = squeue::Entry> {
        let fd = types::Fd(self.file.as_raw_fd());
        let span = u64::from(self.span);
        let at = block * self.block_size / span * span;
        let buffer = self.buffers[slot] as *mut u8;
        let read = |fd| opcode::Read::new(fd, buffer, self.span).offset(at).build();
        let below = self.below.filter(|_| op == Op::Write).map(|below| {
            let below = read(types::Fd(below.as_raw_fd()));
            below.flags(squeue::Flags::IO_LINK).user_data(COPY_READ)
        });
        let entry = match op {
            Op::Write => opcode::Write::new(fd, buffer, self.span).offset(at).build(),
            _ => read(fd),
        };
        below.into_iter().chain([entry.user_data(slot as u64)])
    }

    fn work<S: Source>(
        &mut self,
        ring: &mut IoUring,
        source: &mut S,
        progress: &Progress,
    ) -> Result<()> {
        loop {
            let ended = self.fill(ring, source, progress)?;
            if self.in_flight() == 0 && ended {
                return Ok(());
            }
            match ring.submit_and_wait(1) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                    return Err(Error::system("wait for requests")(e));
                }
                _ => self.collect(ring, progress),
            }
        }
    }

    fn collect(&mut self, ring: &mut IoUring, progress: &Progress) {
        let (phase, now) = (progress.phase(), Instant::now());
        for completion in ring.completion() {
            if completion.user_data() == COPY_READ {
                // If it has failed or is short, the write behind it does not happen, and says so.
                continue;
            }
            let slot = completion.user_data() as usize;
            self.idle.push(slot);
            if phase == Phase::Measure {
                let time: Duration = now.saturating_duration_since(self.started[slot]);
                self.tally.requests += 1;
                self.tally.errors += u64::from(completion.result() != self.span as i32);
                self.tally.latency.saturating_record(time.as_nanos() as u64);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.buffers.len() - self.idle.len()
    }
}

impl Driver for Loop<'_> {
    fn run<S: Source>(&mut self, source: &mut S, progress: &Progress) -> Result<Tally> {
        self.tally = Tally::default();
        let mut ring = set_up(2 * self.buffers.len() as u32)?;
        let worked = self.work(&mut ring, source, progress);
        if self.in_flight() > 0 {
            // An error on the way: the kernel may still use the buffers, so they are never unmapped.
            Box::leak(Box::new(Arc::clone(&self.memory)));
        }
        worked.map(|()| std::mem::take(&mut self.tally))
    }
}

const PAGE: u64 = 4096;
/// Names the first half of a copy.
const COPY_READ: u64 = u64::MAX;

/// The calling thread's ring, as the engine sets its own up.
fn set_up(entries: u32) -> Result<IoUring> {
    let mut modern = IoUring::builder();
    modern.setup_single_issuer().setup_defer_taskrun();
    modern
        .build(entries)
        // Kernels before 6.1 lack deferred task work; everything else works the same.
        .or_else(|_| IoUring::new(entries))
        .map_err(Error::system("set up an io_uring"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Limit;
    use crate::load::plan::{Access, Mix};

    #[test]
    fn requests_reach_the_file_and_are_counted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let write = Job {
            mix: Mix::only(Op::Write),
            access: Access::Scattered,
            limit: Limit::Requests(256),
            warmup: Duration::ZERO,
            queues: 2,
            ..Job::new("unused".into())
        };
        let report = run(&write, file.path(), None, false).unwrap();
        assert_eq!((report.requests, report.errors), (256, 0));
        let data = std::fs::read(file.path()).unwrap();
        assert_eq!(data.len(), 1 << 20);
        assert!(data.chunks(4096).all(|block| block.iter().any(|byte| *byte != 0)));
        let read = Job { mix: Mix::only(Op::Read), ..write.clone() };
        assert_eq!(run(&read, file.path(), None, false).unwrap().errors, 0);
        let discard = Job { mix: Mix::only(Op::Discard), ..write };
        assert!(matches!(run(&discard, file.path(), None, false), Err(Error::Invalid(_))));
    }

    #[test]
    fn stretches_are_copied_whole() {
        let [below, above] = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
        let data: Vec<u8> = (0..1_u32 << 20).map(|at| (at / 512) as u8).collect();
        std::fs::write(below.path(), &data).unwrap();
        above.as_file().set_len(1 << 20).unwrap();
        let copy = Job {
            mix: Mix::only(Op::Write),
            access: Access::Scattered,
            stretch: Some(64 << 10),
            limit: Limit::Requests(64),
            warmup: Duration::ZERO,
            ..Job::new("unused".into())
        };
        let report = run(&copy, above.path(), Some(below.path()), false).unwrap();
        assert_eq!(report.errors, 0);
        assert!(std::fs::read(above.path()).unwrap() == data);
        below.as_file().set_len(1).unwrap();
        let report = run(&copy, above.path(), Some(below.path()), false).unwrap();
        assert_eq!(report.errors, report.requests, "nothing to copy");
    }
}
