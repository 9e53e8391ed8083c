//! The command line of `qcow convert`, checked.

use std::num::NonZero;
use std::path::PathBuf;

use qcow::engine::SnapshotChoice;

use super::bitmaps::Bitmaps;
use super::salvage::Salvage;
use crate::arguments::TellingArgs;
use crate::bounded::{self, SIZE_MAX};
use crate::cache::Cache;
use crate::creation_options;
use crate::failure::{Failure, Outcome};
use crate::image;
use crate::keyval;
use crate::objects;
use crate::rate;
use crate::snapshot_choice;

/// Zero detection: default and largest granularity, in bytes.
const GRANULARITY_DEFAULT: u64 = 4096;
const GRANULARITY_MAX: u64 = 16 << 20;
/// Parts in flight: default and most.
const PARALLEL_DEFAULT: usize = 8;
const PARALLEL_MAX: usize = 16;

/// Copy images into a new one, perhaps of another format
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    telling: TellingArgs,
    /// Format of the sources: qcow2, raw or luks; found out if not given
    #[arg(short = 'f', long, value_name = "FMT")]
    source_format: Option<String>,
    /// The sources are option strings, such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long, alias = "image-opts")]
    source_image_opts: bool,
    /// Copy an internal snapshot instead of the current disk: its id or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT", value_parser = snapshot_choice::parse)]
    source_snapshot: Option<SnapshotChoice>,
    /// Cache mode of the sources: writeback (default), none, directsync, writethrough or unsafe
    #[arg(short = 'T', long, value_name = "MODE")]
    source_cache: Option<String>,
    /// Format of the target: qcow2, luks or raw (default)
    #[arg(short = 'O', long, value_name = "FMT")]
    target_format: Option<String>,
    /// The target is an option string, such as driver=qcow2,file.filename=disk.qcow2; needs -n
    #[arg(long)]
    target_image_opts: bool,
    /// Options of the target's format, as name=value,name=value; '-o help' lists them
    #[arg(short = 'o', long, value_name = "OPTIONS", value_parser = keyval::list)]
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
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = granularity)]
    sparse_size: Option<u64>,
    /// Copy the persistent bitmaps of the source, too
    #[arg(long)]
    bitmaps: bool,
    /// With --bitmaps, leave broken ones out
    #[arg(long)]
    skip_broken_bitmaps: bool,
    /// Copy the internal snapshots of the source, too: from qcow2 to a new qcow2 image
    #[arg(long)]
    snapshots: bool,
    /// Read the sources even while other programs write them
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Write at most this many bytes a second, with an optional suffix k, M, G, T, P or E
    #[arg(short, long, value_name = "BYTES", value_parser = rate::parse)]
    rate: Option<u64>,
    /// Parts of 2 MiB in flight at the same time, 1 to 16; default 8
    #[arg(short = 'm', long, value_name = "N", value_parser = parallel)]
    parallel: Option<usize>,
    /// Let the host copy from file to file where it can: both raw. Not with -c, -S or --salvage
    #[arg(short = 'C', long)]
    copy_range_offloading: bool,
    /// Write zeros where the sources cannot be read, and tell which sectors these are
    #[arg(long)]
    salvage: bool,
    /// Write the parts in whatever order they are read
    #[arg(short = 'W', long)]
    oob_writes: bool,
    /// Definition of a secret: secret,id=ID,file=FILE[,format=raw|base64]. All of FILE is the passphrase, a line feed at its end too
    #[arg(long, value_name = "DEFINITION", value_parser = objects::checked)]
    object: Vec<String>,
    /// Read the target back and compare it with the sources
    #[arg(long)]
    verify: bool,
    /// Read the target back and tell the CRC-32C of its disk
    #[arg(long)]
    checksum: bool,
    /// Keep the target of a failed conversion
    #[arg(long)]
    keep_partial: bool,
    /// The sources, whose disks follow each other in the target, and the target
    #[arg(value_name = "SOURCE... TARGET")]
    files: Vec<PathBuf>,
}

/// A conversion whose arguments make sense.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) sources: Vec<PathBuf>,
    pub(super) source_format: Option<String>,
    pub(super) source_image_opts: bool,
    pub(super) source_cache: Cache,
    pub(super) force_share: bool,
    pub(super) snapshot: Option<SnapshotChoice>,
    pub(super) target: PathBuf,
    /// Only a target that is an option string may be without.
    pub(super) target_format: Option<String>,
    pub(super) target_image_opts: bool,
    /// The mode's name, which is looked at when the target is opened, as by QEMU.
    pub(super) target_cache: Option<String>,
    pub(super) options: Vec<String>,
    pub(super) backing: Option<String>,
    pub(super) backing_format: Option<String>,
    /// Make the target first.
    pub(super) create: bool,
    pub(super) keep_partial: bool,
    pub(super) target_is_zero: bool,
    /// Bytes of zeros that are worth leaving out; 0 leaves nothing out.
    pub(super) granularity: u64,
    /// Bytes a second.
    pub(super) rate: Option<u64>,
    /// Let the host copy where it can.
    pub(super) offload: bool,
    /// How to go on after failed reads, if that is wanted.
    pub(super) salvage: Option<Salvage>,
    /// Parts in flight.
    pub(super) parallel: usize,
    pub(super) in_order: bool,
    pub(super) progress: bool,
    pub(super) verify: bool,
    pub(super) checksum: bool,
    /// Take the source's internal snapshots along.
    pub(super) snapshots: bool,
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
    ///
    /// # Errors
    /// Of several things that are wrong, the one is told that QEMU would tell.
    pub(super) fn job(&self) -> Outcome<Option<Job>> {
        self.check_combinations()?;
        let target_format = match &self.target_format {
            None if self.target_image_opts => None,
            given => Some(given.as_deref().unwrap_or("raw").to_owned()),
        };
        if let Some(format) = &target_format
            && keyval::asks_for_help(&self.target_options)
        {
            creation_options::help(image::parse_new_format(format)?, self.files.len() > 1);
            return Ok(None);
        }
        let Some((target, sources)) = self.files.split_last().filter(|(_, s)| !s.is_empty()) else {
            return Err(Failure::new("Must specify image file name"));
        };
        let source_cache =
            Cache::parse_option(self.source_cache.as_deref(), "source cache", Cache::WRITEBACK)?;
        Ok(Some(Job {
            sources: sources.to_vec(),
            source_format: self.source_format.clone(),
            source_image_opts: self.source_image_opts,
            source_cache,
            force_share: self.force_share,
            snapshot: self.source_snapshot.clone(),
            target: target.clone(),
            target_format,
            target_image_opts: self.target_image_opts,
            target_cache: self.target_cache.clone(),
            options: self.target_options.clone(),
            backing: self.backing.clone(),
            backing_format: self.backing_format.clone(),
            create: !self.no_create,
            keep_partial: self.keep_partial,
            target_is_zero: self.target_is_zero,
            granularity: self.sparse_size.unwrap_or(GRANULARITY_DEFAULT),
            rate: self.rate,
            offload: self.copy_range_offloading,
            salvage: self.salvage.then_some(Salvage { quiet: self.telling.quiet }),
            parallel: self.parallel.unwrap_or(PARALLEL_DEFAULT),
            in_order: !self.oob_writes,
            compression: self.compress.then(|| self.compression()),
            progress: self.telling.shows_progress(),
            verify: self.verify,
            checksum: self.checksum,
            snapshots: self.snapshots,
            bitmaps: match (self.bitmaps, self.skip_broken_bitmaps) {
                (false, _) => Bitmaps::Leave,
                (true, false) => Bitmaps::All,
                (true, true) => Bitmaps::Sound,
            },
        }))
    }

    fn compression(&self) -> Compression {
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = self.threads.map_or_else(cores, |threads| threads.clamp(1, PARALLEL_MAX));
        Compression { level: self.level, threads }
    }

    /// Refuses what contradicts itself, in QEMU's order.
    fn check_combinations(&self) -> Outcome {
        let rules = [
            (
                self.skip_broken_bitmaps && !self.bitmaps,
                "Use of --skip-broken-bitmaps requires --bitmaps",
            ),
            (
                self.copy_range_offloading && self.compress,
                "Cannot enable copy offloading when -c is used",
            ),
            (
                self.copy_range_offloading && self.sparse_size.is_some(),
                "Cannot enable copy offloading when -S is used",
            ),
            (
                self.copy_range_offloading && self.salvage,
                "Cannot use copy offloading in salvaging mode",
            ),
            (
                self.target_image_opts && !self.no_create,
                "--target-image-opts requires use of -n flag",
            ),
            (
                self.no_create && !self.target_options.is_empty(),
                "-o has no effect when skipping image creation",
            ),
            (self.target_is_zero && !self.no_create, "--target-is-zero requires use of -n flag"),
            (
                !self.compress && (self.level.is_some() || self.threads.is_some()),
                "--level and --threads go with -c",
            ),
        ];
        match rules.into_iter().find(|(broken, _)| *broken) {
            Some((_, message)) => Err(Failure::new(message)),
            None => Ok(()),
        }
    }
}

fn granularity(text: &str) -> Outcome<u64> {
    let size = bounded::parse_size("buffer size for sparse output", text, 0..=SIZE_MAX)?;
    match size <= GRANULARITY_MAX && size.is_multiple_of(512) {
        true => Ok(size),
        false => Err(Failure::new(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to \
             {GRANULARITY_MAX}. Select 0 to disable sparse detection (fully allocates output)."
        ))),
    }
}

fn parallel(text: &str) -> Outcome<usize> {
    let count = bounded::parse_number("number of coroutines", text, 1..=PARALLEL_MAX as u64)?;
    Ok(usize::try_from(count).unwrap_or(PARALLEL_MAX))
}
