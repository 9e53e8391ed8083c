//! `qcow snapshot`: lists, creates, applies and deletes internal snapshots.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ArgAction;
use qcow::disk::uring::block_on;
use qcow::engine::{Format, SnapshotChoice};
use qcow::{Error, ErrorKind};

use crate::arguments::{ImageArgs, one_file};
use crate::failure::{Failure, Outcome};
use crate::image::{HostImage, Opening};
use crate::info;
use crate::output;
use crate::program;

const COMMAND: &str = "snapshot";
/// Longest name that is stored, in bytes; longer ones are cut, as QEMU cuts them.
const NAME_BYTES_MAX: usize = 255;
/// How the message begins that a snapshot of another size cannot be applied; QEMU gives it a line of its own.
const SIZE_IS_FIXED: &str = "Can't resize";

/// List, create, apply or delete internal snapshots
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// List the snapshots; the default
    #[arg(short, long, action = ArgAction::Count)]
    list: u8,
    /// Make the disk what it was at this snapshot, by id or name; what was written since is lost
    #[arg(short, long, value_name = "SNAPSHOT")]
    apply: Vec<OsString>,
    /// Keep the disk as it is now as a snapshot of this name
    #[arg(short, long, value_name = "NAME")]
    create: Vec<OsString>,
    /// Delete the snapshot of this name
    #[arg(short, long, value_name = "NAME")]
    delete: Vec<OsString>,
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
    let named = args.apply.len() + args.create.len() + args.delete.len();
    if named + usize::from(args.list) > 1 {
        return Err(Failure::usage(COMMAND, "Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let path = one_file(COMMAND, &args.files)?;
    match (args.apply.first(), args.create.first(), args.delete.first()) {
        (Some(which), ..) => change(args, path, |image| apply(image, which)),
        (_, Some(name), _) => change(args, path, |image| create(image, name)),
        (.., Some(name)) => change(args, path, |image| delete(image, name)),
        (None, None, None) => list(args, path),
    }
}

fn list(args: &Args, path: &Path) -> Outcome {
    let opening = Opening { shared: args.force_share, ..args.image.opening() };
    let snapshots = block_on(opening.open(path)?.snapshots())?;
    if args.json {
        output::json(&snapshots.iter().map(info::snapshot_json).collect::<Vec<_>>());
    } else if !snapshots.is_empty() {
        info::print_snapshots(&snapshots);
    }
    Ok(())
}

/// Opens the image for writing and closes it after `verb`, also where that fails. What an earlier crash has leaked is given
/// back first.
fn change(args: &Args, path: &Path, verb: impl FnOnce(&HostImage) -> Outcome) -> Outcome {
    let opening = Opening { shared: args.force_share, writable: true, ..args.image.opening() };
    let image = opening.open_to_write(path)?;
    if image.needs_recovery() {
        block_on(image.recover_leaks(&AtomicBool::new(false)))?;
    }
    let done = verb(&image);
    let closed = block_on(image.close());
    done.and(closed.map_err(Failure::from))
}

fn create(image: &HostImage, name: &OsStr) -> Outcome {
    let bytes = name.as_bytes();
    let stored = OsStr::from_bytes(&bytes[..bytes.len().min(NAME_BYTES_MAX)]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // QEMU takes the time in microseconds.
    let now = Duration::from_micros(now.as_micros() as u64);
    let created = block_on(image.create_snapshot(stored, now));
    created.map(drop).map_err(|e| {
        let name = name.display();
        Failure::new(format!("Could not create snapshot '{name}': {}", reason(&e)))
    })
}

fn apply(image: &HostImage, which: &OsStr) -> Outcome {
    let applied = block_on(image.apply_snapshot(&SnapshotChoice::IdOrName(which.to_owned())));
    applied.map_err(|e| {
        let why = match e.kind() {
            ErrorKind::Denied => e.message().to_owned(),
            _ if image.format() != Format::Qcow2 => {
                "Block driver does not support snapshots".to_owned()
            }
            _ => format!("Failed to load snapshot: {}", reason(&e)),
        };
        let failure = format!("Could not apply snapshot '{}': {why}", which.display());
        Failure::new(match e.message().starts_with(SIZE_IS_FIXED) {
            true => format!("{}\n{}: {failure}", e.message(), program::name()),
            false => failure,
        })
    })
}

fn delete(image: &HostImage, name: &OsStr) -> Outcome {
    let deleted = block_on(image.delete_snapshot(&SnapshotChoice::Name(name.to_owned())));
    deleted.map_err(|e| {
        // Where there can be no snapshots, QEMU does not find this one.
        let why = match e.kind() {
            ErrorKind::NotFound | ErrorKind::Unsupported => "snapshot not found".to_owned(),
            _ => reason(&e),
        };
        Failure::new(format!("Could not delete snapshot '{}': {why}", name.display()))
    })
}

/// Why a verb failed, with QEMU's words for an error number where it has nothing more to say.
fn reason(error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "No such file or directory".to_owned(),
        ErrorKind::Unsupported => "Operation not supported".to_owned(),
        ErrorKind::Limit => "File too large".to_owned(),
        ErrorKind::Invalid => "Invalid argument".to_owned(),
        ErrorKind::NoSpace => "No space left on device".to_owned(),
        _ => error.message().to_owned(),
    }
}
