//! The images that daemons are compared on.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek};

use super::daemon::{Daemon, Settings, Template};
use crate::load::plan::{Access, Mix, Op};
use crate::load::{self, Job, Limit};

/// Makes an image of `size` bytes (a multiple of 1 MiB) at `path` whose blocks are all written,
/// through the daemon that `writer` names.
pub fn make_full(path: &Path, size: u64, writer: &Template, settings: &Settings) -> Result<()> {
    create(path, &settings.format, size, &[])?;
    fill(path, writer, settings, |job| {
        job.block_size = 1 << 20;
        job.limit = Limit::Requests(size >> 20);
    })
}

/// Makes an empty image of `size` bytes with more `options` of `qemu-img create`.
pub fn create(path: &Path, format: &str, size: u64, options: &[&str]) -> Result<()> {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", format]).args(options).arg(path).arg(size.to_string());
    run(&mut create)
}

/// Writes to an image in order, through the daemon that `writer` names. `adapt` says how much, and
/// may change anything else about the load.
pub fn fill(
    path: &Path,
    writer: &Template,
    settings: &Settings,
    adapt: impl FnOnce(&mut Job),
) -> Result<()> {
    let socket = path.with_extension("sock");
    let daemon = Daemon::start(writer, path, &socket, settings)?;
    let mut job = Job {
        depth: 4,
        mix: Mix::only(Op::Write),
        access: Access::Sequential,
        warmup: Duration::ZERO,
        ..Job::new(socket)
    };
    adapt(&mut job);
    let report = load::run(&job)?;
    ensure!(report.errors == 0, "{}: cannot be filled", path.display());
    daemon.stop()
}

/// Copies a disk into a qcow2 image of compressed clusters.
pub fn compress(raw: &Path, target: &Path, compression: &str) -> Result<()> {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-c", "-W", "-m", "8", "-f", "raw", "-O", "qcow2", "-o"]);
    convert.arg(format!("compression_type={compression}")).arg(raw).arg(target);
    run(&mut convert)
}

/// Copies an image, and waits until it is on disk: otherwise the kernel would write it back under
/// the first load's feet.
pub fn copy(source: &Path, target: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto", "--"]).arg(source).arg(target);
    run(&mut copy)?;
    let name = || target.display().to_string();
    File::open(target).and_then(|file| file.sync_all()).with_context(name)
}

/// Drops what the page cache holds of an image, as far as it is on disk.
pub fn cool(image: &Path) -> Result<()> {
    let name = || image.display().to_string();
    let file = File::open(image).with_context(name)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).with_context(name)
}

/// Brings all data of an image into the page cache, holes left out, in single pages, as a guest's small reads do: what is
/// read ahead comes in large ones, and a small write to those costs the kernel ten times as much as all servers' work.
pub fn warm(image: &Path) -> Result<()> {
    let name = || image.display().to_string();
    let mut file = File::open(image).with_context(name)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).with_context(name)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(&file, at).with_context(name)? {
        file.seek(SeekFrom::Start(start)).with_context(name)?;
        io::copy(&mut (&mut file).take(end - start), &mut io::sink()).with_context(name)?;
        at = end;
    }
    Ok(())
}

/// The first stretch of data at or behind `at`: its start and its end.
fn next_data(file: &File, at: u64) -> nix::Result<Option<(u64, u64)>> {
    let start = match lseek(file, at as i64, Whence::SeekData) {
        Err(Errno::ENXIO) => return Ok(None),
        other => other?,
    };
    let end = lseek(file, start, Whence::SeekHole)?;
    Ok(Some((start as u64, end as u64)))
}

/// Bytes of L2 cache with which QEMU keeps all mappings of a qcow2 image in memory.
pub fn l2_cache(image: &Path) -> Result<u64> {
    let shape = Shape::read(image)?;
    // 16 bytes is an entry's size with subclusters; without, half of the cache stays unused.
    Ok((shape.clusters * 16).next_multiple_of(1 << 20))
}

/// Bytes of all the L2 entries that a qcow2 image can have.
pub fn l2_bytes(image: &Path) -> Result<u64> {
    let shape = Shape::read(image)?;
    Ok(shape.clusters * if shape.extended_l2 { 16 } else { 8 })
}

/// What a qcow2 header says of the mapping.
struct Shape {
    clusters: u64,
    extended_l2: bool,
}

impl Shape {
    fn read(image: &Path) -> Result<Self> {
        let mut header = [0; 80];
        let name = || image.display().to_string();
        File::open(image).and_then(|mut f| f.read_exact(&mut header)).with_context(name)?;
        ensure!(header.starts_with(b"QFI\xfb"), "{}: is not a qcow2 image", name());
        let version = u32::from_be_bytes(std::array::from_fn(|i| header[4 + i]));
        let cluster_bits = u32::from_be_bytes(std::array::from_fn(|i| header[20 + i]));
        let size = u64::from_be_bytes(std::array::from_fn(|i| header[24 + i]));
        let incompatible = u64::from_be_bytes(std::array::from_fn(|i| header[72 + i]));
        ensure!((9..=21).contains(&cluster_bits), "{}: cluster_bits {cluster_bits}", name());
        let extended_l2 = version >= 3 && incompatible & 1 << 4 != 0;
        Ok(Self { clusters: size.div_ceil(1 << cluster_bits), extended_l2 })
    }
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("{program}: cannot start"))?;
    ensure!(status.success(), "{program}: ended with {status}");
    Ok(())
}
