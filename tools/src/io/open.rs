//! Opening the image that commands work on.

use std::path::PathBuf;

use qcow::Image;
use qcow::disk::uring::{CacheMode, UringDisk};
use qcow::engine::{CreateOptions, Discard, Format};
use qcow::format::header::CryptMethod;

use crate::cache::Cache;
use crate::failure::{Failure, Outcome};
use crate::image::{HostImage, Opening};
use crate::new_image::NewImage;
use crate::partial::PartialFile;
use crate::source::{self, Options, Source};

/// How to open an image.
#[derive(Clone, Debug)]
pub struct OpenArgs {
    /// What the image is called, unless `options` say all.
    pub name: Option<PathBuf>,
    pub options: Options,
    pub read_only: bool,
    pub snapshot: bool,
    pub shared: bool,
    /// What is read from backing images is written to the top image.
    pub copy_on_read: bool,
    /// The kernel's old asynchronous I/O is asked for, which needs direct I/O. Ours serves as well.
    pub native_aio: bool,
    pub cache: Cache,
    pub discard: Discard,
}

/// An open image.
#[derive(Debug)]
pub struct OpenImage {
    pub image: Image<UringDisk>,
    /// How it was opened.
    pub args: OpenArgs,
    /// The top image's file, and what was said about it.
    pub source: Source,
    /// Writes must not make a raw image look like one of another format, since nobody said that it is raw.
    pub guessed_raw: bool,
    /// The temporary image of `-s`, removed in the end.
    pub temporary: Option<PartialFile>,
}

/// The cache mode called `name`; `nocache` is short for `none`. Without either, every write is flushed.
pub fn parse_cache(name: Option<&str>, nocache: bool) -> Outcome<Cache> {
    Cache::parse_option(name.or(nocache.then_some("none")), "cache", Cache::WRITETHROUGH)
}

/// The discard mode called `name`.
pub fn parse_discard(name: Option<&str>) -> Outcome<Discard> {
    match name {
        None | Some("unmap" | "on") => Ok(Discard::Unmap),
        Some("ignore" | "off") => Ok(Discard::Ignore),
        Some(name) => Err(Failure::new(format!("Invalid discard option: {name}"))),
    }
}

/// Whether the way of doing I/O called `name` is the kernel's old one.
pub fn parse_aio(name: Option<&str>, native: bool) -> Outcome<bool> {
    match name {
        None => Ok(native),
        Some("threads" | "io_uring") => Ok(false),
        Some("native") => Ok(true),
        Some(name) => Err(Failure::new(format!("Invalid aio option: {name}"))),
    }
}

/// Opens the image; the error is the reason, in QEMU's words.
pub fn open(args: &OpenArgs) -> Result<OpenImage, String> {
    let source = source::with_options(args.name.as_deref(), args.options.clone())?;
    let opening = Opening {
        writable: !args.read_only && !args.snapshot,
        cache: args.cache,
        shared: args.shared,
        discard: args.discard,
        ..Opening::default()
    };
    let direct = args.cache.mode == CacheMode::Direct || source.common.direct == Some(true);
    if args.native_aio && !direct {
        return Err(
            "aio=native was specified, but it requires cache.direct=on, which was not specified."
                .to_owned(),
        );
    }
    let image = opening.open_source(&source)?;
    if args.copy_on_read && !args.snapshot && !image.is_writable() {
        return Err("Can't use copy-on-read on read-only device".to_owned());
    }
    let guessed_raw = source.format.is_none() && image.format() == Format::Raw;
    if args.snapshot && image.encryption() != CryptMethod::None {
        return Err("an encrypted image: the temporary one would hold clear text".to_owned());
    }
    if args.snapshot {
        return open_on_top(args, &source, &image);
    }
    Ok(OpenImage { image, args: args.clone(), source, guessed_raw, temporary: None })
}

/// Puts a temporary image on top of `base` and opens that.
fn open_on_top(args: &OpenArgs, source: &Source, base: &HostImage) -> Result<OpenImage, String> {
    let absolute = source.path().canonicalize().map_err(|e| qcow::error::reason(&e))?;
    let options = CreateOptions {
        size: base.virtual_size(),
        backing: Some((absolute.into_os_string(), Some(base.format().to_string()))),
        ..CreateOptions::default()
    };
    let (path, temporary) = write_temporary(&NewImage::Qcow2(options))
        .map_err(|failure| format!("cannot make a temporary image: {failure}"))?;
    let args = OpenArgs { cache: Cache::UNSAFE, ..args.clone() };
    let source = Source { path: Some(path), format: Some(Format::Qcow2), ..Source::default() };
    let open = open_top(&args, source)?;
    Ok(OpenImage { temporary: Some(temporary), ..open })
}

/// Opens a temporary image that is there already.
pub fn open_top(args: &OpenArgs, source: Source) -> Result<OpenImage, String> {
    let opening = Opening {
        writable: !args.read_only,
        cache: Cache::UNSAFE,
        discard: args.discard,
        ..Opening::default()
    };
    let image = opening.open_source(&source)?;
    Ok(OpenImage { image, args: args.clone(), source, guessed_raw: false, temporary: None })
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
