//! Backing chains: how deep they may be, where they may lead, and what is refused.

use std::path::{Path, PathBuf};
use std::process::Command;

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::uring::{CacheMode, UringDisk, block_on};
use qcow::engine::{Image, OpenOptions};
use qcow::gate::{BackingPolicy, HostGate};
use qcow::limits::CHAIN_DEPTH_MAX;

fn open(path: &Path, backing: BackingPolicy) -> qcow::Result<Image<UringDisk>> {
    let gate = HostGate { cache: CacheMode::PageCache, shared: false, backing };
    block_on(Image::open(&gate, path, &OpenOptions::default()))
}

fn beside() -> BackingPolicy {
    BackingPolicy::Beside(Vec::new())
}

/// Makes an overlay without looking at what lies below.
fn overlay(path: &Path, backing: &str, format: &str) {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-u", "-f", "qcow2", "-o", "cluster_size=4k"]);
    command.args(["-b", backing, "-F", format]).arg(path).arg("1M");
    assert!(command.status().expect("qemu-img is installed").success());
}

/// Makes the image at `path` forget the format of its backing file.
fn forget_format(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    let kind = 0xe279_2acau32.to_be_bytes();
    let at = bytes.windows(4).position(|w| w == kind).expect("a backing format");
    // An unknown extension in its place: kept, and without a meaning.
    bytes[at..at + 4].copy_from_slice(&0x1234_5678u32.to_be_bytes());
    std::fs::write(path, bytes).expect("write");
}

fn kind_of(result: qcow::Result<Image<UringDisk>>) -> ErrorKind {
    result.expect_err("must be refused").kind()
}

#[test]
fn a_chain_as_deep_as_the_limit_opens_and_one_deeper_does_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |depth: usize| directory.path().join(format!("{depth}"));
    std::fs::write(file(0), vec![7u8; 1 << 20]).expect("write");
    for depth in 1..=CHAIN_DEPTH_MAX {
        let format = if depth == 1 { "raw" } else { "qcow2" };
        overlay(&file(depth), &(depth - 1).to_string(), format);
    }
    let image = open(&file(CHAIN_DEPTH_MAX - 1), beside()).expect("as deep as allowed");
    assert_eq!(image.layer_count(), CHAIN_DEPTH_MAX);
    let buffer = Buffer::zeroed(100);
    block_on(image.read(5000, &buffer.payload())).expect("read");
    assert_eq!(buffer.to_vec(), [7; 100]);
    assert_eq!(kind_of(open(&file(CHAIN_DEPTH_MAX), beside())), ErrorKind::Limit);
}

#[test]
fn a_chain_that_bites_its_tail_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    overlay(&a, "b", "qcow2");
    overlay(&b, "a", "qcow2");
    assert_eq!(kind_of(open(&a, beside())), ErrorKind::Limit);
    overlay(&a, "a", "qcow2");
    assert_eq!(kind_of(open(&a, beside())), ErrorKind::Limit);
}

#[test]
fn names_that_are_no_plain_path_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image");
    for name in ["json:{\"driver\":\"raw\"}", "nbd://127.0.0.1:1/x", "fat:rw:/tmp"] {
        overlay(&image, name, "raw");
        assert_eq!(kind_of(open(&image, BackingPolicy::Anywhere)), ErrorKind::Denied, "{name}");
    }
}

#[test]
fn only_allowed_directories_are_reached_not_even_by_a_link() {
    let directory = tempfile::tempdir().expect("a directory");
    let (inside, outside) = (directory.path().join("in"), directory.path().join("out"));
    for directory in [&inside, &outside] {
        std::fs::create_dir(directory).expect("a directory");
    }
    let secret: PathBuf = outside.join("secret");
    std::fs::write(&secret, vec![1u8; 4096]).expect("write");
    std::os::unix::fs::symlink(&secret, inside.join("link")).expect("a link");
    for name in [secret.to_str().expect("text"), "../out/secret", "link"] {
        let image = inside.join("image");
        overlay(&image, name, "raw");
        assert_eq!(kind_of(open(&image, beside())), ErrorKind::Denied, "{name}");
        assert_eq!(kind_of(open(&image, BackingPolicy::Deny)), ErrorKind::Denied, "{name}");
        open(&image, BackingPolicy::Beside(vec![outside.clone()])).expect("allowed by name");
        open(&image, BackingPolicy::Anywhere).expect("allowed for tools");
    }
}

#[test]
fn an_unnamed_format_is_only_believed_to_be_qcow2() {
    let directory = tempfile::tempdir().expect("a directory");
    let (raw, qcow2) = (directory.path().join("raw"), directory.path().join("qcow2"));
    std::fs::write(&raw, vec![0u8; 4096]).expect("write");
    overlay(&qcow2, "raw", "raw");
    let top = directory.path().join("top");
    overlay(&top, "qcow2", "qcow2");
    forget_format(&top);
    open(&top, beside()).expect("qcow2 shows itself");
    forget_format(&qcow2);
    assert_eq!(kind_of(open(&qcow2, beside())), ErrorKind::Denied);
}
