//! Opening the image that commands work on.

use std::path::PathBuf;

use qcow::Image;
use qcow::disk::uring::UringDisk;
use qcow::engine::{CreateOptions, Discard, Format};

use crate::cache::Cache;
use crate::failure::{Failure, Outcome};
use crate::image::{self, HostImage, Opening};
use crate::new_image::NewImage;
use crate::partial::PartialFile;

/// How to open an image.
#[derive(Debug)]
pub struct OpenArgs {
    pub path: PathBuf,
    pub format: Option<String>,
    pub read_only: bool,
    pub snapshot: bool,
    pub shared: bool,
    pub cache: Cache,
    pub discard: Discard,
}

/// An open image.
#[derive(Debug)]
pub struct OpenImage {
    pub image: Image<UringDisk>,
    /// The top image's file.
    pub path: PathBuf,
    pub cache: Cache,
    /// Writes must not make a raw image look like one of another format, since nobody said that it is raw.
    pub guessed_raw: bool,
    /// The temporary image of `-s`, removed in the end.
    _temporary: Option<PartialFile>,
}

/// The cache mode called `name`; `nocache` is short for `none`.
pub fn parse_cache(name: Option<&str>, nocache: bool) -> Outcome<Cache> {
    Cache::parse_option(name.or(nocache.then_some("none")), "cache", Cache::WRITEBACK)
}

/// The discard mode called `name`.
pub fn parse_discard(name: Option<&str>) -> Outcome<Discard> {
    match name {
        None | Some("unmap" | "on") => Ok(Discard::Unmap),
        Some("ignore" | "off") => Ok(Discard::Ignore),
        Some(name) => Err(Failure::new(format!("Invalid discard option: {name}"))),
    }
}

/// Opens the image; the error is the reason, in QEMU's words.
pub fn open(args: &OpenArgs) -> Result<OpenImage, String> {
    let opening = Opening {
        format: args.format.as_deref(),
        writable: !args.read_only && !args.snapshot,
        cache: args.cache,
        shared: args.shared,
        discard: args.discard,
        ..Opening::default()
    };
    let image = opening.open_plainly(&args.path)?;
    let guessed_raw = args.format.is_none() && image.format() == Format::Raw;
    if guessed_raw && !args.read_only {
        image::warn_of_guess(&args.path);
    }
    if args.snapshot {
        return open_on_top(args, &image);
    }
    let (path, cache) = (args.path.clone(), args.cache);
    Ok(OpenImage { image, path, cache, guessed_raw, _temporary: None })
}

/// Puts a temporary image on top of `base` and opens that.
fn open_on_top(args: &OpenArgs, base: &HostImage) -> Result<OpenImage, String> {
    let absolute = args.path.canonicalize().map_err(|e| qcow::error::reason(&e))?;
    let options = CreateOptions {
        size: base.virtual_size(),
        backing: Some((absolute.into_os_string(), Some(base.format().to_string()))),
        ..CreateOptions::default()
    };
    let (path, temporary) = write_temporary(&NewImage::Qcow2(options))
        .map_err(|failure| format!("cannot make a temporary image: {failure}"))?;
    let opening = Opening {
        format: Some("qcow2"),
        writable: !args.read_only,
        cache: Cache::UNSAFE,
        discard: args.discard,
        ..Opening::default()
    };
    let image = opening.open_plainly(&path)?;
    let cache = Cache::UNSAFE;
    Ok(OpenImage { image, path, cache, guessed_raw: false, _temporary: Some(temporary) })
}

/// Writes `image` to a new file, which nobody else has put there or may read.
fn write_temporary(image: &NewImage) -> Outcome<(PathBuf, PartialFile)> {
    let host = |error: &std::io::Error| {
        let directory = std::env::temp_dir();
        Failure::new(format!("{}: {}", directory.display(), qcow::error::reason(error)))
    };
    let file = tempfile::Builder::new().prefix("qcow-io-").suffix(".qcow2").tempfile();
    let path = file.map_err(|e| host(&e))?.into_temp_path();
    let partial = image.write(&path)?;
    // From here on, `partial` sees to its removal.
    let path = path.keep().map_err(|e| host(&e.error))?;
    Ok((path, partial))
}
