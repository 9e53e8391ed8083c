//! `qcow resize`: another size for a disk.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow::ErrorKind;
use qcow::disk::uring::block_on;
use qcow::engine::{Format, Preallocation, Resize};

use crate::arguments::ImageArgs;
use crate::bitmap;
use crate::failure::{Failure, Outcome};
use crate::image::{HostImage, Opening};
use crate::keyval::{Kind, OptionSpec, OptionValues};
use crate::new_image;
use crate::output::say;

const COMMAND: &str = "resize";

/// Sizes of qcow2 images are whole sectors of this many bytes.
const SECTOR: u64 = 512;

/// Change the size of the disk in an image
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Say nothing unless something is wrong
    #[arg(short, long)]
    quiet: bool,
    /// Allow the disk to become smaller; everything behind its new end is lost
    #[arg(long)]
    shrink: bool,
    /// What is laid out in advance of the bytes that the disk grows by: off (default), metadata, falloc or full
    #[arg(long, value_name = "MODE")]
    preallocation: Option<String>,
    /// A size that starts with a minus sign: see [`mark_decrease`].
    #[arg(long = DECREASE, hide = true)]
    decrease: Option<String>,
    /// The image, and its new size in bytes, with an optional suffix k, M, G, T, P or E (powers of 1024); with + or - in front
    /// the disk grows or shrinks by that much
    #[arg(value_name = "FILE [+-]SIZE")]
    file_and_size: Vec<PathBuf>,
}

/// The hidden option behind a size such as `-512M`.
const DECREASE: &str = "decrease-by";

/// Options whose value is an argument of its own.
const VALUED: [&str; 4] = ["-f", "--format", "--object", "--preallocation"];

/// A size such as `-512M` looks like options. Behind the file's name it is a size; it is turned into an option here, so
/// that the parser of arguments sees none but real ones.
pub fn mark_decrease(arguments: &[OsString]) -> Vec<OsString> {
    let mut marked = arguments.to_vec();
    let mut files = 0;
    let mut is_value = false;
    for argument in marked.iter_mut().skip(2) {
        let bytes = argument.as_bytes();
        let looks_negative = bytes.len() > 1 && bytes[0] == b'-' && bytes[1].is_ascii_digit();
        if std::mem::replace(&mut is_value, false) {
            continue;
        }
        if bytes == b"--" {
            break;
        }
        if files == 1 && looks_negative {
            let mut option = OsString::from(format!("--{DECREASE}="));
            option.push(&*argument);
            *argument = option;
            break;
        }
        match bytes.first() {
            Some(b'-') if bytes.len() > 1 => {
                is_value = VALUED.iter().any(|option| option.as_bytes() == bytes);
            }
            _ => files += 1,
        }
    }
    marked
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let preallocation = parse_preallocation(args.preallocation.as_deref())?;
    let mut operands: Vec<&Path> = args.file_and_size.iter().map(PathBuf::as_path).collect();
    operands.extend(args.decrease.as_deref().map(Path::new));
    let (path, size) = match operands.as_slice() {
        [path, size] => (*path, size.to_string_lossy()),
        [_, _, ..] => return Err(Failure::usage(COMMAND, "Extra argument(s) in command line")),
        _ => return Err(Failure::usage(COMMAND, "Expecting image file name and size")),
    };
    let change = Change::parse(&size)?;
    let opening = Opening { writable: true, ..args.image.opening() };
    let image = opening.open_to_write(path)?;
    let resized = resize(&image, path, change, args.shrink, preallocation);
    let closed = block_on(async {
        image.trim().await?;
        image.close().await
    });
    resized?;
    closed.map_err(|e| Failure::new(e.message()))?;
    if !args.quiet {
        say!("Image resized.");
    }
    Ok(())
}

/// The size that is asked for.
#[derive(Clone, Copy, Debug)]
enum Change {
    To(u64),
    By(i128),
}

impl Change {
    fn parse(text: &str) -> Outcome<Self> {
        let bytes = |text: &str| -> Outcome<u64> {
            const SPECS: &[OptionSpec] =
                &[OptionSpec::new("size", Kind::Size, "Virtual disk size")];
            let list = format!("size={}", text.replace(',', ",,"));
            let values = OptionValues::parse(&[list], &[SPECS])?;
            Ok(values.number("size").unwrap_or(0))
        };
        match text.split_at_checked(1) {
            Some(("+", more)) => bytes(more).map(|more| Self::By(more.into())),
            Some(("-", less)) => bytes(less).map(|less| Self::By(-i128::from(less))),
            _ => bytes(text).map(Self::To),
        }
    }

    fn apply(self, current: u64) -> Outcome<u64> {
        let size = match self {
            Self::To(size) => size.into(),
            Self::By(change) => i128::from(current) + change,
        };
        match i64::try_from(size) {
            Ok(size @ 1..) => Ok(size as u64),
            _ => Err(Failure::new("New image size must be positive")),
        }
    }
}

fn parse_preallocation(mode: Option<&str>) -> Outcome<Preallocation> {
    let Some(name) = mode else { return Ok(Preallocation::Off) };
    new_image::preallocation_called(name)
        .ok_or_else(|| Failure::new(format!("Invalid preallocation mode '{name}'")))
}

fn resize(
    image: &HostImage,
    path: &Path,
    change: Change,
    shrink: bool,
    preallocation: Preallocation,
) -> Outcome {
    let current = image.virtual_size();
    let size = change.apply(current)?;
    if size <= current && preallocation != Preallocation::Off {
        return Err(Failure::new("Preallocation can only be used for growing images"));
    }
    if size < current && !shrink {
        let failure = Failure::new("Use the --shrink option to perform a shrink operation.");
        return Err(failure.with_warning(
            "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, \
             make sure there is no important data there.",
        ));
    }
    if image.format() == Format::Qcow2 && !size.is_multiple_of(SECTOR) {
        return Err(Failure::new(format!("The new size must be a multiple of {SECTOR}")));
    }
    if image.format() == Format::Raw && new_image::is_device(path) && size != current {
        return Err(Failure::new("Cannot resize device files"));
    }
    let resized = block_on(image.resize_as(size, &Resize { shrink, preallocation }));
    resized.map_err(|e| match e.kind() {
        ErrorKind::Limit => Failure::new("Failed to grow the L1 table: File too large"),
        _ => Failure::new(bitmap::with_hint(e.message())),
    })
}
