//! Files that are not whole yet: removed when the command fails or is told to stop.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::{Failure, Outcome};

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A file, with others that are nothing without it, that is removed unless it is [kept](Self::keep).
#[derive(Debug)]
pub struct PartialFile {
    paths: Vec<PathBuf>,
}

impl PartialFile {
    /// Watches over `path`. A device is nothing that can be half-written away, and stays.
    pub fn watch(path: &Path) -> Outcome<Self> {
        install_handler()?;
        let is_device = path.metadata().is_ok_and(|m| m.file_type().is_block_device());
        if !is_device {
            qcow::sync::lock(&UNFINISHED).push(path.to_owned());
        }
        Ok(Self { paths: vec![path.to_owned()] })
    }

    /// Both files, to be kept or removed as one.
    #[must_use]
    pub fn with(mut self, mut other: Self) -> Self {
        self.paths.append(&mut other.paths);
        self
    }

    /// The file is whole, or somebody wants it all the same.
    pub fn keep(self) {
        qcow::sync::lock(&UNFINISHED).retain(|path| !self.paths.contains(path));
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        let mut unfinished = qcow::sync::lock(&UNFINISHED);
        for own in &self.paths {
            if let Some(index) = unfinished.iter().position(|path| path == own) {
                remove(&unfinished.swap_remove(index));
            }
        }
    }
}

fn remove(path: &Path) {
    // The command fails anyway, and says why; that the file could not be removed would hide that.
    let _ = std::fs::remove_file(path);
}

/// Removes unfinished files when the program is told to stop, and then stops.
fn install_handler() -> Outcome {
    static INSTALLED: OnceLock<Option<String>> = OnceLock::new();
    let error = INSTALLED.get_or_init(|| {
        let mut signals = match Signals::new([SIGHUP, SIGINT, SIGTERM]) {
            Ok(signals) => signals,
            Err(error) => return Some(qcow::error::reason(&error)),
        };
        std::thread::spawn(move || {
            for signal in signals.forever() {
                qcow::sync::lock(&UNFINISHED).iter().for_each(|path| remove(path));
                // Ends the program as the signal would have; it cannot fail for these.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        });
        None
    });
    match error {
        None => Ok(()),
        Some(error) => Err(Failure::new(format!("cannot handle signals: {error}"))),
    }
}
