//! `qcow snapshot`: lists, creates, applies and deletes internal snapshots.

use std::path::{Path, PathBuf};

use qcow::disk::uring::block_on;

use crate::arguments::{ImageArgs, one_file};
use crate::failure::{Failure, Outcome};
use crate::image::Opening;
use crate::output;
use crate::{info, unbuilt};

const COMMAND: &str = "snapshot";

/// List, create, apply or delete internal snapshots
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// List the snapshots; the default
    #[arg(short, long)]
    list: bool,
    /// Make the disk what it was at this snapshot, by id or name; what was written since is lost
    #[arg(short, long, value_name = "SNAPSHOT")]
    apply: Option<String>,
    /// Keep the disk as it is now as a snapshot of this name
    #[arg(short, long, value_name = "NAME")]
    create: Option<String>,
    /// Delete the snapshot of this name
    #[arg(short, long, value_name = "NAME")]
    delete: Option<String>,
    /// Say nothing unless something is wrong
    #[arg(short, long)]
    quiet: bool,
    /// List the snapshots even while another program writes the image
    #[arg(short = 'U', long)]
    force_share: bool,
    /// List the snapshots as JSON
    #[arg(long)]
    json: bool,
    /// The image
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let given = [args.list, args.apply.is_some(), args.create.is_some(), args.delete.is_some()];
    if given.into_iter().filter(|&given| given).count() > 1 {
        return Err(Failure::usage(COMMAND, "Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let path = one_file(COMMAND, &args.files)?;
    args.image.refuse_unbuilt()?;
    unbuilt::refuse_option(args.apply.is_some(), "-a")?;
    unbuilt::refuse_option(args.create.is_some(), "-c")?;
    unbuilt::refuse_option(args.delete.is_some(), "-d")?;
    list(args, path)
}

fn list(args: &Args, path: &Path) -> Outcome {
    let opening =
        Opening { format: args.image.format(), shared: args.force_share, ..Opening::default() };
    let snapshots = block_on(opening.open(path)?.snapshots())?;
    if args.json {
        output::json(&snapshots.iter().map(info::snapshot_json).collect::<Vec<_>>());
    } else if !snapshots.is_empty() {
        info::print_snapshots(&snapshots);
    }
    Ok(())
}
