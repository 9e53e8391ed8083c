//! `qcow convert`: one or more images into a new one, perhaps of another format.
//!
//! [`args`] is the command line, [`plan`] decides what happens to which part of the sources, [`copy`] carries it out with
//! several parts in flight.

mod args;
mod bitmaps;
mod compress;
mod copy;
mod plan;

pub use args::Args;

use std::path::{Path, PathBuf};

use qcow::disk::uring::block_on;

use self::args::Job;
use self::compress::Compress;
use self::copy::Copy;
use self::plan::{Source, ZeroRule};
use crate::content::{self, Side};
use crate::creation_options;
use crate::failure::{Failure, Outcome};
use crate::image::{HostImage, Opening};
use crate::keyval::OptionValues;
use crate::new_image::{self, NewImage};
use crate::partial::PartialFile;
use crate::progress::Progress;

/// Longest name of a file on Linux.
const FILE_NAME_BYTES_MAX: usize = 255;

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let Some(mut job) = args.job()? else { return Ok(()) };
    let last_name = job.target.clone();
    if !args.keep_partial
        && let Some(name) = name_until_whole(&job)
    {
        job.target = name;
    }
    convert(args, &job, &last_name).map_err(|failure| failure.calling(&job.target, &last_name))
}

/// Carries out `job`; what it makes is called `last_name` in the end.
fn convert(args: &Args, job: &Job, last_name: &Path) -> Outcome {
    let mut sources = Vec::new();
    let mut total = 0_u64;
    for path in &job.sources {
        let opening = Opening {
            format: job.source_format.as_deref(),
            cache: job.source_cache,
            shared: args.force_share,
            snapshot: job.snapshot.as_ref(),
            ..Opening::default()
        };
        let image = opening.open(path)?;
        let size = image.virtual_size();
        sources.push(Source { image, start: total });
        total = total.checked_add(size).ok_or_else(|| Failure::new("the sources are too large"))?;
    }
    bitmaps::check(job, &sources)?;
    let partial = match job.create {
        true => Some(create(job, total)?),
        false => None,
    };
    let outcome = fill(job, &sources, total).and_then(|()| give_name(&job.target, last_name));
    if let Some(partial) = partial
        && (outcome.is_ok() || args.keep_partial)
    {
        partial.keep();
    }
    outcome
}

/// The name that a new target bears while it is filled, so that not even a killed conversion leaves a file that looks
/// whole. What exists already is written where it is, as by `qemu-img`.
fn name_until_whole(job: &Job) -> Option<PathBuf> {
    if !job.create || job.target.symlink_metadata().is_ok() {
        return None;
    }
    let mut name = job.target.file_name()?.to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    (name.len() <= FILE_NAME_BYTES_MAX).then(|| job.target.with_file_name(name))
}

fn give_name(from: &Path, to: &Path) -> Outcome {
    if from == to {
        return Ok(());
    }
    std::fs::rename(from, to).map_err(|e| {
        let (from, reason) = (from.display(), qcow::error::reason(&e));
        Failure::new(format!("cannot rename '{from}' to '{}': {reason}", to.display()))
    })
}

/// Makes the empty target for `total` bytes.
fn create(job: &Job, total: u64) -> Outcome<PartialFile> {
    let mut values: OptionValues = creation_options::parse(job.format, &job.options)?;
    if values.number("size").is_none() {
        values.set_number("size", total);
    }
    if job.compression.is_some() {
        compress::check_options(&values)?;
    }
    if let Some(backing) = &job.backing {
        values.set_text("backing_file", backing.as_str());
    }
    if let Some(format) = &job.backing_format {
        values.set_text("backing_fmt", format.as_str());
    }
    if values.text("backing_file").is_some() && values.text("backing_fmt").is_none() {
        return Err(Failure::new("Use of backing file requires explicit backing format"));
    }
    let created = NewImage::plan(job.format, &values).and_then(|new| new.write(&job.target));
    created.map_err(|failure| {
        let (target, format) = (job.target.display(), job.format);
        failure.context(format!("{target}: error while converting {format}"))
    })
}

/// Copies all of the sources into the target, and closes it.
fn fill(job: &Job, sources: &[Source], total: u64) -> Outcome {
    let format = job.format.to_string();
    let opening = Opening {
        format: Some(&format),
        writable: true,
        cache: job.target_cache,
        ..Opening::default()
    };
    let target = opening.open(&job.target)?;
    bitmaps::check_target(job, &target)?;
    if target.virtual_size() < total {
        return Err(Failure::new("output file is smaller than input file"));
    }
    let mut progress = Progress::new(job.progress, total);
    let rule = zero_rule(job, &target);
    let compress = job.compression.map(|how| Compress::new(how, &target)).transpose()?;
    let copied = block_on(Copy::new(sources, &target, rule, job, compress).run(&mut progress))
        .and_then(|()| bitmaps::copy(job, sources, &target));
    // Closed after a failure, too: what was copied until then stays readable where the target is kept.
    let closed = block_on(target.close())
        .map_err(|e| Failure::from(e).context("error while closing the target"));
    copied.and(closed)?;
    progress.finish();
    drop((progress, target));
    if job.verify { verify(job, sources) } else { Ok(()) }
}

/// What becomes of zeros.
fn zero_rule(job: &Job, target: &HostImage) -> ZeroRule {
    let starts_zeroed = job.target_is_zero || (job.create && new_image::starts_zeroed(&job.target));
    // An existing target's backing image says nothing about the sources, unless the command line names one.
    let stacked = if job.create { target.layer_count() > 1 } else { job.backing.is_some() };
    if stacked {
        ZeroRule::Overlay
    } else if job.granularity == 0 {
        ZeroRule::Store
    } else if starts_zeroed {
        ZeroRule::Skip
    } else {
        ZeroRule::Write
    }
}

/// Reads the target back and compares it with the sources.
fn verify(job: &Job, sources: &[Source]) -> Outcome {
    let format = job.format.to_string();
    let target = Opening { format: Some(&format), ..Opening::default() }.open(&job.target)?;
    for source in sources {
        let len = source.image.virtual_size();
        let one = Side { path: source.image.layer_path(0), image: &source.image, start: 0 };
        let two = Side { path: &job.target, image: &target, start: source.start };
        let found = block_on(content::compare([one, two], len, false, |_| {}));
        match found {
            Ok(None) => {}
            Ok(Some(difference)) => {
                let target = job.target.display();
                return Err(Failure::new(format!("{target}: verification failed: {difference}")));
            }
            Err(content::Error::Map(message) | content::Error::Read(message)) => {
                return Err(Failure::new(message).context("verification failed"));
            }
        }
    }
    Ok(())
}

/// A failed read of the sources at byte `at` of the target.
fn reading(at: u64, error: &qcow::Error) -> Failure {
    Failure::new(format!("error while reading at byte {at}: {error}"))
}

/// A failed write of the target at byte `at`.
fn writing(at: u64, error: &qcow::Error) -> Failure {
    Failure::new(format!("error while writing at byte {at}: {error}"))
}
