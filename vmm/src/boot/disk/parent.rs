//! The monitor's side: starts the child that reads the disk, and takes over what it hands over.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;

use super::reader::SUBCOMMAND;
use crate::boot::{BootFile, BootFiles};
use crate::disks::DiskSpec;

/// Most bytes that the child may say.
const SAID_MAX: u64 = 256 << 10;

/// Reads out of `disk` what it boots, and tells that in a line.
pub fn find(disk: &DiskSpec) -> Result<BootFiles> {
    let name = disk.path.display().to_string();
    find_unnamed(disk).with_context(|| format!("{name}: cannot boot from it"))
}

fn find_unnamed(disk: &DiskSpec) -> Result<BootFiles> {
    let (kernel, initramfs) = (memory_file("kernel")?, memory_file("initramfs")?);
    let mut child = Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .arg(&disk.path)
        .arg(disk.format.as_deref().unwrap_or("guess"))
        .env_clear()
        .stdin(initramfs.try_clone()?)
        .stdout(kernel.try_clone()?)
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the process that reads it")?;
    let mut said = String::new();
    let pipe = child.stderr.take().context("no pipe")?;
    let heard = pipe.take(SAID_MAX).read_to_string(&mut said);
    let status = child.wait().context("cannot wait for the process that reads it")?;
    if let Some(signal) = status.signal() {
        bail!(
            "the process that reads it was stopped by signal {signal}: the disk is damaged or hostile"
        );
    }
    heard.context("the process that reads it says strange things")?;
    let said: Value = serde_json::from_str(said.trim()).map_err(|_| {
        anyhow!(
            "the process that reads it failed: {}",
            said.lines().next().unwrap_or("it said nothing")
        )
    })?;
    if let Some(error) = said["error"].as_str() {
        bail!("{}", printable(error));
    }
    let text = |key: &str| said[key].as_str().map(printable).unwrap_or_default();
    let count = said["initramfs"].as_array().map_or(0, Vec::len);
    ensure!(kernel.metadata()?.len() > 0, "the kernel {} is empty", text("kernel"));
    eprintln!(
        "vmm: booting {} of {}, {}: {}",
        text("kernel"),
        disk.path.display(),
        text("partition"),
        text("title")
    );
    let named = |file, path: String| BootFile { file, name: format!("{path} of the disk") };
    Ok(BootFiles {
        kernel: named(kernel, text("kernel")),
        initramfs: (count > 0).then(|| named(initramfs, "the initramfs".to_owned())),
        command_line: text("command_line"),
    })
}

fn memory_file(name: &str) -> Result<File> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC);
    Ok(File::from(fd.context("cannot make a file in memory")?))
}

/// Without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
