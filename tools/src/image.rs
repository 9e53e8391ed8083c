//! Opening images as the command line names them, and saying in QEMU's words why one does not open.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use qcow::crypt::Passphrase;
use qcow::disk::uring::{CacheMode, UringDisk, block_on};
use qcow::engine::check::examine;
use qcow::engine::snapshot::NOT_LOADED;
use qcow::engine::{Below, DetectZeroes, Discard, Format, OpenOptions, SnapshotChoice};
use qcow::gate::{BackingPolicy, HostGate};
use qcow::{Error, ErrorKind, Image};

use crate::cache::Cache;
use crate::failure::{Failure, Outcome, tell_plain};
use crate::info::encryption::encryption_name;
use crate::program;
use crate::secrets;
use crate::source::{self, Source};

/// An image on the host.
pub type HostImage = Image<UringDisk>;

/// Formats that QEMU knows and this program does not.
const FOREIGN: [&str; 14] = [
    "bochs",
    "cloop",
    "dmg",
    "file",
    "host_cdrom",
    "host_device",
    "parallels",
    "qcow",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// Formats that QEMU reads and does not make.
const NEVER_MADE: [&str; 12] = [
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "null-aio",
    "null-co",
    "quorum",
    "vvfat",
];

const SHARE_CONFLICT: &str = "--force-share/-U conflicts with image options";

/// How an image is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// Its format's name; found out where it is not given.
    pub format: Option<&'a str>,
    /// What is opened is called by an option string.
    pub image_opts: bool,
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
    /// With the VM state behind the snapshot's disk.
    pub vm_state: bool,
    /// The name of the secret with the key, where the image's own options name none.
    pub key_secret: Option<&'a str>,
    /// An encrypted image, without its key too: nothing is read from its disk or written to it.
    pub without_keys: bool,
}

impl Default for Opening<'_> {
    /// For reading, with everything below it.
    fn default() -> Self {
        Self {
            format: None,
            image_opts: false,
            writable: false,
            cache: Cache::WRITEBACK,
            shared: false,
            backing: true,
            discard: Discard::Unmap,
            snapshot: None,
            vm_state: false,
            key_secret: None,
            without_keys: false,
        }
    }
}

impl Opening<'_> {
    /// Opens the image that the command line calls `name`.
    ///
    /// # Errors
    /// `Could not open 'name': ` and the reason; of a snapshot, `Failed to load snapshot: ` and the reason.
    pub fn open(&self, name: &Path) -> Outcome<HostImage> {
        self.check_options()?;
        self.open_plainly(name).map_err(|reason| {
            match reason.starts_with(NOT_LOADED) || reason == SHARE_CONFLICT {
                true => Failure::new(reason),
                false => could_not_open(name, &reason),
            }
        })
    }

    /// As [`Opening::open`]; warns where nobody said that the image is raw, and it is about to be written to.
    pub fn open_to_write(&self, name: &Path) -> Outcome<HostImage> {
        let image = self.open(name)?;
        let is_named = self.source(name).is_ok_and(|source| source.format.is_some());
        if !is_named && image.format() == Format::Raw {
            warn_of_guess(name);
        }
        Ok(image)
    }

    /// Opens the image that the command line calls `name`; the error is the reason alone.
    pub fn open_plainly(&self, name: &Path) -> Result<HostImage, String> {
        self.open_source(&self.source(name)?)
    }

    /// What `name` stands for.
    pub fn source(&self, name: &Path) -> Result<Source, String> {
        source::parse(name, self.format, self.image_opts)
    }

    /// The key that is named for the image that the command line calls `name`, if one is.
    pub fn key(&self, name: &Path) -> Outcome<Option<Arc<Passphrase>>> {
        let secret = self.source(name).map_err(Failure::new)?.encrypt.key_secret;
        secret.map(|id| secrets::find(&id).map_err(Failure::new)).transpose()
    }

    /// The key that is named for `source`, if one is.
    pub fn key_of(&self, source: &Source) -> Result<Option<Arc<Passphrase>>, String> {
        let name = source.encrypt.key_secret.as_deref().or(self.key_secret);
        name.map(secrets::find).transpose()
    }

    /// Opens `source`; the error is the reason alone.
    pub fn open_source(&self, source: &Source) -> Result<HostImage, String> {
        let opening = self.with_options_of(source)?;
        if source.window.is_some() {
            return Err("options 'offset' and 'size' are not supported yet".to_owned());
        }
        let keys = Keys::of(source, self.key_secret);
        let options = OpenOptions {
            writable: opening.writable,
            format: source.format,
            backing: self.backing,
            below: below(&source.below)?,
            discard: opening.discard,
            detect_zeroes: source.common.detect_zeroes.unwrap_or(DetectZeroes::Off),
            snapshot: self.snapshot.cloned(),
            vm_state: self.vm_state,
            data_file: source.data_file.clone(),
            keys: keys.found.clone(),
            without_keys: self.without_keys,
            legacy_aes: true,
            flushes: opening.cache.flushes,
            adds_mark: program::adds_marks(),
            ..OpenOptions::default()
        };
        check_kind(source, opening.writable)?;
        let image = block_on(Image::open(&opening.gate(source), source.path(), &options));
        let image = image.map_err(|error| keys.explain(reason_not_open(source.path(), &error)))?;
        check_encryption(source, &image)?;
        check_cache_entry(source, &image)?;
        Ok(image)
    }

    /// Opens the file of what the command line calls `name`, without looking into it.
    ///
    /// # Errors
    /// As [`Opening::open`].
    pub fn open_file(&self, name: &Path) -> Outcome<UringDisk> {
        self.check_options()?;
        let file = self.source(name).and_then(|source| self.open_file_of(&source));
        file.map_err(|reason| could_not_open(name, &reason))
    }

    /// Opens the file of the qcow2 image that the command line calls `name`, damaged or not, without opening the image;
    /// `None` where it is of another format.
    ///
    /// # Errors
    /// As [`Opening::open`].
    pub fn open_qcow2_file(&self, name: &Path) -> Outcome<Option<UringDisk>> {
        self.check_options()?;
        let unusable = |reason: String| could_not_open(name, &reason);
        let source = self.source(name).map_err(unusable)?;
        let disk = self.open_file_of(&source).map_err(unusable)?;
        let path = source.path();
        let format = block_on(examine(&disk, path, source.format))
            .map_err(|error| unusable(reason_not_open(path, &error)))?;
        if format == Format::Luks {
            // As QEMU, which opens it all the same.
            drop(disk);
            self.open(name)?;
            return Ok(None);
        }
        Ok((format == Format::Qcow2).then_some(disk))
    }

    /// Opens the file of `source`, without looking into it; the error is the reason alone.
    pub fn open_file_of(&self, source: &Source) -> Result<UringDisk, String> {
        use qcow::gate::Gate;
        let opening = self.with_options_of(source)?;
        check_kind(source, opening.writable)?;
        let disk = opening.gate(source).open_image(source.path(), opening.writable);
        disk.map_err(|error| reason_not_open(source.path(), &error))
    }

    /// Refuses options that exclude each other.
    pub fn check_options(&self) -> Outcome {
        match self.image_opts && self.format.is_some() {
            true => Err(Failure::new("--image-opts and --format are mutually exclusive")),
            false => Ok(()),
        }
    }

    /// The same with what `source` says about it.
    fn with_options_of(&self, source: &Source) -> Result<Self, String> {
        let common = &source.common;
        if self.shared && common.force_share == Some(false) {
            return Err(SHARE_CONFLICT.to_owned());
        }
        let mut opening = *self;
        opening.shared |= common.force_share == Some(true);
        opening.writable &= common.read_only != Some(true);
        opening.discard = common.discard.unwrap_or(self.discard);
        opening.cache.flushes &= common.no_flush != Some(true);
        match common.direct {
            Some(true) => opening.cache.mode = CacheMode::Direct,
            Some(false) => opening.cache.mode = CacheMode::PageCache,
            None => {}
        }
        match opening.shared && opening.writable {
            true => Err("force-share=on can only be used with read-only images".to_owned()),
            false => Ok(opening),
        }
    }

    fn gate(&self, source: &Source) -> HostGate {
        let backing = BackingPolicy::Anywhere;
        HostGate { cache: self.cache.mode, shared: self.shared || source.unlocked, backing }
    }
}

/// The keys of a chain, and why some of them are not there.
struct Keys {
    found: Vec<Option<Arc<Passphrase>>>,
    missing: Option<String>,
}

impl Keys {
    /// The keys that `source` and those below it name; of the top one else that in the secret `top`.
    fn of(source: &Source, top: Option<&str>) -> Self {
        let mut keys = Self { found: Vec::new(), missing: None };
        let mut next = Some((source, top));
        while let Some((source, other)) = next {
            let name = source.encrypt.key_secret.as_deref().or(other);
            let found = name.map(secrets::find).transpose();
            keys.found.push(found.unwrap_or_else(|reason| {
                keys.missing.get_or_insert(reason);
                None
            }));
            next = match &source.below {
                source::Below::Like(below) => Some((below, None)),
                source::Below::AsNamed | source::Below::Nothing => None,
            };
        }
        keys
    }

    /// `reason`, or why the key is missing that it asks for: who needs none is not told of it, as in QEMU.
    fn explain(&self, reason: String) -> String {
        match &self.missing {
            Some(missing) if reason.ends_with("is required for cipher") => missing.clone(),
            _ => reason,
        }
    }
}

/// Refuses an encryption that is not what the options say.
fn check_encryption(source: &Source, image: &HostImage) -> Result<(), String> {
    let format = image.format();
    if format == Format::Luks {
        return Ok(());
    }
    if source.encrypt.is_of_file {
        return Err(format!("Block format '{format}' does not support the option 'key-secret'"));
    }
    let found = encryption_name(image.encryption());
    match (source.encrypt.format.as_deref(), found) {
        (Some(wanted), None) => {
            Err(format!("No encryption in image header, but options specified format '{wanted}'"))
        }
        (Some(wanted), Some(found)) if wanted != found => Err(format!(
            "Header reported '{found}' encryption format but options specify '{wanted}'"
        )),
        (None, _) | (Some(_), Some(_)) => Ok(()),
    }
}

/// Refuses files of a kind that no image is, in QEMU's words.
fn check_kind(source: &Source, writable: bool) -> Result<(), String> {
    let path = source.path();
    let Ok(metadata) = path.metadata() else { return Ok(()) };
    let kind = metadata.file_type();
    let wrong = match source.device {
        Some(_) => !kind.is_block_device() && !kind.is_char_device(),
        None => !kind.is_file() && !kind.is_block_device(),
    };
    let path = path.display();
    match (wrong, source.device) {
        (false, _) => Ok(()),
        (true, _) if kind.is_dir() && writable => {
            Err(format!("Could not open '{path}': Is a directory"))
        }
        (true, None) => Err(format!("'file' driver requires '{path}' to be a regular file")),
        (true, Some(driver)) => Err(format!(
            "'{driver}' driver requires '{path}' to be either a character or block device"
        )),
    }
}

/// Refuses a length of entries in the L2 cache that does not go with the image's clusters; ours have a length of their own.
fn check_cache_entry(source: &Source, image: &HostImage) -> Result<(), String> {
    let Some((len, cluster_size)) = source.l2_cache_entry_len.zip(image.cluster_size()) else {
        return Ok(());
    };
    match len.is_power_of_two() && (512..=cluster_size).contains(&len) {
        true => Ok(()),
        false => Err(format!(
            "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster_size})"
        )),
    }
}

/// What the engine is to know about the images below.
fn below(first: &source::Below) -> Result<Vec<Below>, String> {
    let mut found = Vec::new();
    let mut next = first;
    loop {
        match next {
            source::Below::AsNamed => return Ok(found),
            source::Below::Nothing => {
                found.push(Below::Nothing);
                return Ok(found);
            }
            source::Below::Like(source)
                if source.window.is_some() || source.data_file.is_some() =>
            {
                return Err("this option of a backing image is not supported yet".to_owned());
            }
            source::Below::Like(source) => {
                found.push(Below::Like(source.path.clone(), source.format));
                next = &source.below;
            }
        }
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
    match name {
        name if FOREIGN.contains(&name) => Err(format!("format '{name}' is not supported yet")),
        name if source::FOREIGN_PROTOCOLS.contains(&name) => {
            Err(format!("driver '{name}' is not supported"))
        }
        name => name.parse(),
    }
}

/// Whether QEMU has a driver called `name`: images may name formats that this program does not serve.
pub fn is_known_driver(name: &str) -> bool {
    name.parse::<Format>().is_ok()
        || FOREIGN.contains(&name)
        || source::FOREIGN_PROTOCOLS.contains(&name)
}

/// The format called `name`, of an image that is to be made.
pub fn parse_new_format(name: &str) -> Outcome<Format> {
    parse_format(name).map_err(|message| {
        Failure::new(match message.starts_with("Unknown") {
            true => format!("Unknown file format '{name}'"),
            false if NEVER_MADE.contains(&name) => {
                format!("Format driver '{name}' does not support image creation")
            }
            false => message,
        })
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
    // The host's own errors name the file once more, as QEMU's file layer does.
    if error.errno().is_some() {
        return message.replacen(
            "Could not open: ",
            &format!("Could not open '{}': ", file.display()),
            1,
        );
    }
    let message = program::plainly(message);
    match file == path {
        true => message.to_owned(),
        false => format!("Could not open backing file '{}': {message}", file.display()),
    }
}

/// Why the host failed a request on an open image, as QEMU says it.
pub fn reason_of(error: &Error) -> String {
    match (error.errno(), error.kind()) {
        (Some(errno), _) => qcow::error::reason(&std::io::Error::from_raw_os_error(errno)),
        // A request that does not lie inside the disk.
        (None, ErrorKind::Invalid) => "Input/output error".to_owned(),
        (None, _) => error.to_string(),
    }
}

/// Why a read or write failed, in the words of the host alone: damage counts as an error of its medium.
pub fn short_reason_of(error: &Error) -> String {
    let errno = error.errno().unwrap_or(nix::libc::EIO);
    qcow::error::reason(&std::io::Error::from_raw_os_error(errno))
}

/// A lost fight for a file's lock, in QEMU's two lines.
pub fn lock_message(file: &Path, message: &str) -> String {
    let what = message.split(": is another process").next().unwrap_or(message);
    format!("{what}\nIs another process using the image [{}]?", file.display())
}
