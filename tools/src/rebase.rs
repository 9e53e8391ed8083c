//! `qcow rebase`: another backing file for an image, which goes on to show the same disk.
//!
//! What the old and the new backing files differ in, where the image has nothing of its own, is written to the image first.
//! That is durable before the image names the new one: a crash leaves an image that shows the same disk on the old backing
//! file or on the new one.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use qcow::disk::uring::block_on;
use qcow::disk::{Buffer, Payload};
use qcow::engine::Format;
use qcow::limits::SECTOR_BYTES;
use qcow::{Error, ErrorKind};

use crate::arguments::{ImageArgs, TellingArgs, one_file};
use crate::cache::Cache;
use crate::failure::{Failure, Outcome};
use crate::image::{self, HostImage, Opening};
use crate::progress::Progress;

const COMMAND: &str = "rebase";

/// Bytes that are compared at a time, at least.
const CHUNK_LEN: u64 = 2 << 20;

/// Change the backing file of an image, which goes on to show the same disk unless -u is given
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    telling: TellingArgs,
    /// The new backing file; an empty name for none
    #[arg(short, long, value_name = "FILE")]
    backing: Option<OsString>,
    /// Format of the new backing file
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Change the name alone and look at no backing file: for one that has been moved or renamed
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Compress what is written to the image, where whole clusters are; qcow2 only
    #[arg(short, long)]
    compress: bool,
    /// Read the new backing file even while other programs write it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Cache mode of the image: writeback (default), none, directsync, writethrough or unsafe
    #[arg(short = 't', long, value_name = "MODE")]
    cache: Option<String>,
    /// Cache mode of the new backing file
    #[arg(short = 'T', long, value_name = "MODE")]
    backing_cache: Option<String>,
    /// The image
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let path = one_file(COMMAND, &args.files)?;
    if !args.backing_unsafe && args.backing.is_none() {
        let message = "Must specify backing file (-b) or use unsafe mode (-u)";
        return Err(Failure::usage(COMMAND, message));
    }
    let cache = Cache::parse_option(args.cache.as_deref(), "cache", Cache::WRITEBACK)?;
    let backing_cache = args.backing_cache.as_deref();
    let backing_cache = Cache::parse_option(backing_cache, "source cache", Cache::WRITEBACK)?;
    let backing = !args.backing_unsafe;
    let opening = Opening { writable: true, cache, backing, ..args.image.opening() };
    let image = opening.open_to_write(path)?;
    let rebased = rebase(args, &image, backing_cache);
    let closed = block_on(image.close());
    rebased?;
    closed.map_err(|e| Failure::new(e.message()))
}

fn rebase(args: &Args, image: &HostImage, backing_cache: Cache) -> Outcome {
    if args.compress && image.format() != Format::Qcow2 {
        return Err(Failure::new("Compression not supported for this file format"));
    }
    if let Some(format) = args.backing_format.as_ref().filter(|f| !image::is_known_driver(f)) {
        return Err(Failure::new(format!("Invalid format name: '{format}'")));
    }
    let name = args.backing.as_deref().filter(|name| !name.is_empty());
    let mut progress = Progress::new(args.telling.shows_progress(), image.virtual_size());
    if !args.backing_unsafe {
        let new = name
            .map(|name| open_new(args, image.layer_path(0), name, backing_cache))
            .transpose()?;
        check_format(args)?;
        image.expect_backing();
        let compressed = image.cluster_size().filter(|_| args.compress);
        let difference =
            Difference { image, new: new.as_ref(), align: align_of(image), compressed };
        block_on(difference.write_all(&mut progress))?;
    }
    check_format(args)?;
    let backing = name.map(|name| (name.to_owned(), args.backing_format.clone()));
    block_on(image.set_backing(backing)).map_err(|e| not_changed(args, &e))?;
    if args.backing_unsafe {
        progress.finish();
    }
    Ok(())
}

/// The new backing file; its name starts from the image's directory.
fn open_new(args: &Args, path: &Path, name: &OsStr, cache: Cache) -> Outcome<HostImage> {
    let shown = name.to_string_lossy();
    let resolved = qcow::gate::resolve_name(path, name)
        .map_err(|e| Failure::new(e.message()).context("Could not resolve backing filename"))?;
    let format = args.backing_format.as_deref();
    let opening = Opening { format, cache, shared: args.force_share, ..Opening::default() };
    opening
        .open_plainly(&resolved)
        .map_err(|e| Failure::new(e).context(format!("Could not open new backing file '{shown}'")))
}

/// A backing file is named together with its format, so that nobody has to guess it.
fn check_format(args: &Args) -> Outcome {
    match (&args.backing, &args.backing_format) {
        (Some(name), None) if !name.is_empty() => {
            Err(refused(args, "backing format must be specified"))
        }
        _ => Ok(()),
    }
}

fn not_changed(args: &Args, error: &Error) -> Failure {
    match error.kind() {
        ErrorKind::Limit => refused(args, "No space left in the file header"),
        ErrorKind::Invalid => refused(args, "Invalid argument"),
        ErrorKind::Unsupported => refused(args, "Operation not supported"),
        _ => refused(args, error.message()),
    }
}

fn refused(args: &Args, why: &str) -> Failure {
    // As QEMU tells it where no name was given.
    let name = args.backing.as_ref().map_or("(null)".into(), |name| name.to_string_lossy());
    Failure::new(format!("Could not change the backing file to '{name}': {why}"))
}

fn align_of(image: &HostImage) -> u64 {
    image.subcluster_size().unwrap_or(1).max(1)
}

/// What an image would show otherwise on another backing file.
struct Difference<'a> {
    image: &'a HostImage,
    /// The new backing file, unless there is to be none.
    new: Option<&'a HostImage>,
    /// What the image has of its own comes in units of so many bytes.
    align: u64,
    /// Clusters of so many bytes are written in compressed form where they are written whole.
    compressed: Option<u64>,
}

impl Difference<'_> {
    /// Writes it to the image.
    async fn write_all(&self, progress: &mut Progress) -> Outcome {
        let size = self.image.virtual_size();
        let chunk = CHUNK_LEN.max(self.unit());
        let buffers = [(); 2].map(|()| Buffer::zeroed(chunk as usize).payload());
        let mut at = 0;
        while at < size {
            let done = self.write_some(at, (size - at).min(chunk), &buffers).await?;
            progress.advance(done);
            at += done;
        }
        Ok(())
    }

    /// Writes the difference in a first part of `len` bytes at `at`, the start of a unit; how long that part is.
    async fn write_some(&self, at: u64, len: u64, buffers: &[Payload; 2]) -> Outcome<u64> {
        let extent = self.image.map(at, len).await;
        let extent = extent.map_err(|e| unmapped(&e))?;
        if extent.present && extent.depth == 0 {
            return Ok(extent.len);
        }
        // Lower images may have smaller clusters.
        let len = extent.len.next_multiple_of(self.align).min(self.image.virtual_size() - at);
        let is_zero = extent.zero && len == extent.len;
        let past_end =
            is_zero && !extent.present && extent.depth == 0 && self.whole_units(at, len) == len;
        if is_zero && self.new_is_zero(at, len).await? {
            let skipped = self.whole_units(at, len);
            if skipped > 0 {
                return Ok(skipped);
            }
        }
        let len = self.fill_unit(at, len).await?.min(buffers[0].len());
        let [old, new] = buffers.each_ref().map(|buffer| buffer.slice(0, len));
        let read = self.image.read(at, &old).await;
        read.map_err(|_| Failure::new("error while reading from old backing file"))?;
        self.read_new(at, &new).await?;
        let mut done = 0;
        while done < len {
            let (run, differs) = self.run(at, &old, &new, done);
            if differs {
                self.write(at + done, &old.slice(done, run), past_end).await?;
            }
            done += run;
        }
        Ok(len)
    }

    /// What is written as a whole, in bytes.
    fn unit(&self) -> u64 {
        self.compressed.unwrap_or(self.align).max(SECTOR_BYTES)
    }

    /// How many of `len` bytes at `at` are whole units, of which the end of the disk may cut the last one off.
    fn whole_units(&self, at: u64, len: u64) -> u64 {
        let end = at + len;
        match end == self.image.virtual_size() {
            true => len,
            false => (end - end % self.unit()).saturating_sub(at),
        }
    }

    /// How long a part of `len` bytes at `at` is with what the image has nothing of, either, in the rest of its last unit.
    async fn fill_unit(&self, at: u64, len: u64) -> Outcome<u64> {
        let mut end = at + len;
        let whole = end.next_multiple_of(self.unit()).min(self.image.virtual_size());
        while end < whole {
            let extent = self.image.map(end, whole - end).await.map_err(|e| unmapped(&e))?;
            if extent.present && extent.depth == 0 {
                break;
            }
            end = (end + extent.len).next_multiple_of(self.align).min(whole);
        }
        Ok(end - at)
    }

    /// How many bytes of the part at `at` from `from` on are in units that all differ, or are all equal.
    fn run(&self, at: u64, old: &Payload, new: &Payload, from: u64) -> (u64, bool) {
        let unit = |from: u64| (self.unit() - (at + from) % self.unit()).min(old.len() - from);
        let differs = |at: u64| {
            let (one, other) = (old.slice(at, unit(at)), new.slice(at, unit(at)));
            one.first_difference(&other).is_some()
        };
        let kind = differs(from);
        let mut end = from + unit(from);
        while end < old.len() && differs(end) == kind {
            end += unit(end);
        }
        (end - from, kind)
    }

    /// Writes `bytes`. As in QEMU, zeros become zero clusters where the old backing file does not reach, and are data else.
    async fn write(&self, at: u64, bytes: &Payload, past_end: bool) -> Outcome {
        let written = match self.compressed {
            _ if past_end => self.image.write_lasting_zeroes(at, bytes.len()).await,
            Some(cluster) => self.write_compressed(at, bytes, cluster).await,
            None => self.image.write(at, bytes).await,
        };
        written
            .map_err(|e| Failure::new(format!("Error while writing to COW image: {}", e.message())))
    }

    /// Writes whole clusters, which the image has nothing of, in compressed form, and the rest as it is.
    async fn write_compressed(&self, at: u64, bytes: &Payload, cluster: u64) -> qcow::Result<()> {
        let end = at + bytes.len();
        let first = at.next_multiple_of(cluster).min(end);
        let last = if end == self.image.virtual_size() { end } else { end - end % cluster };
        let last = last.max(first);
        let part = |from: u64, to: u64| bytes.slice(from - at, to - from);
        if first > at {
            self.image.write(at, &part(at, first)).await?;
        }
        if last > first {
            self.image.write_compressed(first, &part(first, last)).await?;
        }
        if end > last {
            self.image.write(last, &part(last, end)).await?;
        }
        Ok(())
    }

    /// The part of `len` bytes at `at` that the new backing file reaches.
    fn reach(&self, at: u64, len: u64) -> u64 {
        self.new.map_or(0, |new| new.virtual_size().saturating_sub(at).min(len))
    }

    async fn new_is_zero(&self, at: u64, len: u64) -> Outcome<bool> {
        let Some(new) = self.new else { return Ok(true) };
        let reach = self.reach(at, len);
        let mut done = 0;
        while done < reach {
            let extent = new.map(at + done, reach - done).await.map_err(unreadable)?;
            if !extent.zero {
                return Ok(false);
            }
            done += extent.len;
        }
        Ok(true)
    }

    async fn read_new(&self, at: u64, into: &Payload) -> Outcome {
        let reach = self.reach(at, into.len());
        into.zero(reach, into.len() - reach);
        match self.new {
            Some(new) if reach > 0 => new.read(at, &into.slice(0, reach)).await.map_err(unreadable),
            _ => Ok(()),
        }
    }
}

fn unmapped(error: &Error) -> Failure {
    Failure::new(format!("error while reading image metadata: {}", error.message()))
}

fn unreadable(_: Error) -> Failure {
    Failure::new("error while reading from new backing file")
}
