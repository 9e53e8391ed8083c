//! Opening images as the command line names them, and saying in QEMU's words why one does not open.

use std::path::Path;

use qcow::disk::uring::{UringDisk, block_on};
use qcow::engine::snapshot::NOT_LOADED;
use qcow::engine::{DetectZeroes, Discard, Format, OpenOptions, SnapshotChoice};
use qcow::gate::{BackingPolicy, HostGate};
use qcow::{Error, ErrorKind, Image};

use crate::cache::Cache;
use crate::failure::{Failure, Outcome, tell_plain};

/// An image on the host.
pub type HostImage = Image<UringDisk>;

/// Formats that QEMU knows and this program does not.
const FOREIGN: [&str; 13] = [
    "bochs",
    "cloop",
    "dmg",
    "file",
    "host_device",
    "luks",
    "parallels",
    "qcow",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
];

/// How an image is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// Its format's name; found out where it is not given.
    pub format: Option<&'a str>,
    /// For writing too.
    pub writable: bool,
    /// How writes reach the disk.
    pub cache: Cache,
    /// Whatever other programs do with the file.
    pub shared: bool,
    /// With its backing files.
    pub backing: bool,
    /// What discards do.
    pub discard: Discard,
    /// The internal snapshot to show instead of the disk as it is now; for reading only.
    pub snapshot: Option<&'a SnapshotChoice>,
}

impl Default for Opening<'_> {
    /// For reading, with everything below it.
    fn default() -> Self {
        Self {
            format: None,
            writable: false,
            cache: Cache::WRITEBACK,
            shared: false,
            backing: true,
            discard: Discard::Unmap,
            snapshot: None,
        }
    }
}

impl Opening<'_> {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// `Could not open 'path': ` and the reason; of a snapshot, `Failed to load snapshot: ` and the reason.
    pub fn open(&self, path: &Path) -> Outcome<HostImage> {
        self.open_plainly(path).map_err(|reason| match reason.starts_with(NOT_LOADED) {
            true => Failure::new(reason),
            false => could_not_open(path, &reason),
        })
    }

    /// As [`Opening::open`]; warns where nobody said that the image is raw, and it is about to be written to.
    pub fn open_to_write(&self, path: &Path) -> Outcome<HostImage> {
        let image = self.open(path)?;
        if self.format.is_none() && image.format() == Format::Raw {
            warn_of_guess(path);
        }
        Ok(image)
    }

    /// Opens the image at `path`; the error is the reason alone.
    pub fn open_plainly(&self, path: &Path) -> Result<HostImage, String> {
        if self.shared && self.writable {
            return Err("force-share=on can only be used with read-only images".to_owned());
        }
        let options = OpenOptions {
            writable: self.writable,
            format: self.format.map(parse_format).transpose()?,
            backing: self.backing,
            discard: self.discard,
            detect_zeroes: DetectZeroes::Off,
            snapshot: self.snapshot.cloned(),
            flushes: self.cache.flushes,
            ..OpenOptions::default()
        };
        let image = block_on(Image::open(&self.gate(), path, &options));
        image.map_err(|error| reason_not_open(path, &error))
    }

    /// Opens the file at `path` without looking into it.
    ///
    /// # Errors
    /// As [`Opening::open`].
    pub fn open_file(&self, path: &Path) -> Outcome<UringDisk> {
        use qcow::gate::Gate;
        if self.shared && self.writable {
            let reason = "force-share=on can only be used with read-only images";
            return Err(could_not_open(path, reason));
        }
        let disk = self.gate().open_image(path, self.writable);
        disk.map_err(|error| could_not_open(path, &reason_not_open(path, &error)))
    }

    fn gate(&self) -> HostGate {
        let backing = BackingPolicy::Anywhere;
        HostGate { cache: self.cache.mode, shared: self.shared, backing }
    }
}

/// Warns that the image at `path` is taken for raw because it looks like nothing else.
pub fn warn_of_guess(path: &Path) {
    tell_plain(&format!(
        "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
         Specify the 'raw' format explicitly to remove the restrictions.",
        path.display()
    ));
}

/// The format called `name`, of an image that exists.
pub fn parse_format(name: &str) -> Result<Format, String> {
    match FOREIGN.contains(&name) {
        true => Err(format!("format '{name}' is not supported yet")),
        false => name.parse(),
    }
}

/// The format called `name`, of an image that is to be made.
pub fn parse_new_format(name: &str) -> Outcome<Format> {
    parse_format(name).map_err(|message| match message.starts_with("Unknown") {
        true => Failure::new(format!("Unknown file format '{name}'")),
        false => Failure::new(message),
    })
}

/// The failure that `reason` keeps `path` from being opened.
pub fn could_not_open(path: &Path, reason: &str) -> Failure {
    Failure::new(format!("Could not open '{}': {reason}", path.display()))
}

/// Why the image at `path` does not open, in QEMU's words where it has some.
pub fn reason_not_open(path: &Path, error: &Error) -> String {
    let file = error.file().unwrap_or(path);
    let message = error.message();
    if error.kind() == ErrorKind::Locked {
        return lock_message(file, message);
    }
    if file.is_dir() {
        return format!("'file' driver requires '{}' to be a regular file", file.display());
    }
    // The host's own errors name the file once more, as QEMU's file layer does.
    if error.errno().is_some() {
        return message.replacen(
            "Could not open: ",
            &format!("Could not open '{}': ", file.display()),
            1,
        );
    }
    match file == path {
        true => message.to_owned(),
        false => format!("Could not open backing file '{}': {message}", file.display()),
    }
}

/// A lost fight for a file's lock, in QEMU's two lines.
pub fn lock_message(file: &Path, message: &str) -> String {
    let what = message.split(": is another process").next().unwrap_or(message);
    format!("{what}\nIs another process using the image [{}]?", file.display())
}
