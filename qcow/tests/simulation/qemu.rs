//! A second opinion: QEMU checks and reads a sample of the states, and one of each new kind.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::case::{SECTOR, Shape};
use crate::recover::Found;
use crate::start::{Files, sectors};

/// Shows states to QEMU.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Of each kind of state the first one is shown, and of all states one in so many; zero shows none.
    one_in: u64,
    kinds: Mutex<HashSet<(Shape, u64, u64)>>,
    seen: AtomicU64,
    shown: AtomicU64,
}

impl Sampler {
    pub fn new(one_in: u64) -> Self {
        Self { one_in, ..Self::default() }
    }

    /// How many states QEMU was shown.
    pub fn shown(&self) -> u64 {
        self.shown.load(Ordering::Relaxed)
    }

    /// Shows the state to QEMU, perhaps.
    pub fn look(&self, shape: &Shape, files: &Files, found: &Found) {
        // QEMU refuses authenticated images.
        if self.one_in == 0 || shape.is_authenticated() {
            return;
        }
        let nth = self.seen.fetch_add(1, Ordering::Relaxed);
        // Images that differ in their size alone are of one kind.
        let alike = Shape { size: 0, start: shape.start.kind(), ..*shape };
        let kind = (alike, found.leaks.min(2), found.allocated_clusters.min(4));
        let new = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).insert(kind);
        if new || nth.is_multiple_of(self.one_in) {
            self.shown.fetch_add(1, Ordering::Relaxed);
            agree(files, found);
        }
    }
}

/// Panics unless QEMU finds no corruption in the image, the same leaks, and reads the same bytes.
fn agree(files: &Files, found: &Found) {
    let directory = tempfile::tempdir_in(memory()).expect("a directory");
    let image = directory.path().join("image");
    std::fs::write(&image, files.image.to_vec()).expect("write");
    if let Some(backing) = &files.backing {
        std::fs::write(directory.path().join("backing"), backing.to_vec()).expect("write");
    }
    if let Some(data) = &files.data {
        std::fs::write(directory.path().join("data"), data.to_vec()).expect("write");
    }
    // The name of a data file starts from the working directory.
    let mut check = Command::new("qemu-img");
    let check = check.current_dir(directory.path());
    let encrypted = files.image.to_vec()[35] > 0;
    let named = named(directory.path(), &image, encrypted);
    let check = run(check.arg("check").args(&named));
    let expected = if found.leaks == 0 { 0 } else { 3 };
    assert_eq!(check.0, Some(expected), "qemu-img check after a crash: {}", check.1);
    let raw = directory.path().join("raw");
    let mut read = Command::new("qemu-img");
    let read = read.current_dir(directory.path()).args(["convert", "-O", "raw"]);
    let read = run(read.args(&named).arg(&raw));
    assert_eq!(read.0, Some(0), "qemu-img convert after a crash: {}", read.1);
    let ours = sectors(found.values.iter().copied());
    let theirs = std::fs::read(&raw).expect("what QEMU read");
    let differs = ours.chunks(SECTOR as usize).zip(theirs.chunks(SECTOR as usize));
    let first = differs.enumerate().find(|(_, (a, b))| a != b).map(|(sector, _)| sector);
    assert_eq!((first, theirs.len()), (None, ours.len()), "QEMU reads other bytes");
}

/// How QEMU is told of an image, with its key if it is encrypted.
fn named(directory: &Path, image: &Path, encrypted: bool) -> Vec<String> {
    let path = image.to_str().expect("text");
    if !encrypted {
        return ["-f", "qcow2", path].map(str::to_owned).to_vec();
    }
    let key = directory.join("key");
    std::fs::write(&key, "simulated").expect("write");
    let secret = format!("secret,id=key,file={}", key.display());
    let name = format!("driver=qcow2,encrypt.key-secret=key,file.filename={path}");
    ["--object", &secret, "--image-opts", &name].map(str::to_owned).to_vec()
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("qemu-img");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Where files cost no disk.
fn memory() -> &'static Path {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { shared } else { Path::new("/tmp") }
}
