//! `qcow info`: what images say about themselves.
//!
//! [`describe`] reads it, [`human`] and [`json`] tell it. Nothing but headers and snapshot tables is read, so that
//! images with features that are not served yet are described too.

pub mod describe;
pub mod encryption;
pub mod human;
mod json;
mod sealed;

use std::path::PathBuf;

use crate::arguments::{ImageArgs, OutputArgs, OutputFormat, one_file};
use crate::failure::Outcome;
use crate::image::Opening;
use crate::output::{self, say};

pub use describe::describe;
pub use human::{format_specific, luks_specific, print_snapshots};
pub use json::snapshot as snapshot_json;

const COMMAND: &str = "info";

/// Tell what an image says about itself
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Tell of the backing images, too
    #[arg(short, long)]
    backing_chain: bool,
    /// Read the image even while another program writes it
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// The image
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let output = args.output.format(COMMAND)?;
    let path = one_file(COMMAND, &args.files)?;
    let opening = Opening { shared: args.force_share, ..args.image.opening() };
    let chain = describe::chain(path, &opening, args.backing_chain)?;
    match output {
        OutputFormat::Json if args.backing_chain => {
            output::json(&chain.iter().map(json::to_json).collect::<Vec<_>>());
        }
        OutputFormat::Json => {
            chain.iter().map(json::to_json).for_each(|image| output::json(&image));
        }
        OutputFormat::Human => {
            for (number, image) in chain.iter().enumerate() {
                if number > 0 {
                    say!("");
                }
                human::print(image);
            }
        }
    }
    Ok(())
}
