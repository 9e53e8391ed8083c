//! The command line of `qcow convert`, checked.

use std::num::NonZero;
use std::path::PathBuf;

use qcow::engine::{Format, SnapshotChoice};

use super::bitmaps::Bitmaps;
use crate::cache::Cache;
use crate::creation_options;
use crate::failure::{Failure, Outcome};
use crate::image;
use crate::keyval;
use crate::size;
use crate::snapshot_choice;
use crate::unbuilt;

/// Zero detection: default and largest granularity, in bytes.
const GRANULARITY_DEFAULT: u64 = 4096;
const GRANULARITY_MAX: u64 = 16 << 20;
/// Parts in flight: default and most.
const PARALLEL_DEFAULT: usize = 8;
const PARALLEL_MAX: usize = 16;

/// Copy images into a new one, perhaps of another format
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Say nothing unless something is wrong
    #[arg(short, long)]
    quiet: bool,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// Format of the sources: qcow2 or raw; found out if not given
    #[arg(short = 'f', long, value_name = "FMT")]
    source_format: Option<String>,
    /// The sources are option strings (not supported yet)
    #[arg(long, alias = "image-opts")]
    source_image_opts: bool,
    /// Copy an internal snapshot instead of the current disk: its id or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    source_snapshot: Option<String>,
    /// Cache mode of the sources: writeback (default), none, directsync, writethrough or unsafe
    #[arg(short = 'T', long, value_name = "MODE")]
    source_cache: Option<String>,
    /// Format of the target: qcow2 or raw
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    target_format: String,
    /// The target is an option string (not supported yet)
    #[arg(long)]
    target_image_opts: bool,
    /// Options of the target's format, as name=value,name=value; '-o help' lists them
    #[arg(short = 'o', long, value_name = "OPTIONS")]
    target_options: Vec<String>,
    /// Compress the target's clusters; qcow2 only
    #[arg(short, long)]
    compress: bool,
    /// How hard to compress: 1 (fast) to 9 with zlib, to 22 with zstd; default 6, or 3 with zstd. Needs -c
    #[arg(long, value_name = "N")]
    level: Option<i32>,
    /// Threads that compress; default as many as there are cores
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Cache mode of the target: unsafe (default), writeback, none, directsync or writethrough. With unsafe, the target
    /// is not flushed: a crash of the host soon after may still lose it
    #[arg(short = 't', long, value_name = "MODE")]
    target_cache: Option<String>,
    /// Stack the target on this image, and copy only what the source itself holds
    #[arg(short = 'B', long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the backing image; required with -B
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Write into the existing target, which must be large enough, instead of making it
    #[arg(short, long)]
    no_create: bool,
    /// The target of -n reads as zeros already
    #[arg(long)]
    target_is_zero: bool,
    /// Zeros of this length (in bytes, with an optional suffix) are not stored; default 4k; 0 stores everything
    #[arg(short = 'S', long, value_name = "SIZE")]
    sparse_size: Option<String>,
    /// Copy the persistent bitmaps of the source, too
    #[arg(long)]
    bitmaps: bool,
    /// With --bitmaps, leave broken ones out
    #[arg(long)]
    skip_broken_bitmaps: bool,
    /// Read the sources even while other programs write them
    #[arg(short = 'U', long)]
    pub(super) force_share: bool,
    /// Bytes per second to write at most (not supported yet)
    #[arg(short, long, value_name = "RATE")]
    rate: Option<String>,
    /// Parts of 2 MiB in flight at the same time, 1 to 16; default 8
    #[arg(short = 'm', long, value_name = "N")]
    parallel: Option<String>,
    /// Let the host copy (not supported yet)
    #[arg(short = 'C', long)]
    copy_range_offloading: bool,
    /// Go on after read errors (not supported yet)
    #[arg(long)]
    salvage: bool,
    /// Write the parts in whatever order they are read
    #[arg(short = 'W', long)]
    oob_writes: bool,
    /// Object definition, such as a secret (not supported yet)
    #[arg(long, value_name = "DEFINITION")]
    object: Vec<String>,
    /// Read the target back and compare it with the sources
    #[arg(long)]
    verify: bool,
    /// Keep the target of a failed conversion
    #[arg(long)]
    pub(super) keep_partial: bool,
    /// The sources, whose disks follow each other in the target, and the target
    #[arg(value_name = "SOURCE... TARGET")]
    files: Vec<PathBuf>,
}

/// A conversion whose arguments make sense.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) sources: Vec<PathBuf>,
    pub(super) target: PathBuf,
    pub(super) source_format: Option<String>,
    pub(super) source_cache: Cache,
    pub(super) snapshot: Option<SnapshotChoice>,
    pub(super) format: Format,
    pub(super) options: Vec<String>,
    pub(super) backing: Option<String>,
    pub(super) backing_format: Option<String>,
    pub(super) target_cache: Cache,
    /// Make the target first.
    pub(super) create: bool,
    pub(super) target_is_zero: bool,
    /// Bytes of zeros that are worth leaving out; 0 leaves nothing out.
    pub(super) granularity: u64,
    /// Parts in flight.
    pub(super) parallel: usize,
    pub(super) in_order: bool,
    pub(super) progress: bool,
    pub(super) verify: bool,
    pub(super) bitmaps: Bitmaps,
    /// How the target's clusters are compressed, if they are.
    pub(super) compression: Option<Compression>,
}

/// How to compress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compression {
    /// What to spend on it; `None` for what is usual.
    pub(super) level: Option<i32>,
    /// Threads.
    pub(super) threads: usize,
}

impl Args {
    /// The job that the arguments describe; `None` if they ask for help, which has been given.
    pub(super) fn job(&self) -> Outcome<Option<Job>> {
        for list in &self.target_options {
            keyval::check_list(list)?;
        }
        if keyval::asks_for_help(&self.target_options) {
            creation_options::help(
                image::parse_new_format(&self.target_format)?,
                self.files.len() > 1,
            );
            return Ok(None);
        }
        let snapshot = self.source_snapshot.as_deref().map(snapshot_choice::parse).transpose()?;
        let granularity = self.granularity()?;
        let parallel = self.parallel()?;
        self.check_combinations()?;
        self.refuse_unbuilt()?;
        let Some((target, sources)) = self.files.split_last().filter(|(_, s)| !s.is_empty()) else {
            return Err(Failure::new("Must specify image file name"));
        };
        if snapshot.is_some() && sources.len() > 1 {
            return Err(Failure::new("No support for concatenating multiple snapshot"));
        }
        let source_cache =
            Cache::parse_option(self.source_cache.as_deref(), "source cache", Cache::WRITEBACK)?;
        let target_cache =
            Cache::parse_option(self.target_cache.as_deref(), "cache", Cache::UNSAFE)?;
        let format = image::parse_new_format(&self.target_format)?;
        if format == Format::Raw && self.compress {
            return Err(Failure::new("Compression not supported for this file format"));
        }
        if format == Format::Raw && self.backing.is_some() {
            return Err(Failure::new("Backing file not supported for file format 'raw'"));
        }
        Ok(Some(Job {
            sources: sources.to_vec(),
            target: target.clone(),
            source_format: self.source_format.clone(),
            source_cache,
            snapshot,
            format,
            options: self.target_options.clone(),
            backing: self.backing.clone(),
            backing_format: self.backing_format.clone(),
            target_cache,
            create: !self.no_create,
            target_is_zero: self.target_is_zero,
            granularity,
            parallel,
            in_order: !self.oob_writes,
            compression: self.compression(sources.len())?,
            progress: self.progress && !self.quiet,
            verify: self.verify,
            bitmaps: match (self.bitmaps, self.skip_broken_bitmaps) {
                (false, _) => Bitmaps::Leave,
                (true, false) => Bitmaps::All,
                (true, true) => Bitmaps::Sound,
            },
        }))
    }

    fn granularity(&self) -> Outcome<u64> {
        let Some(text) = &self.sparse_size else { return Ok(GRANULARITY_DEFAULT) };
        let size = size::parse(text).map_err(|_| {
            let message = format!("Invalid buffer size for sparse output specified: '{text}'.");
            Failure::new(message)
        })?;
        if size > GRANULARITY_MAX || !size.is_multiple_of(512) {
            return Err(Failure::new(format!(
                "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to \
                 {GRANULARITY_MAX}. Select 0 to disable sparse detection (fully allocates output)."
            )));
        }
        Ok(size)
    }

    fn parallel(&self) -> Outcome<usize> {
        let Some(text) = &self.parallel else { return Ok(PARALLEL_DEFAULT) };
        let count: i64 = text.parse().map_err(|_| {
            Failure::new(format!("Invalid number of coroutines specified: '{text}'."))
        })?;
        let count = usize::try_from(count).ok().filter(|count| (1..=PARALLEL_MAX).contains(count));
        count.ok_or_else(|| {
            Failure::new(format!(
                "Invalid number of coroutines specified. Must be between 1 and {PARALLEL_MAX}."
            ))
        })
    }

    fn compression(&self, sources: usize) -> Outcome<Option<Compression>> {
        if !self.compress {
            return match self.level.is_some() || self.threads.is_some() {
                true => Err(Failure::new("--level and --threads go with -c")),
                false => Ok(None),
            };
        }
        unbuilt::refuse_option(sources > 1, "-c with several sources")?;
        unbuilt::refuse_option(self.backing.is_some(), "-c with -B")?;
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = self.threads.map_or_else(cores, |threads| threads.clamp(1, PARALLEL_MAX));
        Ok(Some(Compression { level: self.level, threads }))
    }

    fn check_combinations(&self) -> Outcome {
        let rules = [
            (
                self.copy_range_offloading && self.compress,
                "Cannot enable copy offloading when -c is used",
            ),
            (
                self.copy_range_offloading && self.sparse_size.is_some(),
                "Cannot enable copy offloading when -S is used",
            ),
            (self.target_is_zero && !self.no_create, "--target-is-zero requires use of -n flag"),
            (
                self.skip_broken_bitmaps && !self.bitmaps,
                "Use of --skip-broken-bitmaps requires --bitmaps",
            ),
            (
                self.no_create && !self.target_options.is_empty(),
                "-o has no effect when skipping image creation",
            ),
        ];
        match rules.into_iter().find(|(broken, _)| *broken) {
            Some((_, message)) => Err(Failure::new(message)),
            None => Ok(()),
        }
    }

    fn refuse_unbuilt(&self) -> Outcome {
        let given = [
            (self.source_image_opts, "--image-opts"),
            (self.target_image_opts, "--target-image-opts"),
            (self.rate.is_some(), "-r"),
            (self.copy_range_offloading, "-C"),
            (self.salvage, "--salvage"),
            (!self.object.is_empty(), "--object"),
        ];
        given.into_iter().try_for_each(|(given, option)| unbuilt::refuse_option(given, option))
    }
}
