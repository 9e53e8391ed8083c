//! The images that are copied, one behind the other.

use qcow::engine::SnapshotChoice;

use super::args::Job;
use crate::failure::{Failure, Outcome};
use crate::image::{HostImage, Opening};

/// One source.
#[derive(Debug)]
pub struct Source {
    /// Its disk.
    pub image: HostImage,
    /// Where its first byte comes to lie in the target.
    pub start: u64,
}

/// The sources of one conversion.
#[derive(Debug)]
pub struct Sources {
    /// Each in its place.
    pub list: Vec<Source>,
    /// Bytes of all together.
    pub total: u64,
}

impl Sources {
    /// Opens them.
    pub fn open(job: &Job) -> Outcome<Self> {
        let images = job.sources.iter().map(|name| opening(job).open(name));
        let mut images = images.collect::<Outcome<Vec<_>>>()?;
        if let (Some(snapshot), Some(first)) = (&job.snapshot, job.sources.first()) {
            if images.len() > 1 && matches!(snapshot, SnapshotChoice::IdOrName(_)) {
                return Err(Failure::new("No support for concatenating multiple snapshot"));
            }
            images[0] = Opening { snapshot: Some(snapshot), ..opening(job) }.open(first)?;
        }
        Self::in_a_row(images)
    }

    /// Opens the only source as it was at `snapshot`.
    pub fn at(job: &Job, snapshot: &SnapshotChoice) -> Outcome<Self> {
        let opening = Opening { snapshot: Some(snapshot), ..opening(job) };
        let images = job.sources.iter().map(|name| opening.open(name));
        Self::in_a_row(images.collect::<Outcome<_>>()?)
    }

    fn in_a_row(images: Vec<HostImage>) -> Outcome<Self> {
        let mut sources = Self { list: Vec::new(), total: 0 };
        for image in images {
            let (start, size) = (sources.total, image.virtual_size());
            let total = start.checked_add(size);
            sources.total = total.ok_or_else(|| Failure::new("the sources are too large"))?;
            sources.list.push(Source { image, start });
        }
        Ok(sources)
    }
}

/// How sources are opened.
pub fn opening(job: &Job) -> Opening<'_> {
    Opening {
        format: job.source_format.as_deref(),
        image_opts: job.source_image_opts,
        cache: job.source_cache,
        shared: job.force_share,
        ..Opening::default()
    }
}
