//! The threads: random writes and reads of the blocks each one owns, and the final comparison.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use anyhow::{Context, anyhow};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::progress::Progress;
use crate::stamp::{BLOCK_LEN, Block, Noise, Stamp};

/// Requests of one thread between two flushes.
const FLUSH_INTERVAL: u64 = 128;

/// One thread's part of the work.
#[derive(Debug)]
pub struct Share {
    /// Number of the thread; it owns the blocks `thread`, `thread + stride`, ...
    pub thread: u64,
    /// The CPU it is pinned to, and with it the queue.
    pub cpu: usize,
    /// How many blocks it owns.
    pub blocks: u64,
    /// How many random requests it makes.
    pub requests: u64,
}

/// What all threads have in common. Neighbouring blocks belong to different threads, so that they
/// meet in the same clusters.
#[derive(Debug)]
pub struct Load<'a> {
    /// The device, opened with `O_DIRECT`.
    pub device: &'a File,
    /// Seed of the content and of the choice of blocks.
    pub seed: u64,
    /// Distance between two blocks of one thread: the number of threads.
    pub stride: u64,
    /// Is told each request that is done.
    pub progress: &'a Progress,
}

/// What was done, and what every block must hold now.
#[derive(Debug, Default)]
pub struct Written {
    /// Generation of each block, for each thread in order.
    pub generations: Vec<Vec<u64>>,
    /// Blocks written.
    pub writes: u64,
    /// Blocks read and compared on the way.
    pub reads: u64,
    /// Flushes sent.
    pub flushes: u64,
}

impl Load<'_> {
    /// Runs all shares at once and returns what the device must hold afterwards.
    ///
    /// # Errors
    /// The first failed request, or block that read back wrong.
    pub fn write_randomly(&self, shares: &[Share]) -> anyhow::Result<Written> {
        let parts = on_threads(shares, |share| Worker::new(self, share).run())?;
        let mut all = Written::default();
        for part in parts {
            all.generations.extend(part.generations);
            all.writes += part.writes;
            all.reads += part.reads;
            all.flushes += part.flushes;
        }
        Ok(all)
    }

    /// Reads every block back, each by the thread after the one that owns it.
    ///
    /// # Errors
    /// The first failed read, or block that differs.
    pub fn verify_all(&self, shares: &[Share], generations: &[Vec<u64>]) -> anyhow::Result<()> {
        on_threads(shares, |share| {
            let owner = (share.thread as usize + 1) % shares.len();
            let mut reader = Reader::new(self.device);
            for (index, &generation) in (0..).zip(&generations[owner]) {
                reader.check(self.stamp(owner as u64, index, generation))?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn stamp(&self, thread: u64, index: u64, generation: u64) -> Stamp {
        Stamp { seed: self.seed, block: index * self.stride + thread, generation }
    }
}

/// Runs `work` for each share on a thread pinned to its CPU.
fn on_threads<T: Send>(
    shares: &[Share],
    work: impl Fn(&Share) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let pinned = |share: &Share| {
        pin(share.cpu)?;
        work(share)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = shares.iter().map(|share| scope.spawn(|| pinned(share))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}

fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("pinning a thread to CPU {cpu}"))
}

/// One thread of the random phase.
struct Worker<'a> {
    load: &'a Load<'a>,
    share: &'a Share,
    noise: Noise,
    reader: Reader<'a>,
    generations: Vec<u64>,
    done: Written,
}

impl<'a> Worker<'a> {
    fn new(load: &'a Load<'a>, share: &'a Share) -> Self {
        Self {
            load,
            share,
            noise: Noise(load.seed ^ share.thread.rotate_left(48)),
            reader: Reader::new(load.device),
            generations: vec![0; share.blocks as usize],
            done: Written::default(),
        }
    }

    fn run(mut self) -> anyhow::Result<Written> {
        for request in 1..=self.share.requests {
            let index = self.noise.next() % self.share.blocks;
            if self.noise.next().is_multiple_of(4) {
                self.read(index)?;
            } else {
                self.write(index)?;
            }
            if request.is_multiple_of(FLUSH_INTERVAL) {
                self.load.device.sync_data().context("flush")?;
                self.done.flushes += 1;
            }
            self.load.progress.count()?;
        }
        self.done.generations = vec![self.generations];
        Ok(self.done)
    }

    fn read(&mut self, index: u64) -> anyhow::Result<()> {
        let generation = self.generations[index as usize];
        self.reader.check(self.load.stamp(self.share.thread, index, generation))?;
        self.done.reads += 1;
        Ok(())
    }

    fn write(&mut self, index: u64) -> anyhow::Result<()> {
        let generation = self.generations[index as usize] + 1;
        let stamp = self.load.stamp(self.share.thread, index, generation);
        stamp.fill(&mut self.reader.block);
        let offset = stamp.block * BLOCK_LEN as u64;
        self.load
            .device
            .write_all_at(&self.reader.block.0, offset)
            .with_context(|| format!("writing block {} (offset {offset})", stamp.block))?;
        self.generations[index as usize] = generation;
        self.done.writes += 1;
        Ok(())
    }
}

/// Reads blocks and compares them.
struct Reader<'a> {
    device: &'a File,
    block: Box<Block>,
    scratch: Box<Block>,
}

impl<'a> Reader<'a> {
    fn new(device: &'a File) -> Self {
        Self { device, block: Block::zeroed(), scratch: Block::zeroed() }
    }

    fn check(&mut self, expected: Stamp) -> anyhow::Result<()> {
        let offset = expected.block * BLOCK_LEN as u64;
        self.device
            .read_exact_at(&mut self.block.0, offset)
            .with_context(|| format!("reading block {} (offset {offset})", expected.block))?;
        expected.check(&self.block, &mut self.scratch)?;
        Ok(())
    }
}
