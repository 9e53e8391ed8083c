//! The child that reads the disk: it opens the image, confines itself, and hands over what the disk boots.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, setrlimit};
use qcow::disk::uring::{CacheMode, block_on, set_up_ring};
use qcow::engine::{Format, OpenOptions};
use qcow::gate::{BackingPolicy, HostGate};
use qcow::{ErrorKind, Image};
use serde_json::json;

use super::found::Entry;
use super::menu::{Chosen, choose};
use super::view::View;
use super::{INITRAMFS_LEN_MAX, KERNEL_LEN_MAX};
use crate::sandbox::confine_reader;

/// The name by which this program knows that it is the child: a user never types it.
pub const SUBCOMMAND: &str = "read-boot-files";
/// Most memory, and most seconds of processor time.
const MEMORY_MAX: u64 = 4 << 30;
const SECONDS_MAX: u64 = 30;

/// Runs the child. Standard output becomes the kernel, standard input the initramfs: both are files in memory. On standard
/// error it says in one line of JSON what they are, or why there are none.
pub fn run(arguments: &[String]) -> ExitCode {
    let said = match read(arguments) {
        Ok(said) => said,
        Err(error) => json!({ "error": format!("{error:#}") }),
    };
    eprintln!("{said}");
    ExitCode::SUCCESS
}

fn read(arguments: &[String]) -> Result<serde_json::Value> {
    let [path, format] = arguments else { anyhow::bail!("wrong arguments") };
    let image = open(Path::new(path), format)?;
    let kernel = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let initramfs = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    setrlimit(Resource::RLIMIT_CPU, SECONDS_MAX, SECONDS_MAX)?;
    setrlimit(Resource::RLIMIT_AS, MEMORY_MAX, MEMORY_MAX)?;
    confine_reader()?;
    let Chosen { partition, files, entry } = choose(&View::new(image))?;
    let hand_over = |mut to: &File, path: &str, len_max: u64| -> Result<u64> {
        let bytes = files.read(path, len_max)?.with_context(|| format!("{path}: there is none"))?;
        to.write_all(&bytes).context("cannot hand over")?;
        Ok(bytes.len() as u64)
    };
    hand_over(&kernel, &entry.kernel, KERNEL_LEN_MAX)?;
    let mut left = INITRAMFS_LEN_MAX;
    for path in &entry.initramfs {
        left -= hand_over(&initramfs, path, left)?;
        // Parts may begin at any multiple of four.
        let padding = left as usize % 4;
        (&initramfs).write_all(&[0; 4][..padding])?;
        left -= padding as u64;
    }
    let Entry { title, kernel, initramfs, command_line, .. } = entry;
    Ok(json!({
        "partition": partition,
        "title": title,
        "kernel": kernel,
        "initramfs": initramfs,
        "command_line": command_line,
    }))
}

fn open(path: &Path, format: &str) -> Result<Image<qcow::disk::uring::UringDisk>> {
    set_up_ring().context("cannot set up an io_uring")?;
    let gate = HostGate {
        cache: CacheMode::PageCache,
        // The disk's daemon has it, and a guest that does not run changes nothing.
        shared: true,
        backing: BackingPolicy::Beside(Vec::<PathBuf>::new()),
    };
    let format = match format {
        "qcow2" => Some(Format::Qcow2),
        "raw" => Some(Format::Raw),
        _ => None,
    };
    let options = OpenOptions { format, ..OpenOptions::default() };
    let image = block_on(Image::open(&gate, path, &options));
    let image = image.map_err(|e| match e.kind() {
        ErrorKind::Locked => anyhow::anyhow!("{e}: somebody else uses it"),
        _ => e.into(),
    })?;
    ensure!(image.virtual_size() > 0, "{}: an empty disk", path.display());
    Ok(image)
}
