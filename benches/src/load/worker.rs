//! The thread of one queue: keeps it full, collects, checks, counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use smallvec::SmallVec;
use vm_memory::GuestAddress;

use super::Job;
use super::content::{Content, Record};
use super::plan::{Next, Op, Source};
use super::rng::Rng;
use crate::config::SECTOR;
use crate::descriptor::{DESCRIPTOR_LEN, Descriptor, link};
use crate::memory::{Arena, GuestMemory};
use crate::queue::{DriverQueue, Used, Wake};
use crate::request::{HEADER_LEN, Request, SEGMENT_LEN, STATUS_UNTOUCHED, Status};
use crate::ring::RingLayout;
use crate::{Error, Result};

/// Descriptors of a request: header, data or segment, status byte.
const CHAIN: u16 = 3;
type Chain = SmallVec<[Descriptor; CHAIN as usize]>;

/// What keeps requests in flight on a thread.
pub trait Driver: Send {
    /// Does what `source` says until it ends, its quota is reached, or the run stops.
    fn run<S: Source>(&mut self, source: &mut S, progress: &Progress) -> Result<Tally>;
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Load, uncounted.
    Warmup,
    /// Load, counted.
    Measure,
    /// Finish what is in flight.
    Stop,
}

/// The phase, set by one thread and followed by the workers.
#[derive(Debug, Default)]
pub struct Progress(AtomicU8);

impl Progress {
    /// Goes on to `phase`, and never back.
    pub fn enter(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Warmup,
            1 => Phase::Measure,
            _ => Phase::Stop,
        }
    }
}

/// Latencies above an hour, in nanoseconds, count as an hour.
const LONGEST: u64 = 3600 * 1_000_000_000;

/// What was counted.
#[derive(Debug)]
pub struct Tally {
    /// Completed requests of any status.
    pub requests: u64,
    /// Those that did not succeed.
    pub errors: u64,
    /// Blocks read and compared, in the warm-up too.
    pub checked: u64,
    /// Latencies of the completed requests in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are in order");
        Self { requests: 0, errors: 0, checked: 0, latency }
    }
}

impl Tally {
    /// Adds another queue's.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.checked += other.checked;
        self.latency += &other.latency;
    }
}

/// Guest memory that a worker's queue, slots and buffers take.
pub fn memory_needed(job: &Job, indirect: bool) -> u64 {
    // The data starts on a page.
    let slot = job.block_size.next_multiple_of(PAGE) + PAGE;
    let ring = RingLayout::bytes(queue_size(job, indirect));
    (ring + PAGE + slot * u64::from(job.depth)).next_multiple_of(PAGE)
}

const PAGE: u64 = 4096;

/// Room for header, segment, status byte and indirect table.
const SLOT_LEN: u64 = 128;
const _: () = assert!(64 + CHAIN as u64 * DESCRIPTOR_LEN <= SLOT_LEN);

fn queue_size(job: &Job, indirect: bool) -> u16 {
    let needed = u32::from(job.depth) * if indirect { 1 } else { u32::from(CHAIN) };
    // What a guest usually has, or more if that is too little.
    u16::try_from(needed.next_power_of_two().max(128)).unwrap_or(u16::MAX)
}

/// Place of one request in flight.
#[derive(Debug)]
struct Slot {
    header: GuestAddress,
    segment: GuestAddress,
    status: GuestAddress,
    table: GuestAddress,
    data: GuestAddress,
    op: Op,
    block: u64,
    /// What the block holds if the request succeeds.
    content: Content,
    started: Instant,
}

impl Slot {
    fn new(arena: &mut Arena, block_size: u64) -> Result<Self> {
        // One after the other on pages of their own, as buffers of a page cache would be.
        let data = arena.take(block_size, PAGE)?;
        let GuestAddress(place) = arena.take(SLOT_LEN, SLOT_LEN)?;
        Ok(Self {
            header: GuestAddress(place),
            segment: GuestAddress(place + 16),
            status: GuestAddress(place + 32),
            table: GuestAddress(place + 64),
            data,
            op: Op::Flush,
            block: 0,
            content: Content::Unknown,
            started: Instant::now(),
        })
    }
}

/// One queue under load.
#[derive(Debug)]
pub struct Worker<'a> {
    queue: DriverQueue,
    memory: Arc<GuestMemory>,
    record: Option<&'a Record>,
    indirect: bool,
    block_size: u32,
    timeout: Duration,
    slots: Vec<Slot>,
    idle: Vec<usize>,
    /// The slot of each chain in flight, by its head.
    slot_of: Vec<usize>,
    /// One block.
    scratch: Vec<u8>,
    tally: Tally,
}

impl<'a> Worker<'a> {
    /// Lays queue `index` out in `arena`, with random data in its buffers.
    pub fn new(
        job: &Job,
        index: u16,
        indirect: bool,
        memory: Arc<GuestMemory>,
        arena: &mut Arena,
        record: Option<&'a Record>,
    ) -> Result<Self> {
        let size = queue_size(job, indirect);
        let queue = DriverQueue::new(memory.clone(), arena, size)?;
        let mut scratch = vec![0; job.block_size as usize];
        let mut rng = Rng::new(job.seed, 1 << 32 | u64::from(index));
        let mut slots = Vec::new();
        for _ in 0..job.depth {
            let slot = Slot::new(arena, job.block_size)?;
            rng.fill(&mut scratch);
            memory.write(slot.data, &scratch)?;
            slots.push(slot);
        }
        Ok(Self {
            queue,
            memory,
            record,
            indirect,
            block_size: job.block_size as u32,
            timeout: job.timeout,
            slots,
            idle: (0..job.depth.into()).collect(),
            slot_of: vec![0; size.into()],
            scratch,
            tally: Tally::default(),
        })
    }

    /// The virtqueue, to be started.
    pub fn queue(&mut self) -> &mut DriverQueue {
        &mut self.queue
    }

    /// Starts requests until the queue is full. Returns whether there will be no more.
    fn fill<S: Source>(&mut self, source: &mut S, progress: &Progress) -> Result<bool> {
        let phase = progress.phase();
        let now = Instant::now();
        while let Some(&slot) = self.idle.last() {
            let counted = self.tally.requests + self.in_flight() as u64;
            let enough = source.quota().is_some_and(|quota| counted >= quota);
            if phase == Phase::Stop || (phase == Phase::Measure && enough) {
                return Ok(true);
            }
            match source.next(self.record) {
                Next::Do(op, block, content) => self.start(slot, op, block, content, now)?,
                Next::Busy => return Ok(false),
                Next::End => return Ok(true),
            }
            self.idle.pop();
        }
        Ok(false)
    }

    fn start(
        &mut self,
        slot: usize,
        op: Op,
        block: u64,
        content: Content,
        now: Instant,
    ) -> Result<()> {
        let after = match op {
            Op::Read | Op::Flush => content,
            Op::Discard => Content::Unknown,
            Op::WriteZeroes => Content::Zeroes,
            Op::Write => match self.record {
                Some(record) => {
                    let content = record.write_next(block, &mut self.scratch);
                    self.memory.write(self.slots[slot].data, &self.scratch)?;
                    content
                }
                None => Content::Unknown,
            },
        };
        let place = &mut self.slots[slot];
        (place.op, place.block, place.content, place.started) = (op, block, after, now);
        let chain = lay_out(&self.memory, place, self.block_size)?;
        let head = self.offer(&chain, slot)?;
        self.slot_of[usize::from(head)] = slot;
        Ok(())
    }

    fn offer(&mut self, chain: &[Descriptor], slot: usize) -> Result<u16> {
        if !self.indirect {
            return self.queue.offer(chain);
        }
        let place = self.slots[slot].table;
        let mut table = [0; CHAIN as usize * DESCRIPTOR_LEN as usize];
        for (entry, descriptor) in table.chunks_exact_mut(DESCRIPTOR_LEN as usize).zip(chain) {
            entry.copy_from_slice(&descriptor.encode());
        }
        self.memory.write(place, &table)?;
        self.queue.offer(&[Descriptor::indirect(place, chain.len() as u16)])
    }

    fn wait(&mut self) -> Result<()> {
        match self.queue.wait(self.timeout)? {
            Wake::Used => Ok(()),
            Wake::Hangup => Err(Error::Hangup),
            Wake::Timeout => Err(Error::Timeout(self.timeout)),
        }
    }

    fn collect(&mut self, progress: &Progress) -> Result<()> {
        let now = Instant::now();
        while let Some(used) = self.queue.collect()? {
            let slot = self.finish(used, progress.phase(), now)?;
            self.idle.push(slot);
        }
        Ok(())
    }

    fn finish(&mut self, used: Used, phase: Phase, now: Instant) -> Result<usize> {
        let index = self.slot_of[usize::from(used.head)];
        let slot = &self.slots[index];
        let mut status = [0];
        self.memory.read(slot.status, &mut status)?;
        let succeeded = Status::from(status[0]) == Status::Ok;
        if phase == Phase::Measure {
            self.tally.requests += 1;
            self.tally.errors += u64::from(!succeeded);
            let nanoseconds = now.saturating_duration_since(slot.started).as_nanos() as u64;
            self.tally.latency.saturating_record(nanoseconds);
        }
        if let Some(record) = self.record
            && slot.op != Op::Flush
        {
            if slot.op == Op::Read && succeeded {
                self.memory.read(slot.data, &mut self.scratch)?;
                record.check(slot.block, slot.content, &self.scratch)?;
                self.tally.checked += 1;
            }
            let keeps = succeeded || slot.op == Op::Read;
            record.release(slot.block, if keeps { slot.content } else { Content::Unknown });
        }
        Ok(index)
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.idle.len()
    }
}

impl Driver for Worker<'_> {
    fn run<S: Source>(&mut self, source: &mut S, progress: &Progress) -> Result<Tally> {
        self.tally = Tally::default();
        loop {
            let ended = self.fill(source, progress)?;
            self.queue.publish()?;
            if self.in_flight() > 0 {
                self.wait()?;
                self.collect(progress)?;
            } else if ended {
                return Ok(std::mem::take(&mut self.tally));
            } else {
                // Another queue holds all the blocks that were tried.
                std::thread::yield_now();
            }
        }
    }
}

/// Writes header and segment of a slot's request, and describes it: two or three descriptors.
fn lay_out(memory: &GuestMemory, slot: &Slot, block_size: u32) -> Result<Chain> {
    let sector = slot.block * (u64::from(block_size) / SECTOR);
    let sectors = block_size / SECTOR as u32;
    let request = match slot.op {
        Op::Read => Request::Read { sector, len: block_size },
        Op::Write => Request::Write { sector, data: &[] },
        Op::Discard => Request::Discard { sector, sectors },
        Op::WriteZeroes => Request::WriteZeroes { sector, sectors, unmap: true },
        Op::Flush => Request::Flush,
    };
    memory.write(slot.header, &request.header())?;
    memory.write(slot.status, &[STATUS_UNTOUCHED])?;
    let middle = match slot.op {
        Op::Read => Some(Descriptor::writable(slot.data, block_size)),
        Op::Write => Some(Descriptor::readable(slot.data, block_size)),
        Op::Flush => None,
        Op::Discard | Op::WriteZeroes => Some(Descriptor::readable(slot.segment, SEGMENT_LEN)),
    };
    if let Some(segment) = request.segment() {
        memory.write(slot.segment, &segment)?;
    }
    let mut chain = Chain::new();
    chain.push(Descriptor::readable(slot.header, HEADER_LEN));
    chain.extend(middle);
    chain.push(Descriptor::writable(slot.status, 1));
    link(&mut chain);
    Ok(chain)
}
