//! The images that daemons are compared on.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::daemon::{Daemon, Settings, Template};
use crate::load::plan::{Access, Mix, Op};
use crate::load::{self, Job, Limit};

/// Makes an image of `size` bytes (a multiple of 1 MiB) at `path` whose blocks are all written,
/// through the daemon that `writer` names.
pub fn make_full(path: &Path, size: u64, writer: &Template, settings: &Settings) -> Result<()> {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", &settings.format]).arg(path).arg(size.to_string());
    run(&mut create)?;
    let socket = path.with_extension("sock");
    let daemon = Daemon::start(writer, path, &socket, settings)?;
    let chunk = 1 << 20;
    let job = Job {
        depth: 4,
        block_size: chunk,
        mix: Mix::only(Op::Write),
        access: Access::Sequential,
        limit: Limit::Requests(size / chunk),
        warmup: Duration::ZERO,
        ..Job::new(socket)
    };
    let report = load::run(&job)?;
    ensure!(report.errors == 0, "{}: cannot be filled", path.display());
    daemon.stop()
}

/// Copies an image, waits until it is on disk, and leaves it in the page cache.
pub fn copy(source: &Path, target: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto", "--"]).arg(source).arg(target);
    run(&mut copy)?;
    // Otherwise the kernel would write it back under the first case's feet.
    File::open(target)
        .and_then(|file| file.sync_all())
        .with_context(|| target.display().to_string())?;
    warm(target)
}

/// Brings all of an image into the page cache.
pub fn warm(image: &Path) -> Result<()> {
    let read = File::open(image).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
    read.map(drop).with_context(|| image.display().to_string())
}

/// Bytes of L2 cache with which QEMU keeps all mappings of a qcow2 image in memory.
pub fn l2_cache(image: &Path) -> Result<u64> {
    let mut header = [0; 32];
    let name = || image.display().to_string();
    File::open(image).and_then(|mut f| f.read_exact(&mut header)).with_context(name)?;
    ensure!(header.starts_with(b"QFI\xfb"), "{}: is not a qcow2 image", name());
    let cluster_bits = u32::from_be_bytes(std::array::from_fn(|i| header[20 + i]));
    let size = u64::from_be_bytes(std::array::from_fn(|i| header[24 + i]));
    ensure!((9..=21).contains(&cluster_bits), "{}: cluster_bits {cluster_bits}", name());
    // 16 bytes is an entry's size with subclusters; without, half of the cache stays unused.
    Ok((size.div_ceil(1 << cluster_bits) * 16).next_multiple_of(1 << 20))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("{program}: cannot start"))?;
    ensure!(status.success(), "{program}: ended with {status}");
    Ok(())
}
