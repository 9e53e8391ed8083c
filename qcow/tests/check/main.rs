//! `check` against `qemu-img check`, on sound images and on hundreds that are damaged at random.
//!
//! A failure names its seed; `CHECK_SEED=N cargo test -p qcow --test check` repeats it alone. `SOAK_FACTOR` multiplies
//! the number of images.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow::disk::sim::Random;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::check::{CheckSummary, Fault, Finding, Repair, check};
use tempfile::TempDir;

mod agreement;
mod counts;
mod damage;
mod dirty;
mod hostile;
mod images;
mod interrupted;
mod qemu;
mod repair;

use images::RECIPES;
use qemu::Verdict;

const DAMAGED_IMAGES: u64 = 320;

/// Where the last byte of the incompatible features lies: dirty is bit 0, corrupt bit 1.
const INCOMPATIBLE_AT: usize = 79;
/// Where the last byte of the compatible features lies: lazy refcounts is bit 0.
const COMPATIBLE_AT: usize = 87;

/// What our check said.
#[derive(Debug)]
struct Ours {
    outcome: Result<CheckSummary, String>,
    findings: Vec<Finding>,
}

fn our_check(path: &Path, repair: Repair) -> Ours {
    let access = if repair == Repair::None { Access::ReadOnly } else { Access::ReadWrite };
    let disk = UringDisk::open(path, access, CacheMode::PageCache).unwrap();
    let mut findings = Vec::new();
    let mut report = |finding: &Finding| findings.push(finding.clone());
    let outcome = block_on(check(&disk, path, repair, &mut report));
    Ours { outcome: outcome.map_err(|e| e.to_string()), findings }
}

impl Ours {
    /// What a program exits with.
    fn exit(&self) -> i32 {
        match &self.outcome {
            Err(_) => 1,
            Ok(summary) if summary.check_errors > 0 => 1,
            Ok(summary) if summary.corruptions > 0 => 2,
            Ok(summary) if summary.leaks > 0 => 3,
            Ok(_) => 0,
        }
    }

    /// Whether we know better than QEMU, on purpose: its check does not mind the zero flag in a version 2 image, although
    /// the image cannot be read there.
    fn is_stricter(&self) -> bool {
        let zero_flag =
            |finding: &Finding| matches!(finding, Finding::Fault(Fault::ZeroFlagInVersion2 { .. }));
        self.findings.iter().any(zero_flag)
    }
}

/// What QEMU tells as JSON, by its names there.
fn figures(summary: &CheckSummary) -> [(&'static str, u64); 8] {
    [
        ("corruptions", summary.corruptions),
        ("leaks", summary.leaks),
        ("check-errors", summary.check_errors),
        ("total-clusters", summary.total_clusters),
        ("allocated-clusters", summary.allocated_clusters),
        ("compressed-clusters", summary.compressed_clusters),
        ("fragmented-clusters", summary.fragmented_clusters),
        ("image-end-offset", summary.image_end_offset),
    ]
}

fn compare(ours: &Ours, theirs: &Verdict) {
    if ours.is_stricter() {
        assert_eq!(ours.exit().min(2), if theirs.exit == 1 { 1 } else { 2 });
        return;
    }
    assert_eq!(ours.exit(), theirs.exit, "exit code");
    let (Ok(summary), Some(_)) = (&ours.outcome, &theirs.figures) else { return };
    for (name, figure) in figures(summary) {
        assert_eq!(figure, theirs.figure(name), "{name}");
    }
    let expected = theirs.lines.iter().map(String::as_str);
    let expected: BTreeSet<&str> = expected.filter(is_about_a_finding).collect();
    let text = text_of(&ours.findings);
    let lines: BTreeSet<&str> = text.lines().filter(is_about_a_finding).collect();
    assert_eq!(lines, expected, "lines");
}

/// QEMU has a line for each cluster that an unreadable block counts, we have one for all; the rest of what this leaves out
/// is about the program.
fn is_about_a_finding(line: &&str) -> bool {
    let others = ["Can't get refcount for cluster", "qemu-img: ", "qcow2: Image is corrupt: "];
    !others.iter().any(|other| line.starts_with(other))
}

fn text_of(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{finding}\n")).collect()
}

#[test]
fn sound_images_are_clean_and_their_figures_are_qemus() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    for recipe in RECIPES {
        recipe.make(&path);
        let (ours, theirs) = (our_check(&path, Repair::None), qemu::check(&path, &[]));
        println!("{}: {ours:?}", recipe.name);
        assert_eq!(theirs.exit, 0, "{}: {theirs:?}", recipe.name);
        compare(&ours, &theirs);
        assert!(ours.findings.is_empty());
    }
}

#[test]
fn damaged_images_are_judged_and_repaired_as_qemu_does() {
    let directory = TempDir::new().unwrap();
    let scratch = directory.path().join("sound");
    let sound: Vec<Vec<u8>> = RECIPES.iter().map(|recipe| recipe.make(&scratch)).collect();
    each_seed(DAMAGED_IMAGES, |seed| check_damaged(&sound, directory.path(), seed));
}

/// Runs `case` with `count` seeds times the soak factor, or with the one that is asked for.
fn each_seed(count: u64, case: impl Fn(u64) + Sync) {
    if let Ok(seed) = std::env::var("CHECK_SEED") {
        case(seed.parse().expect("CHECK_SEED is a number"));
        return;
    }
    let factor = std::env::var("SOAK_FACTOR").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    let next = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count * factor {
                        break;
                    }
                    let _report = SeedReport(seed);
                    case(seed);
                }
            });
        }
    });
}

/// Tells the seed if the check of it fails.
struct SeedReport(u64);

impl Drop for SeedReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with: CHECK_SEED={} cargo test -p qcow --test check", self.0);
        }
    }
}

fn check_damaged(sound: &[Vec<u8>], directory: &Path, seed: u64) {
    let mut random = Random::new(seed);
    let kind = random.below(sound.len() as u64) as usize;
    let mut image = sound[kind].clone();
    let damage = damage::damage(&mut image, &mut random);
    let file = |role: &str| directory.join(format!("{seed}-{role}"));
    let (ours_path, theirs_path) = (file("ours"), file("theirs"));
    std::fs::write(&ours_path, &image).unwrap();

    let (ours, theirs) = (our_check(&ours_path, Repair::None), qemu::check(&ours_path, &[]));
    println!(
        "seed {seed}, {}: {damage:#?}\nours: {ours:?}\ntheirs: {theirs:?}",
        RECIPES[kind].name
    );
    compare(&ours, &theirs);

    std::fs::write(&theirs_path, &image).unwrap();
    compare_repairs(&ours_path, &theirs_path, RECIPES[kind].name == "bitmaps");
    for path in [ours_path, theirs_path] {
        std::fs::remove_file(path).unwrap();
    }
}

/// Repairs both copies of an image, one each, and compares what is left; figures only where QEMU does not store bitmaps
/// anew whenever it opens the image to write, which moves clusters about.
fn compare_repairs(ours_path: &Path, theirs_path: &Path, bitmaps: bool) {
    let ours = our_check(ours_path, Repair::Leaks);
    let theirs = qemu::check(theirs_path, &["-r", "leaks"]);
    println!("our repair: {ours:?}\ntheir repair: {theirs:?}");
    if let (Ok(summary), Some(_), false) = (&ours.outcome, &theirs.figures, bitmaps) {
        assert_eq!(summary.leaks_fixed, theirs.figure("leaks-fixed"), "leaks fixed");
        assert_eq!(summary.corruptions_fixed, theirs.figure("corruptions-fixed"), "flags fixed");
    }
    let (left, theirs_left) = (qemu::check(ours_path, &[]), qemu::check(theirs_path, &[]));
    println!("left by us: {left:?}\nleft by them: {theirs_left:?}");
    assert_eq!(left.exit, theirs_left.exit, "exit code after repairs");
    if left.figures.is_some() && !bitmaps {
        for name in ["corruptions", "leaks", "check-errors"] {
            assert_eq!(left.figure(name), theirs_left.figure(name), "{name} after repairs");
        }
    }
}
