//! A verifying random load on a block device, for the guest of the test beds.
//!
//! Several threads per CPU, each pinned, write and read stamped 4 KiB blocks with `O_DIRECT`, so
//! that every queue of a multi-queue disk holds several requests at once. Afterwards every block
//! of the region is read back by a thread that did not write it. The region must read as zeroes at
//! the start. Exit 0 and `VERIFY-OK ...`, or exit 1 and the first wrong block.

mod load;
mod progress;
mod stamp;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use nix::fcntl::OFlag;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use load::{Load, Share};
use progress::Progress;
use stamp::BLOCK_LEN;

/// Writes stamped blocks at random, flushes, reads everything back and compares.
#[derive(Debug, Parser)]
struct Args {
    /// Block device (or file) to load; the region used must read as zeroes.
    device: PathBuf,
    /// Bytes at the start of the device to use; a multiple of 4096.
    #[arg(long, default_value_t = 64 << 20)]
    length: u64,
    /// Random requests in all, a quarter of them reads.
    #[arg(long, default_value_t = 20_000)]
    requests: u64,
    /// Requests outstanding on each CPU.
    #[arg(long, default_value_t = 4)]
    threads_per_cpu: usize,
    /// Repeats the same choice of blocks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Append `PART k` to this file (a console) when k of --parts parts of the random requests are done.
    #[arg(long, value_name = "FILE")]
    tell: Option<PathBuf>,
    /// Into how many parts --tell divides the random requests.
    #[arg(long, default_value_t = 10)]
    parts: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("verifier: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let device = open_direct(&args.device)?;
    let shares = shares(args)?;
    let total = shares.iter().map(|share| share.requests).sum();
    let progress = Progress::new(args.tell.as_deref(), total, args.parts)?;
    let load =
        Load { device: &device, seed: args.seed, stride: shares.len() as u64, progress: &progress };
    let written = load.write_randomly(&shares)?;
    device.sync_data().context("final flush")?;
    load.verify_all(&shares, &written.generations)?;
    println!(
        "VERIFY-OK writes={} reads={} flushes={} threads={} seed={} seconds={:.1}",
        written.writes,
        written.reads,
        written.flushes,
        shares.len(),
        args.seed,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn open_direct(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .with_context(|| path.display().to_string())
}

/// Splits the region and the requests among the threads of all CPUs.
fn shares(args: &Args) -> anyhow::Result<Vec<Share>> {
    let cpus = usable_cpus()?;
    let threads = cpus.len() * args.threads_per_cpu;
    let blocks = args.length / BLOCK_LEN as u64;
    ensure!(args.length.is_multiple_of(BLOCK_LEN as u64), "--length must be a multiple of 4096");
    ensure!(threads > 0, "--threads-per-cpu must be at least 1");
    ensure!(blocks >= threads as u64, "--length must hold a block for each of {threads} threads");
    let share = |thread: usize| Share {
        thread: thread as u64,
        cpu: cpus[thread % cpus.len()],
        blocks: (blocks - thread as u64).div_ceil(threads as u64),
        requests: args.requests / threads as u64,
    };
    Ok((0..threads).map(share).collect())
}

fn usable_cpus() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("reading the CPU affinity")?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}
