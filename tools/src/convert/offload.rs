//! `-C`: the host copies from file to file, which may cost it no more than a note that both share the bytes.

use std::cell::Cell;
use std::fs::File;
use std::path::Path;

use nix::fcntl::copy_file_range;
use qcow::disk::uring::CacheMode;
use qcow::engine::Format;

use super::args::Job;
use super::sources::Sources;
use crate::cache::Cache;
use crate::image::HostImage;

/// Raw files that the host copies between, as long as it does.
#[derive(Debug)]
pub struct Offload {
    sources: Vec<File>,
    target: File,
    works: Cell<bool>,
}

impl Offload {
    /// `None` where `job` does not ask for it, and where the host cannot: all of the images have to be plain raw files.
    pub fn wanted(
        job: &Job,
        sources: &Sources,
        target: &HostImage,
        target_cache: Cache,
    ) -> Option<Self> {
        // What goes past the page cache must not go through it, too.
        let modes = [job.source_cache.mode, target_cache.mode];
        if !job.offload || modes.contains(&CacheMode::Direct) {
            return None;
        }
        let images = sources.list.iter().map(|source| &source.image);
        let sources = images.map(|image| open(image, false)).collect::<Option<Vec<_>>>()?;
        Some(Self { sources, target: open(target, true)?, works: Cell::new(true) })
    }

    /// Whether it is worth asking the host.
    pub fn works(&self) -> bool {
        self.works.get()
    }

    /// Copies `len` bytes at `from` of a source to `to`. False where the host does not: then it is not asked again, and what
    /// has been copied of the range is to be written once more.
    pub fn copy(&self, source: usize, from: u64, to: u64, len: u64) -> bool {
        self.works.set(self.works() && copy(&self.sources[source], from, &self.target, to, len));
        self.works()
    }
}

fn copy(source: &File, from: u64, target: &File, to: u64, len: u64) -> bool {
    let (Ok(from), Ok(to)) = (i64::try_from(from), i64::try_from(to)) else { return false };
    let (mut from, mut to, mut left) = (from, to, usize::try_from(len).unwrap_or(usize::MAX));
    while left > 0 {
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), left) {
            Ok(done) if done > 0 => left -= done,
            _ => return false,
        }
    }
    true
}

fn open(image: &HostImage, writable: bool) -> Option<File> {
    let path: &Path = image.layer_path(0);
    let is_plain = image.format() == Format::Raw && path.metadata().is_ok_and(|m| m.is_file());
    let open = || File::options().read(true).write(writable).open(path).ok();
    is_plain.then(open).flatten()
}
