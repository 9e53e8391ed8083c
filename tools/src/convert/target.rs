//! The target: a new image, or one that is there.

use std::path::{Path, PathBuf};

use qcow::engine::Format;

use super::args::Job;
use super::compress;
use crate::cache::Cache;
use crate::creation_options;
use crate::failure::{Failure, Outcome};
use crate::image::{self, HostImage, Opening};
use crate::keyval::OptionValues;
use crate::new_image::{self, NewImage};
use crate::partial::PartialFile;
use crate::source;

/// Longest name of a file on Linux.
const FILE_NAME_BYTES_MAX: usize = 255;

/// A target that is to be made.
#[derive(Debug)]
pub struct NewTarget {
    /// Its file.
    path: PathBuf,
    /// Its file until it is whole.
    path_until_whole: PathBuf,
    format: Format,
    values: OptionValues,
}

impl NewTarget {
    /// The target that `job` asks for, for `total` bytes.
    pub fn plan(job: &Job, total: u64) -> Outcome<Self> {
        let format = image::parse_new_format(job.target_format.as_deref().unwrap_or_default())?;
        let path = source::new_file(&job.target).map_err(Failure::new)?;
        let mut values = creation_options::parse(format, &job.options)?;
        values.set_number("size", total);
        let (backing, backing_format) = (job.backing.as_deref(), job.backing_format.as_deref());
        creation_options::set_backing(&mut values, format, backing, backing_format)?;
        let until_whole = if job.keep_partial { None } else { name_until_whole(&path) };
        let path_until_whole = until_whole.unwrap_or_else(|| path.clone());
        Ok(Self { path, path_until_whole, format, values })
    }

    /// Makes the target, lets `fill` give it its content, and its name then.
    pub fn make(&self, job: &Job, fill: impl FnOnce() -> Outcome) -> Outcome {
        let partial = self.create(&job.target)?;
        let outcome = fill().and_then(|()| self.give_name());
        if outcome.is_ok() || job.keep_partial {
            partial.keep();
        }
        outcome.map_err(|failure| failure.calling(&self.path_until_whole, &self.path))
    }

    /// Whether it reads as zeros when it has just been made.
    pub fn starts_zeroed(&self) -> bool {
        // What nobody has written to a LUKS file reads as noise.
        self.format != Format::Luks && new_image::starts_zeroed(&self.path)
    }

    fn create(&self, name: &Path) -> Outcome<PartialFile> {
        let image = NewImage::plan(self.format, &self.values);
        let created = image.and_then(|image| image.write(&self.path_until_whole));
        created.map_err(|failure| {
            let failure = failure.calling(&self.path_until_whole, &self.path);
            let (name, format) = (name.display(), self.format);
            failure.context(format!("{name}: error while converting {format}"))
        })
    }

    fn give_name(&self) -> Outcome {
        let (from, to) = (&self.path_until_whole, &self.path);
        if from == to {
            return Ok(());
        }
        std::fs::rename(from, to).map_err(|e| {
            let (from, reason) = (from.display(), qcow::error::reason(&e));
            Failure::new(format!("cannot rename '{from}' to '{}': {reason}", to.display()))
        })
    }
}

/// Refuses what does not go together, in QEMU's order.
pub fn check(job: &Job, new: Option<&NewTarget>) -> Outcome {
    let option = |name| new.and_then(|new| new.values.text(name));
    let has_backing = option("backing_file").is_some() || job.backing.is_some();
    if job.target_is_zero && has_backing {
        return Err(Failure::new(
            "Cannot use --target-is-zero when the destination image has a backing file",
        ));
    }
    if job.sources.len() > 1 && has_backing {
        return Err(Failure::new(
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        ));
    }
    if option("backing_file").is_some() && option("backing_fmt").is_none() {
        return Err(Failure::new("Use of backing file requires explicit backing format"));
    }
    match new {
        Some(new) if job.compression.is_some() => compress::check(new.format, &new.values),
        _ => Ok(()),
    }
}

/// Opens the target for writing, and tells how its writes reach the disk.
pub fn open(job: &Job, new: Option<&NewTarget>) -> Outcome<(HostImage, Cache)> {
    let cache = Cache::parse_option(job.target_cache.as_deref(), "cache", Cache::UNSAFE)?;
    let (path, opening) = opening(job, new);
    let image = Opening { writable: true, cache, ..opening }.open_to_write(path)?;
    match image.is_writable() {
        true => Ok((image, cache)),
        false => Err(image::could_not_open(path, "Block node is read-only")),
    }
}

/// Opens the target for reading, when all is written.
pub fn reopen(job: &Job, new: Option<&NewTarget>) -> Outcome<HostImage> {
    let (path, opening) = opening(job, new);
    opening.open(path)
}

fn opening<'a>(job: &'a Job, new: Option<&'a NewTarget>) -> (&'a Path, Opening<'a>) {
    let format = job.target_format.as_deref();
    let opening = Opening { format, ..Opening::default() };
    match new {
        Some(new) => {
            let key_secret =
                new.values.text("encrypt.key-secret").or(new.values.text("key-secret"));
            (&new.path_until_whole, Opening { key_secret, ..opening })
        }
        None => (&job.target, Opening { image_opts: job.target_image_opts, ..opening }),
    }
}

/// The name that a new target bears while it is filled, so that not even a killed conversion leaves a file that looks
/// whole. What exists already is written where it is, as by `qemu-img`.
fn name_until_whole(path: &Path) -> Option<PathBuf> {
    if path.symlink_metadata().is_ok() {
        return None;
    }
    let mut name = path.file_name()?.to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    (name.len() <= FILE_NAME_BYTES_MAX).then(|| path.with_file_name(name))
}
