//! `blkload`: puts a vhost-user-blk daemon under load, measures it, and checks its data.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use benches::Error;
use benches::frontend::Features;
use benches::load::plan::{Access, Mix, Op};
use benches::load::{self, Job, Limit};
use benches::size::{parse_seconds, parse_size};
use clap::{Parser, ValueEnum};

/// Puts a vhost-user-blk daemon under load without a virtual machine, and measures it.
///
/// Plays the driver: shared guest memory, split virtqueues, one thread per queue. Patterns other
/// than read OVERWRITE the disk. Exits with 0 if all requests succeeded (and, with --verify, all
/// data was right), 1 if not, 2 on wrong usage.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The daemon's UNIX socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Queues, each driven by a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u16,
    /// Requests in flight on each queue
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: u16,
    /// Bytes per request, with suffix k, M; a multiple of the disk's logical block size
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = parse_size)]
    block_size: u64,
    /// Kind of requests; `mixed` goes by the --*-percent options
    #[arg(long, value_enum, default_value_t = Pattern::Read)]
    pattern: Pattern,
    /// Mixed: reads, in percent; what the three shares leave are writes
    #[arg(long, value_name = "P", default_value_t = 70)]
    read_percent: u8,
    /// Mixed: discards, in percent
    #[arg(long, value_name = "P", default_value_t = 0)]
    discard_percent: u8,
    /// Mixed: write-zeroes, in percent
    #[arg(long, value_name = "P", default_value_t = 0)]
    write_zeroes_percent: u8,
    /// Order of the blocks; sequential and scattered give each queue a part of the range, over and
    /// over; scattered is a random block of each stretch once, in random order
    #[arg(long, value_enum, default_value_t = Order::Random)]
    access: Order,
    /// Bytes from one place that may be used to the next, a multiple of the block size [default: the
    /// block size]. Random and sequential access use the first block of each stretch
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    stretch: Option<u64>,
    /// First byte of the disk to use, with suffix k, M, G; a multiple of the block size
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    offset: u64,
    /// Bytes of the disk to use, with suffix k, M, G [default: to the end]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    range: Option<u64>,
    /// Flush after every N writes of a queue; 0: never
    #[arg(long, value_name = "N", default_value_t = 0)]
    flush_every: u64,
    /// Seed of places, order and data: the same seed repeats the run
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Seconds to measure [default: 5]
    #[arg(long, value_name = "S", conflicts_with = "requests", value_parser = parse_seconds)]
    seconds: Option<Duration>,
    /// Measure until N requests, flushes included, are done on all queues together, instead of a time
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// Seconds of load before measuring [default: 1, with --requests 0]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    warmup: Option<Duration>,
    /// Write data that names its place and generation, check all that is read, and at the end read
    /// back all that was written. Wrong data ends the run with its byte offset and exit code 1
    #[arg(long)]
    verify: bool,
    /// With --verify: what this run has not written itself, an earlier run with the same seed must
    /// have
    #[arg(long, requires = "verify")]
    expect_written: bool,
    /// Process whose CPU time to count [default: the one that listens on the socket]
    #[arg(long, value_name = "PID")]
    server_pid: Option<i32>,
    /// Do not negotiate VIRTIO_RING_F_EVENT_IDX
    #[arg(long)]
    no_event_idx: bool,

    /// Have the daemon keep the record of requests in flight, as monitors do.
    #[arg(long)]
    inflight: bool,
    /// Do not negotiate VIRTIO_RING_F_INDIRECT_DESC
    #[arg(long)]
    no_indirect: bool,
    /// Seconds without any completion after which the daemon counts as hung
    #[arg(long, value_name = "S", default_value = "30", value_parser = parse_seconds)]
    timeout: Duration,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pattern {
    Read,
    Write,
    Mixed,
    Discard,
    WriteZeroes,
    Flush,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    Random,
    Sequential,
    Scattered,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blkload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let socket = args.socket.display();
    let report = load::run(&job(args)?).map_err(|error| match error {
        Error::Connect { .. } => anyhow!("{error}"),
        other => anyhow!("{socket}: {other}"),
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    if report.errors > 0 {
        bail!("{socket}: {} requests failed", report.errors);
    }
    Ok(())
}

fn job(args: &Args) -> anyhow::Result<Job> {
    let limit = match args.requests {
        Some(requests) => Limit::Requests(requests),
        None => Limit::Time(args.seconds.unwrap_or(Duration::from_secs(5))),
    };
    let warmup = u64::from(args.requests.is_none());
    Ok(Job {
        socket: args.socket.clone(),
        queues: args.queues,
        depth: args.depth,
        block_size: args.block_size,
        mix: mix(args)?,
        access: match args.access {
            Order::Random => Access::Random,
            Order::Sequential => Access::Sequential,
            Order::Scattered => Access::Scattered,
        },
        stretch: args.stretch,
        offset: args.offset,
        range: args.range,
        flush_every: args.flush_every,
        seed: args.seed,
        limit,
        warmup: args.warmup.unwrap_or(Duration::from_secs(warmup)),
        verify: args.verify,
        expect_written: args.expect_written,
        server_pid: args.server_pid,
        features: Features {
            event_idx: !args.no_event_idx,
            indirect: !args.no_indirect,
            inflight: args.inflight,
        },
        timeout: args.timeout,
    })
}

fn mix(args: &Args) -> anyhow::Result<Mix> {
    Ok(match args.pattern {
        Pattern::Read => Mix::only(Op::Read),
        Pattern::Write => Mix::only(Op::Write),
        Pattern::Discard => Mix::only(Op::Discard),
        Pattern::WriteZeroes => Mix::only(Op::WriteZeroes),
        Pattern::Flush => Mix::only(Op::Flush),
        Pattern::Mixed => {
            Mix::with_writes(args.read_percent, args.discard_percent, args.write_zeroes_percent)
                .context(
                    "--read-percent, --discard-percent and --write-zeroes-percent exceed 100",
                )?
        }
    })
}
