//! `blkcompare`: alternates two vhost-user-blk daemons on equal images and compares them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use benches::compare::case::Case;
use benches::compare::daemon::{Settings, Template};
use benches::compare::{Comparison, image};
use benches::size::{parse_seconds, parse_size};
use clap::{Parser, ValueEnum};

/// Compares our vhost-user-blk daemon with QEMU's on this machine.
///
/// Each round starts both daemons in turn on a fresh copy of the same image, in the page cache, and
/// puts them under the same loads. Prints medians over the rounds; only the ratios mean something on
/// a machine with other work. CPU times compare fairly at depth 32, where neither daemon idles:
/// with less to do, QEMU's polls. Exits with 0, 1 on failure, 2 on wrong usage, 3 when
/// --require-cpu-ratio is missed.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Our daemon [default: vhost-blk beside this program]
    #[arg(long, value_name = "PATH")]
    ours: Option<PathBuf>,
    /// Whole command line of our daemon instead, split at spaces, with {image} {socket} {format}
    /// {queues} {cache} (none, writeback) {direct} (on, off) {l2_cache} (bytes) filled in
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "ours")]
    ours_command: Option<String>,
    /// Whole command line of the other daemon, likewise [default: qemu-storage-daemon with an
    /// iothread, io_uring, and an L2 cache that covers the disk]
    #[arg(long, value_name = "TEMPLATE")]
    peer_command: Option<String>,
    /// Image to copy for each side; it is not changed [default: a new one with all blocks written]
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,
    /// Size of the new image, with suffix M, G; a multiple of 1M
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size, conflicts_with = "image")]
    size: u64,
    /// Format of the image
    #[arg(long, value_enum, default_value_t = Format::Qcow2)]
    format: Format,
    /// Bypass the page cache (O_DIRECT)
    #[arg(long)]
    direct: bool,
    /// A load, PATTERN:ACCESS:BLOCK:DEPTH or PATTERN:ACCESS:BLOCK:DEPTH:QUEUES, with PATTERN read,
    /// write, mixed (70 % reads), discard, write-zeroes or flush, and ACCESS random, sequential or
    /// scattered, with /STRETCH behind it as in blkload's --stretch. Repeatable. They run in this
    /// order on one copy of the image [default: read:random:4k:32 write:random:4k:32
    /// mixed:random:4k:32 read:sequential:128k:8]
    #[arg(long = "case", value_name = "CASE")]
    cases: Vec<Case>,
    /// Rounds
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds to measure each case in each round
    #[arg(long, value_name = "S", default_value = "3", value_parser = parse_seconds)]
    seconds: Duration,
    /// Seconds of load before measuring
    #[arg(long, value_name = "S", default_value = "1", value_parser = parse_seconds)]
    warmup: Duration,
    /// Directory for images and sockets; a subdirectory is made and removed
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    work_dir: PathBuf,
    /// Exit with 3 if our CPU time per request exceeds the peer's by this factor in any case
    #[arg(long, value_name = "X")]
    require_cpu_ratio: Option<f64>,
    /// Print the result as JSON, with every run in it
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Qcow2,
    Raw,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("blkcompare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let work_dir = tempfile::Builder::new()
        .prefix("blkcompare-")
        .tempdir_in(&args.work_dir)
        .with_context(|| args.work_dir.display().to_string())?;
    let comparison = prepare(args, work_dir.path().to_owned())?;
    let table = comparison.run(|line| eprintln!("{line}"))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    } else {
        println!("{table}");
    }
    let worst = table.worst_cpu_ratio();
    if let Some(required) = args.require_cpu_ratio
        && worst > required
    {
        eprintln!("blkcompare: CPU time per request is {worst:.2} of the peer's, over {required}");
        return Ok(ExitCode::from(3));
    }
    Ok(ExitCode::SUCCESS)
}

fn prepare(args: &Args, work_dir: PathBuf) -> Result<Comparison> {
    let cases = if args.cases.is_empty() { default_cases()? } else { args.cases.clone() };
    let mut settings = Settings {
        format: if args.format == Format::Raw { "raw" } else { "qcow2" }.to_owned(),
        direct: args.direct,
        queues: cases.iter().map(|case| case.queues).max().unwrap_or(1),
        l2_cache: 0,
        key: None,
    };
    let ours = match &args.ours_command {
        Some(command) => Template::from(command.as_str()),
        None => Template::vhost_blk(&our_daemon(args)?),
    };
    let peer = match &args.peer_command {
        Some(command) => Template::from(command.as_str()),
        None => Template::qemu_storage_daemon(),
    };
    let source = match &args.image {
        Some(image) => image.clone(),
        None => {
            ensure!(args.size.is_multiple_of(1 << 20), "--size: not a multiple of 1M");
            let source = work_dir.join("source.img");
            eprintln!("fill a new image of {} bytes", args.size);
            image::make_full(&source, args.size, &ours, &settings)?;
            source
        }
    };
    if args.format == Format::Qcow2 {
        settings.l2_cache = image::l2_cache(&source)?;
    }
    let (rounds, time, warmup) = (args.rounds, args.seconds, args.warmup);
    Ok(Comparison { ours, peer, source, settings, work_dir, cases, rounds, time, warmup })
}

fn our_daemon(args: &Args) -> Result<PathBuf> {
    if let Some(path) = &args.ours {
        return Ok(path.clone());
    }
    let path = std::env::current_exe()?.with_file_name("vhost-blk");
    ensure!(path.exists(), "{}: not there; build it, or give --ours PATH", path.display());
    Ok(path)
}

fn default_cases() -> Result<Vec<Case>> {
    ["read:random:4k:32", "write:random:4k:32", "mixed:random:4k:32", "read:sequential:128k:8"]
        .iter()
        .map(|text| text.parse().map_err(anyhow::Error::msg))
        .collect()
}
