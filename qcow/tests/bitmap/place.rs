//! Images in a directory, and both programs on them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use qcow::disk::uring::{CacheMode, UringDisk, block_on};
use qcow::engine::bitmap::BitmapInfo;
use qcow::engine::check::{Repair, check};
use qcow::engine::{Discard, Format, Image, OpenOptions};
use qcow::gate::{BackingPolicy, Gate, HostGate};
use qcow::meta::bitmap::Bits;

/// A directory with images in it.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A new image, made by QEMU.
    pub fn make(&self, name: &str, options: &str, size: u64) -> PathBuf {
        let path = self.file(name);
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, text(&path), &size.to_string()]);
        path
    }

    /// The parts that a bitmap has marked, as QEMU reads it: it copies the bits to a new image, which is then read.
    pub fn read_by_qemu(&self, path: &Path, name: &str, size: u64, granularity: u64) -> Vec<bool> {
        let copy = self.make("copy", "cluster_size=512", size);
        let granularity_text = granularity.to_string();
        let add = [
            "bitmap",
            "--add",
            "-g",
            &granularity_text,
            "--merge",
            name,
            "-b",
            text(path),
            "-F",
            "qcow2",
        ];
        qemu_img(&[&add[..], &["-f", "qcow2", text(&copy), "copied"]].concat());
        marked(&read(&copy, "copied").expect("read the copy"), granularity)
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// Runs `qemu-img`, which must succeed.
pub fn qemu_img(args: &[&str]) -> Output {
    run(Command::new("qemu-img").args(args))
}

/// Runs commands of `qemu-io`, which must succeed.
pub fn qemu_io(path: &Path, commands: &[String]) {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "qcow2", "-d", "unmap"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    run(qemu_io.arg(path));
}

/// Lets `qemu-io` die with the image open.
pub fn qemu_dies(path: &Path) {
    let mut qemu_io = Command::new("qemu-io");
    let output = qemu_io.args(["-f", "qcow2", "-c", "abort"]).arg(path).output();
    assert!(!output.expect("qemu-io is installed").status.success());
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("qemu-utils is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output
}

pub fn gate() -> HostGate {
    let backing = BackingPolicy::Beside(Vec::new());
    HostGate { cache: CacheMode::PageCache, shared: false, backing }
}

pub fn writable() -> OpenOptions {
    OpenOptions {
        writable: true,
        format: Some(Format::Qcow2),
        discard: Discard::Unmap,
        ..OpenOptions::default()
    }
}

/// The image, open for writing.
pub async fn open(path: &Path) -> Image<UringDisk> {
    try_open(path).await.expect("open")
}

pub async fn try_open(path: &Path) -> qcow::Result<Image<UringDisk>> {
    Image::open(&gate(), path, &writable()).await
}

/// A bitmap's bits, of an image that is opened to read.
pub fn read(path: &Path, name: &str) -> qcow::Result<Bits> {
    block_on(async {
        let image = Image::open(&gate(), path, &OpenOptions::default()).await?;
        image.read_bitmap(OsStr::new(name)).await
    })
}

/// The bitmaps, of an image that is opened to read.
pub fn list(path: &Path) -> Vec<BitmapInfo> {
    block_on(async {
        let image = Image::open(&gate(), path, &OpenOptions::default()).await.expect("open");
        image.bitmaps().await.expect("list")
    })
}

/// Which parts of `granularity` bytes are marked.
pub fn marked(bits: &Bits, granularity: u64) -> Vec<bool> {
    (0..bits.size().div_ceil(granularity)).map(|index| bits.is_set(index * granularity)).collect()
}

/// Fails unless both programs find the image clean: no leak, no corruption.
pub fn expect_clean(path: &Path) {
    let mut findings = Vec::new();
    let disk = gate().open_image(path, false).expect("open");
    let mut report = |finding: &qcow::engine::check::Finding| findings.push(finding.to_string());
    let summary = block_on(check(&disk, path, Repair::None, &mut report)).expect("check");
    assert!(summary.is_clean(), "{findings:#?}");
    qemu_img(&["check", "-q", "-f", "qcow2", text(path)]);
}
