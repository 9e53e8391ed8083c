//! `qcow compact`: gives the space that an image does not use back to the host.

use std::path::{Path, PathBuf};

use qcow::Error;
use qcow::crypt::Passphrase;
use qcow::disk::uring::{UringDisk, block_on};
use qcow::engine::check::Crew;
use qcow::engine::compact::{Compaction, Step, compact};
use serde::Serialize;

use crate::arguments::{
    CacheArgs, ImageArgs, OutputArgs, OutputFormat, TellingArgs, ThreadsArgs, one_file,
};
use crate::failure::{Failure, Outcome};
use crate::image::Opening;
use crate::output::{self, say};
use crate::progress::Progress;
use crate::size;

const COMMAND: &str = "compact";

/// Give unused space of an image that is not in use back to the host: move clusters from the end of the file into free ones
/// further down, and cut the file off
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    telling: TellingArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    threads: ThreadsArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The image to compact
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let output = args.output.format(COMMAND)?;
    let path = one_file(COMMAND, &args.files)?;
    let cache = args.cache.cache()?;
    let opening = Opening { writable: true, cache, ..args.image.opening() };
    let other_format = || Failure::new("This image format cannot be compacted");
    let disk = opening.open_qcow2_file(path)?.ok_or_else(other_format)?;
    let key = opening.key(path)?;
    let shown = args.telling.shows_progress() && output == OutputFormat::Human;
    let compaction = carry_out(&disk, path, key.as_deref(), args.threads.crew(), shown)?;
    match output {
        _ if args.telling.quiet => {}
        OutputFormat::Human => tell(&compaction),
        OutputFormat::Json => output::json(&JsonReport::of(path, &compaction)),
    }
    Ok(())
}

fn carry_out(
    disk: &UringDisk,
    path: &Path,
    key: Option<&Passphrase>,
    crew: Crew,
    shown: bool,
) -> Outcome<Compaction> {
    let mut progress: Option<Progress> = None;
    let mut step = |Step { copied, total }| {
        progress.get_or_insert_with(|| Progress::new(shown, total)).advance(copied);
    };
    let compacted = block_on(compact(crew, disk, path, key, &mut step));
    let compaction = compacted.map_err(|e: Error| Failure::new(e.to_string()))?;
    progress.unwrap_or_else(|| Progress::new(shown, 0)).finish();
    Ok(compaction)
}

fn tell(Compaction { clusters_moved, before, after }: &Compaction) {
    say!("{clusters_moved} clusters moved");
    say!("file length: {} -> {}", size::human(before.len), size::human(after.len));
    say!("disk size: {} -> {}", size::human(before.allocated), size::human(after.allocated));
}

/// What is told as JSON.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct JsonReport {
    filename: String,
    format: &'static str,
    clusters_moved: u64,
    file_length_before: u64,
    file_length: u64,
    actual_size_before: u64,
    actual_size: u64,
}

impl JsonReport {
    fn of(path: &Path, Compaction { clusters_moved, before, after }: &Compaction) -> Self {
        Self {
            filename: path.to_string_lossy().into_owned(),
            format: "qcow2",
            clusters_moved: *clusters_moved,
            file_length_before: before.len,
            file_length: after.len,
            actual_size_before: before.allocated,
            actual_size: after.allocated,
        }
    }
}
