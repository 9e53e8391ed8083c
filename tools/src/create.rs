//! `qcow create`: a new, empty image.

use std::path::{Path, PathBuf};

use crate::bounded::parse_image_size;
use crate::creation_options;
use crate::failure::{Failure, Outcome};
use crate::image::{self, Opening};
use crate::keyval::{self, OptionValues};
use crate::new_image::{self, NewImage};
use crate::objects;
use crate::source;

const COMMAND: &str = "create";

/// Make a new, empty image
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Say nothing unless something is wrong
    #[arg(short, long)]
    quiet: bool,
    /// Format of the new image: qcow2, raw or luks
    #[arg(short, long, value_name = "FMT", default_value = "raw")]
    format: String,
    /// Options of the format, as name=value,name=value (a comma in a value is doubled); '-o help' lists them
    #[arg(short, long, value_name = "OPTIONS", value_parser = keyval::list)]
    options: Vec<String>,
    /// Stack the new image on this one: what is not written to the new image is read from it
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the backing image; required with -b
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Do not look at the backing image, which may be missing; then SIZE is required
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Definition of a secret: secret,id=ID,file=FILE[,format=raw|base64]. All of FILE is the passphrase, a line feed at its
    /// end too
    #[arg(long, value_name = "DEFINITION", value_parser = objects::checked)]
    object: Vec<String>,
    /// The new image's file (an existing one is overwritten), and its size in bytes, with an optional suffix
    /// k, M, G, T, P or E (powers of 1024); the default size is that of the backing image
    #[arg(value_name = "FILE [SIZE]")]
    file_and_size: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    if keyval::asks_for_help(&args.options) {
        let format = image::parse_new_format(&args.format)?;
        creation_options::help(format, !args.file_and_size.is_empty());
        return Ok(());
    }
    let (path, size) = match args.file_and_size.as_slice() {
        [] => return Err(Failure::usage(COMMAND, "Expecting image file name")),
        [path] => (path, None),
        [path, size] => (path, Some(parse_image_size(&size.to_string_lossy())?)),
        [_, size, extra, ..] => {
            parse_image_size(&size.to_string_lossy())?;
            let message = format!("Unexpected argument: {}", extra.display());
            return Err(Failure::usage(COMMAND, message));
        }
    };
    create(args, path, size).map_err(|failure| failure.context(path.display()))
}

fn create(args: &Args, name: &Path, size: Option<u64>) -> Outcome {
    let format = image::parse_new_format(&args.format)?;
    let path = &source::new_file(name).map_err(Failure::new)?;
    let mut values = creation_options::parse(format, &args.options)?;
    if let Some(size) = size {
        if values.number("size").is_some() {
            return Err(Failure::new("The image size must be specified only once"));
        }
        values.set_number("size", size);
    }
    let (backing, backing_format) = (args.backing.as_deref(), args.backing_format.as_deref());
    creation_options::set_backing(&mut values, format, backing, backing_format)?;
    if let Some(size) = check_backing(args, path, &values)?
        && values.number("size").is_none()
    {
        values.set_number("size", size);
    }
    if values.number("size").is_none() {
        return Err(Failure::new("Image creation needs a size parameter"));
    }
    if !args.quiet {
        creation_options::announce(name, format, &values);
    }
    NewImage::plan(format, &values)?.write(path)?.keep();
    Ok(())
}

/// Looks at the backing image, if there is one and it is to be looked at. Returns its size in bytes.
fn check_backing(args: &Args, path: &Path, values: &OptionValues) -> Outcome<Option<u64>> {
    let Some(name) = values.text("backing_file") else { return Ok(None) };
    if name.is_empty() {
        return Err(Failure::new("Expected backing file name, got empty string"));
    }
    if Path::new(name) == path {
        let message = "Error: Trying to create an image with the same filename as the backing file";
        return Err(Failure::new(message));
    }
    let format = values.text("backing_fmt");
    if args.backing_unsafe {
        return match format {
            None => Err(Failure::new("Backing file specified without backing format")),
            Some(_) => Ok(None),
        };
    }
    let backing = new_image::backing_path(path, name)?;
    let opening = Opening { format, shared: true, without_keys: true, ..Opening::default() };
    let image = opening
        .open_plainly(&backing)
        .map_err(|reason| Failure::new(format!("{reason}\nCould not open backing image.")))?;
    if format.is_none() {
        return Err(Failure::new(format!(
            "Backing file specified without backing format\nDetected format of {}.",
            image.format()
        )));
    }
    Ok(Some(image.virtual_size()))
}
