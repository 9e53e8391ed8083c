//! `qcow compare`: whether two images hold the same disk.

use std::path::{Path, PathBuf};

use qcow::disk::uring::block_on;

use crate::cache::Cache;
use crate::content::{self, Difference, Side, compare};
use crate::failure::{Failure, Outcome};
use crate::image::{HostImage, Opening};
use crate::objects;
use crate::output::say;
use crate::progress::Progress;

const COMMAND: &str = "compare";

/// The disks differ.
const DIFFERENT: u8 = 1;
/// An image does not open.
const NOT_OPENED: u8 = 2;
/// It cannot be told which parts of an image hold data.
const NOT_MAPPED: u8 = 3;
/// An image cannot be read.
const NOT_READ: u8 = 4;

/// Compare the content of two images; exit code 0 same, 1 different, 2 cannot open, 3 or 4 cannot read
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Say nothing about the result; the exit code tells
    #[arg(short, long)]
    quiet: bool,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// Format of the first image: qcow2, raw or luks; found out if not given
    #[arg(short, long, value_name = "FMT")]
    format_a: Option<String>,
    /// The same as --format-a
    #[arg(long = "a-format", value_name = "FMT", conflicts_with = "format_a")]
    a_format: Option<String>,
    /// Format of the second image
    #[arg(short = 'F', long = "b-format", value_name = "FMT")]
    b_format: Option<String>,
    /// The files are option strings, such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,
    /// Images of different size or allocation differ, too
    #[arg(short, long)]
    strict: bool,
    /// Cache mode: writeback (default), none, directsync, writethrough or unsafe
    #[arg(short = 'T', long, value_name = "MODE")]
    cache: Option<String>,
    /// Read the images even while other programs write them
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Definition of a secret: secret,id=ID,file=FILE[,format=raw|base64]. All of FILE is the passphrase, a line feed at its end too
    #[arg(long, value_name = "DEFINITION", value_parser = objects::checked_for_two)]
    object: Vec<String>,
    /// The two images
    #[arg(value_name = "FILE1 FILE2")]
    files: Vec<PathBuf>,
}

/// Runs the command; its exit code.
pub fn run(args: &Args) -> Outcome<u8> {
    let [first, second] = args.files.as_slice() else {
        return Err(Failure::usage(COMMAND, "Expecting two image file names"));
    };
    let cache = Cache::parse_option(args.cache.as_deref(), "source cache", Cache::WRITEBACK)
        .map_err(|f| f.with_code(NOT_OPENED))?;
    let open = |path: &Path, format: Option<&str>| {
        let (image_opts, shared) = (args.image_opts, args.force_share);
        let opening = Opening { format, image_opts, cache, shared, ..Opening::default() };
        opening.open(path).map_err(|failure| failure.with_code(NOT_OPENED))
    };
    let a = open(first, args.format_a.as_deref().or(args.a_format.as_deref()))?;
    let b = open(second, args.b_format.as_deref())?;
    let mut progress = Progress::new(args.progress, a.virtual_size().max(b.virtual_size()));
    let verdict = judge(args, (first, &a), (second, &b), &mut progress)?;
    if !args.quiet {
        say!("{}", verdict.text);
    }
    Ok(if verdict.same { 0 } else { DIFFERENT })
}

struct Verdict {
    same: bool,
    text: String,
}

fn judge(
    args: &Args,
    a: (&Path, &HostImage),
    b: (&Path, &HostImage),
    progress: &mut Progress,
) -> Outcome<Verdict> {
    let (a_size, b_size) = (a.1.virtual_size(), b.1.virtual_size());
    if args.strict && a_size != b_size {
        return Ok(different("Strict mode: Image size mismatch!".to_owned()));
    }
    let (common, total) = (a_size.min(b_size), a_size.max(b_size));
    let sides = [a, b].map(|(path, image)| Side { path, image, start: 0 });
    let found = block_on(compare(sides, common, args.strict, |len| progress.advance(len)));
    if let Some(difference) = found.map_err(told)? {
        return Ok(different(difference.to_string()));
    }
    if a_size != b_size {
        if !args.quiet {
            say!("Warning: Image size mismatch!");
        }
        let longer = if a_size > b_size { a } else { b };
        let side = Side { path: longer.0, image: longer.1, start: common };
        let rest = content::find_nonzero(side, total - common, |len| progress.advance(len));
        if let Some(at) = block_on(rest).map_err(told)? {
            return Ok(different(Difference::Content(common + at).to_string()));
        }
    }
    Ok(Verdict { same: true, text: "Images are identical.".to_owned() })
}

fn different(text: String) -> Verdict {
    Verdict { same: false, text }
}

fn told(error: content::Error) -> Failure {
    match error {
        content::Error::Map(message) => Failure::new(message).with_code(NOT_MAPPED),
        content::Error::Read(message) => Failure::new(message).with_code(NOT_READ),
    }
}
