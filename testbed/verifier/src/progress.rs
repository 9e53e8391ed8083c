//! Tells a watcher how far the random requests are, so that it can disturb them at chosen points of the load, however fast the
//! machine is.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;

/// Counts the requests of all threads and writes `PART k` when `k` of so many equal parts are done; not after the last.
#[derive(Debug)]
pub struct Progress {
    watcher: Option<File>,
    total: u64,
    parts: u64,
    done: AtomicU64,
}

impl Progress {
    /// Progress of `total` requests, told in `parts` to whoever reads `watcher`, if anybody does.
    ///
    /// # Errors
    /// `watcher` cannot be opened for writing.
    pub fn new(watcher: Option<&Path>, total: u64, parts: u64) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let file = OpenOptions::new().append(true).open(path);
            file.with_context(|| path.display().to_string())
        };
        Ok(Self { watcher: watcher.map(open).transpose()?, total, parts, done: AtomicU64::new(0) })
    }

    /// One more request is done.
    ///
    /// # Errors
    /// The watcher cannot be told.
    pub fn count(&self) -> anyhow::Result<()> {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let part = self.part(done);
        match &self.watcher {
            Some(file) if part > self.part(done - 1) && part < self.parts => {
                let mut file: &File = file;
                file.write_all(format!("PART {part}\n").as_bytes()).context("telling the progress")
            }
            _ => Ok(()),
        }
    }

    fn part(&self, done: u64) -> u64 {
        done * self.parts / self.total
    }
}
