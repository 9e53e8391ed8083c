//! `qcow convert`: one or more images into a new one, perhaps of another format.
//!
//! [`args`] is the command line, [`sources`] and [`target`] are the images, [`plan`] decides what happens to which part of
//! the sources, [`copy`] carries it out with several parts in flight.

mod args;
mod bitmaps;
mod checksum;
mod compress;
mod copy;
mod history;
mod offload;
mod plan;
mod salvage;
mod sources;
mod target;

pub use args::Args;

use std::cell::RefCell;

use qcow::disk::uring::block_on;
use qcow::limits::SECTOR_BYTES;

use self::args::Job;
use self::compress::Compress;
use self::copy::{Copy, How};
use self::history::History;
use self::offload::Offload;
use self::plan::{Cursor, Rules, ZeroRule};
use self::sources::Sources;
use self::target::NewTarget;
use crate::content::{self, Side};
use crate::failure::{Failure, Outcome};
use crate::image::HostImage;
use crate::output::say;
use crate::progress::Progress;
use crate::rate::Rate;

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let Some(job) = args.job()? else { return Ok(()) };
    let sources = Sources::open(&job)?;
    let new = job.create.then(|| NewTarget::plan(&job, sources.total)).transpose()?;
    target::check(&job, new.as_ref())?;
    bitmaps::check(&job, &sources)?;
    let history = History::read(&job, &sources)?;
    match &new {
        Some(new) => new.make(&job, || fill(&job, &sources, &history, Some(new))),
        None => fill(&job, &sources, &history, None),
    }
}

/// Copies all of the sources into the target, and closes it.
fn fill(job: &Job, sources: &Sources, history: &History, new: Option<&NewTarget>) -> Outcome {
    let (target, cache) = target::open(job, new)?;
    bitmaps::check_target(job, &target)?;
    let compress = job.compression.map(|how| Compress::new(how, &target)).transpose()?;
    if target.virtual_size() < sources.total {
        return Err(Failure::new("output file is smaller than input file"));
    }
    let rules = rules(job, &target, new);
    let rules_after = |before: Option<&HostImage>| match before {
        Some(_) => Rules { zeros: ZeroRule::Changed, ..rules },
        None => rules,
    };
    let mut work = 0;
    if job.progress {
        history.for_each_state(job, sources, |state| {
            let before = state.shown();
            let cursor = Cursor::new(state.then, &target, rules_after(before), before);
            work += block_on(cursor.work())?;
            Ok(())
        })?;
    }
    let mut progress = Progress::new(job.progress, work);
    let copied = history
        .live_through(job, sources, &target, |sources, before| {
            let how = How {
                writethrough: cache.writethrough,
                rate: job.rate.map(|rate| RefCell::new(Rate::new(rate))),
                compress,
                offload: Offload::wanted(job, sources, &target, cache),
            };
            let copy = Copy::new(job, sources, &target, rules_after(before), how, before);
            block_on(copy.run(&mut progress))
        })
        .and_then(|()| bitmaps::copy(job, sources, &target));
    // Closed after a failure, too: what was copied until then stays readable where the target is kept.
    let closed = block_on(target.close())
        .map_err(|e| Failure::from(e).context("error while closing the target"));
    copied.and(closed)?;
    progress.finish();
    drop((progress, target));
    if job.verify {
        verify(job, sources, new)?;
    }
    if job.checksum {
        let crc = block_on(checksum::of_disk(&target::reopen(job, new)?))?;
        say!("CRC-32C: {crc:08x}");
    }
    Ok(())
}

/// How the target is written.
fn rules(job: &Job, target: &HostImage, new: Option<&NewTarget>) -> Rules {
    // What the target can only have whole is stored whole: writing it in one piece saves filling up its rest.
    let whole_clusters = target.cluster_size().filter(|_| job.compression.is_some());
    let unit = whole_clusters.or(target.subcluster_size()).unwrap_or(SECTOR_BYTES);
    let block_len = job.granularity.max(unit).next_multiple_of(unit);
    Rules {
        zeros: zero_rule(job, target, new),
        finds_zeros: job.granularity > 0,
        unit,
        block_len: whole_clusters.unwrap_or(block_len),
        whole_clusters,
        salvage: job.salvage,
    }
}

/// What becomes of zeros.
fn zero_rule(job: &Job, target: &HostImage, new: Option<&NewTarget>) -> ZeroRule {
    let starts_zeroed = job.target_is_zero || new.is_some_and(NewTarget::starts_zeroed);
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
fn verify(job: &Job, sources: &Sources, new: Option<&NewTarget>) -> Outcome {
    let target = target::reopen(job, new)?;
    for source in &sources.list {
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
