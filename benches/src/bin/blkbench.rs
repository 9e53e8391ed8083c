//! `blkbench`: our daemon against QEMU's and against the floor, with targets.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use benches::compare::daemon::Template;
use benches::size::parse_seconds;
use benches::suite::scenario;
use benches::suite::{Programs, Suite};
use clap::Parser;

/// Measures our vhost-user-blk daemon against qemu-storage-daemon, against itself on raw images, and
/// against a bare io_uring loop, and holds the ratios against their targets.
///
/// Every scenario is measured in rounds in which each side has a turn. Wants a quiet machine: only
/// ratios mean something, and those only where nobody else takes the CPUs or the disk. Needs about
/// 8 GiB in --work-dir, and for the defaults about half an hour. A missed target is not a failure.
/// Exits with 0, 1 if a scenario could not be finished, 2 on wrong usage.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Our daemon [default: vhost-blk beside this program]
    #[arg(long, value_name = "PATH")]
    ours: Option<PathBuf>,
    /// Rounds of each scenario
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds to measure each side in each round
    #[arg(long, value_name = "S", default_value = "2", value_parser = parse_seconds)]
    seconds: Duration,
    /// Seconds of load before measuring
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = parse_seconds)]
    warmup: Duration,
    /// Scenarios, by the names of --list [default: all]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// List the scenarios and exit
    #[arg(long)]
    list: bool,
    /// Directory for images and sockets; what is made in it is removed
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    work_dir: PathBuf,
    /// Write results.json, README.md, throughput.svg and cpu.svg into DIR
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the results as JSON, with every round in them
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for scenario in scenario::ALL {
            println!("{:20} {}", scenario.name, scenario.title);
        }
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("blkbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let scenarios = match scenario::select(&args.only) {
        Ok(scenarios) => scenarios,
        Err(error) => {
            eprintln!("blkbench: --only: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let work_dir = tempfile::Builder::new()
        .prefix("blkbench-")
        .tempdir_in(&args.work_dir)
        .with_context(|| args.work_dir.display().to_string())?;
    let ours = Template::vhost_blk(&our_daemon(args)?);
    let suite = Suite {
        programs: Programs { ours, peer: Template::qemu_storage_daemon() },
        scenarios,
        rounds: args.rounds,
        time: args.seconds,
        warmup: args.warmup,
        work_dir: work_dir.path().to_owned(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
    };
    let results = suite.run(|line| eprintln!("{line}"));
    if let Some(dir) = &args.out {
        results.write(dir)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        println!("{results}");
    }
    Ok(if results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn our_daemon(args: &Args) -> Result<PathBuf> {
    if let Some(path) = &args.ours {
        return Ok(path.clone());
    }
    let path = std::env::current_exe()?.with_file_name("vhost-blk");
    ensure!(path.exists(), "{}: not there; build it, or give --ours PATH", path.display());
    Ok(path)
}
