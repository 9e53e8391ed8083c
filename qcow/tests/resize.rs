//! Resizing, held against `qemu-img resize`: the same size, the same bytes, and tables that both programs find sound.
//!
//! What a power cut leaves is the simulation's business.

use std::path::{Path, PathBuf};
use std::process::Command;

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::sim::Random;
use qcow::disk::uring::{CacheMode, UringDisk, block_on};
use qcow::engine::check::{Repair, check};
use qcow::engine::{Format, Image, OpenOptions};
use qcow::gate::{BackingPolicy, Gate, HostGate};

const KIB: u64 = 1 << 10;
/// Turns of the random test.
const TURNS: u64 = 150;

type Resize = fn(&Path, u64);

/// A directory with images in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A new image, made by QEMU.
    fn make(&self, name: &str, options: &str, backing: &[&str], size: u64) -> PathBuf {
        let path = self.file(name);
        let size = size.to_string();
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
        args.extend(backing);
        args.extend([text(&path), &size]);
        qemu_img(&args);
        path
    }

    /// A raw file of `len` bytes that are none of them zero.
    fn raw(&self, name: &str, len: u64) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, vec![0xbb; len as usize]).expect("write");
        path
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().expect("qemu-img is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {args:?}: {errors}");
}

fn qemu_resize(path: &Path, size: u64) {
    qemu_img(&["resize", "-q", "-f", "qcow2", "--shrink", text(path), &size.to_string()]);
}

fn qemu_fill(path: &Path, at: u64, len: u64, byte: u8) {
    let command = format!("write -q -P {byte} {at} {len}");
    let mut qemu_io = Command::new("qemu-io");
    let status = qemu_io.args(["-f", "qcow2", "-c", &command]).arg(path).status();
    assert!(status.expect("qemu-io is installed").success());
}

/// The disk as QEMU reads it, which also finds nothing wrong.
fn qemu_read(path: &Path) -> Vec<u8> {
    qemu_img(&["check", "-q", "-f", "qcow2", text(path)]);
    let raw = path.with_extension("read");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(path), text(&raw)]);
    std::fs::read(raw).expect("what QEMU read")
}

fn gate() -> HostGate {
    let backing = BackingPolicy::Beside(Vec::new());
    HostGate { cache: CacheMode::PageCache, shared: false, backing }
}

async fn open(path: &Path, options: &OpenOptions) -> Image<UringDisk> {
    Image::open(&gate(), path, options).await.expect("open")
}

fn writable() -> OpenOptions {
    OpenOptions { writable: true, ..OpenOptions::default() }
}

fn try_resize(path: &Path, options: &OpenOptions, size: u64, shrink: bool) -> qcow::Result<()> {
    block_on(async {
        let image = open(path, options).await;
        let resized = image.resize(size, shrink).await;
        image.close().await.expect("close");
        resized
    })
}

fn resize(path: &Path, size: u64) {
    try_resize(path, &writable(), size, true).expect("resize");
}

fn fill(path: &Path, at: u64, len: u64, byte: u8) {
    block_on(async {
        let image = open(path, &writable()).await;
        let bytes = Buffer::from_bytes(&vec![byte; len as usize]);
        image.write(at, &bytes.payload()).await.expect("write");
        image.close().await.expect("close");
    });
}

/// The disk as this engine reads it, which also finds nothing wrong.
fn read(path: &Path) -> Vec<u8> {
    block_on(async {
        let file = gate().open_image(path, false).expect("open");
        let mut findings = Vec::new();
        let mut report =
            |finding: &qcow::engine::check::Finding| findings.push(finding.to_string());
        let summary = check(&file, path, Repair::None, &mut report).await.expect("check");
        assert!(summary.is_clean() && summary.leaks == 0, "{findings:#?}");
        let image = open(path, &OpenOptions::default()).await;
        let buffer = Buffer::zeroed(image.virtual_size() as usize);
        image.read(0, &buffer.payload()).await.expect("read");
        buffer.to_vec()
    })
}

/// Both programs read `expected` from the image.
fn expect(path: &Path, expected: &[u8], what: &str) {
    for (who, bytes) in [("we", read(path)), ("QEMU", qemu_read(path))] {
        assert_eq!(bytes.len(), expected.len(), "{what}: the size, {who} read");
        let differs = (0..bytes.len()).find(|&at| bytes[at] != expected[at]);
        assert_eq!(differs, None, "{what}: {who} read other bytes");
    }
}

#[test]
fn both_programs_make_the_same_of_a_resize() {
    let place = Place::new();
    place.raw("base.raw", 600 * KIB);
    let over = ["-b", "base.raw", "-F", "raw"];
    let versions: [(&str, &[&str]); 4] =
        [("v3", &[]), ("v2", &[]), ("v3", &over), ("v3,preallocation=metadata", &[])];
    for (version, backing) in versions {
        for cluster in [512, 4 * KIB, 64 * KIB] {
            // Within a cluster, within the L1 table, past it; smaller.
            for size in [301, 310, 500, 3000, 40_000, 128, 100, 1].map(|kib| kib * KIB) {
                let what = format!("{version}, {cluster}-byte clusters, to {size}");
                let options = format!("compat={version},cluster_size={cluster}");
                let [ours, theirs] =
                    ["ours", "theirs"].map(|name| place.make(name, &options, backing, 300 * KIB));
                for path in [&ours, &theirs] {
                    qemu_fill(path, 90 * KIB, 200 * KIB, 7);
                }
                resize(&ours, size);
                qemu_resize(&theirs, size);
                expect(&ours, &qemu_read(&theirs), &what);
            }
        }
    }
}

#[test]
fn both_programs_resize_and_write_by_turns() {
    let seed = std::env::var("RESIZE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("repeat with: RESIZE_SEED={seed} cargo test -p qcow --test resize by_turns");
    let mut random = Random::new(seed);
    for cluster in [512, KIB, 4 * KIB] {
        let place = Place::new();
        place.raw("base.raw", 700 * KIB);
        let options = format!("cluster_size={cluster}");
        let path = place.make("image", &options, &["-b", "base.raw", "-F", "raw"], 700 * KIB);
        let mut model = vec![0xbb; 700 << 10];
        for turn in 0..TURNS / 3 {
            let by_qemu = random.below(2) == 0;
            let mut size = (1 + random.below(4000)) * 512;
            if by_qemu && size < model.len() as u64 {
                // QEMU keeps what is behind the end in the cluster that it cuts, and shows it again.
                size = size.next_multiple_of(cluster);
            }
            (if by_qemu { qemu_resize } else { resize })(&path, size);
            model.resize(size as usize, 0);
            let at = random.below(size);
            let len = (1 + random.below(20 * KIB)).min(size - at);
            let byte = 1 + random.below(0x7f) as u8;
            (if random.below(2) == 0 { qemu_fill } else { fill })(&path, at, len, byte);
            model[at as usize..(at + len) as usize].fill(byte);
            expect(&path, &model, &format!("turn {turn} ({size} bytes, by QEMU: {by_qemu})"));
        }
    }
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let place = Place::new();
    for (by_us_first, version) in [(true, "v3"), (false, "v3"), (true, "v2"), (false, "v2")] {
        let path = place.make("image", &format!("compat={version}"), &[], 256 * KIB);
        qemu_fill(&path, 0, 256 * KIB, 9);
        let (shrink, grow): (Resize, Resize) =
            if by_us_first { (resize, qemu_resize) } else { (qemu_resize, resize) };
        shrink(&path, 100 * KIB);
        grow(&path, 300 * KIB);
        let mut expected = vec![9; 100 << 10];
        expected.resize(300 << 10, 0);
        expect(&path, &expected, &format!("{version}, by us first: {by_us_first}"));
    }
}

#[test]
fn a_cut_cluster_of_the_backing_file_is_not_copied() {
    let place = Place::new();
    let over = ["-b", "base.raw", "-F", "raw"];
    for options in ["cluster_size=64k", "extended_l2=on,cluster_size=64k"] {
        for grow in [resize as Resize, qemu_resize] {
            let base = place.raw("base.raw", 300 * KIB);
            let path = place.make("image", options, &over, 300 * KIB);
            resize(&path, 101 * KIB);
            std::fs::write(&base, vec![0xcc; 300 << 10]).expect("write");
            let mut expected = vec![0xcc; 101 << 10];
            expect(&path, &expected, "shrunk");
            grow(&path, 300 * KIB);
            expected.resize(300 << 10, 0);
            expect(&path, &expected, "grown again");
        }
    }
}

#[test]
fn what_a_growth_adds_hides_what_is_written_below_later() {
    let place = Place::new();
    let base = place.file("base.raw");
    for options in ["cluster_size=64k", "extended_l2=on,cluster_size=64k"] {
        let path = place.make("image", options, &["-b", "base.raw", "-F", "raw", "-u"], 101 * KIB);
        std::fs::write(&base, vec![0; 300 << 10]).expect("write");
        resize(&path, 350 * KIB + 512);
        std::fs::write(&base, vec![0xcc; 400 << 10]).expect("write");
        let bytes = read(&path);
        assert!(bytes[101 << 10..].iter().all(|&byte| byte == 0), "{options}");
        expect(&path, &bytes, options);
    }
}

#[test]
fn version_2_hides_a_longer_backing_file_too() {
    // Which QEMU refuses: "Failed to zero out new clusters".
    let place = Place::new();
    place.raw("base.raw", 500 * KIB);
    let path = place.make("image", "compat=v2", &["-b", "base.raw", "-F", "raw"], 100 * KIB);
    resize(&path, 400 * KIB);
    let mut expected = vec![0xbb; 100 << 10];
    expected.resize(400 << 10, 0);
    expect(&path, &expected, "version 2");
}

#[test]
fn a_snapshot_keeps_its_size() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=512", &[], 64 * KIB);
    qemu_fill(&path, 0, 64 * KIB, 5);
    qemu_img(&["snapshot", "-c", "before", text(&path)]);
    for size in [10_000 * KIB, 10 * KIB] {
        resize(&path, size);
        let mut expected = vec![5; 64 << 10];
        expected.resize(size as usize, 0);
        expect(&path, &expected, "with a snapshot");
        qemu_img(&["snapshot", "-a", "before", text(&path)]);
        expect(&path, &[5; 64 << 10], "the snapshot");
    }
}

#[test]
fn a_raw_image_is_cut_and_extended() {
    let place = Place::new();
    let path = place.raw("image.raw", 10_000);
    let raw = OpenOptions { format: Some(Format::Raw), ..writable() };
    try_resize(&path, &raw, 20_001, false).expect("grow");
    let mut expected = vec![0xbb; 10_000];
    expected.resize(20_001, 0);
    assert_eq!(std::fs::read(&path).expect("read"), expected);
    try_resize(&path, &raw, 512, true).expect("shrink");
    assert_eq!(std::fs::read(&path).expect("read"), [0xbb; 512]);
}

#[test]
fn an_open_image_goes_on_with_its_new_size() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=512", &[], 64 * KIB);
    block_on(async {
        let image = open(&path, &writable()).await;
        let sector = Buffer::from_bytes(&[3; 512]).payload();
        image.write(64 * KIB, &sector).await.expect_err("behind the end");
        image.resize(4000 * KIB - 100, false).await.expect("grow");
        assert_eq!(image.virtual_size(), 4000 * KIB);
        image.write(4000 * KIB - 512, &sector).await.expect("the last sector");
        image.write(4000 * KIB, &sector).await.expect_err("behind the end");
        image.resize(63 * KIB, true).await.expect("shrink");
        image.read(63 * KIB, &sector).await.expect_err("behind the end");
        image.write(62 * KIB, &sector).await.expect("inside");
        image.close().await.expect("close");
    });
    let mut expected = vec![0; 63 << 10];
    expected[62 << 10..][..512].fill(3);
    expect(&path, &expected, "after all");
}

#[test]
fn what_is_not_safe_is_refused_and_changes_nothing() {
    let place = Place::new();
    let refuse = |path: &Path, options: &OpenOptions, size, shrink, kind| {
        let before = std::fs::read(path).expect("read");
        let resized = try_resize(path, options, size, shrink);
        assert_eq!(resized.expect_err("must be refused").kind(), kind, "{}", text(path));
        assert_eq!(before, std::fs::read(path).expect("read"), "{}", text(path));
    };
    let plain = place.make("plain", "cluster_size=64k", &[], 256 * KIB);
    refuse(&plain, &writable(), 128 * KIB, false, ErrorKind::Invalid);
    refuse(&plain, &writable(), u64::MAX, false, ErrorKind::Limit);
    refuse(&plain, &writable(), 1 << 60, false, ErrorKind::Limit);
    refuse(&plain, &OpenOptions::default(), 512 * KIB, false, ErrorKind::ReadOnly);
    let old = place.make("old", "compat=v2", &[], 256 * KIB);
    qemu_img(&["snapshot", "-c", "before", text(&old)]);
    refuse(&old, &writable(), 512 * KIB, false, ErrorKind::Unsupported);
    place.raw("base.raw", 512 * KIB);
    let overlay = place.make("overlay", "compat=v3", &["-b", "base.raw", "-F", "raw"], 256 * KIB);
    let alone = OpenOptions { backing: false, ..writable() };
    refuse(&overlay, &alone, 512 * KIB, false, ErrorKind::Unsupported);
}

#[test]
fn a_table_may_be_longer_than_what_a_refcount_block_counts() {
    let place = Place::new();
    // Tables that need up to seven blocks, the third also a larger refcount table.
    for (bits, sizes) in [(16, [30, 900, 2000]), (64, [5, 200, 1500]), (1, [100, 3000, 30_000])] {
        let path = place.make("image", &format!("cluster_size=512,refcount_bits={bits}"), &[], KIB);
        let mut at = 0;
        for mib in sizes {
            fill(&path, at, 512, 7);
            resize(&path, mib << 20);
            let image = block_on(open(&path, &OpenOptions::default()));
            assert_eq!(image.virtual_size(), mib << 20);
            drop(image);
            at = (mib << 20) - 512;
        }
        fill(&path, at, 512, 7);
        qemu_img(&["check", "-q", text(&path)]);
        for at in [0, (sizes[0] << 20) - 512, (sizes[1] << 20) - 512, at] {
            let read = format!("read -q -P 7 {at} 512");
            let output = Command::new("qemu-io").args(["-r", "-c", &read]).arg(&path).output();
            let output = output.expect("qemu-io is installed");
            assert!(output.status.success() && output.stdout.is_empty(), "{bits} bits, at {at}");
        }
    }
}
