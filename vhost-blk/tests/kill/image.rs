//! What the image's file is worth after a kill or a close.

use std::process::Command;

use qcow::ErrorKind;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::check::{CheckSummary, Finding, Repair, check};
use qcow::format::header::Header;
use qcow::format::mark::MarkState;

use super::common::{Bed, text};

/// The image's file, once nobody holds its lock, as the last I/O of a killed process does.
fn unlocked(bed: &Bed) -> UringDisk {
    loop {
        match UringDisk::open(&bed.image(), Access::ReadWrite, CacheMode::PageCache) {
            Err(e) if e.kind() == ErrorKind::Locked => std::thread::yield_now(),
            disk => return disk.unwrap(),
        }
    }
}

/// Whether the image says that it was not closed. A daemon that is killed before its first change leaves no such mark.
pub fn is_unclean(bed: &Bed) -> bool {
    let _disk = unlocked(bed);
    let bytes = std::fs::read(bed.image()).unwrap();
    let cluster0 = &bytes[..1 << Header::cluster_bits_of(&bytes).unwrap()];
    let header = Header::parse(cluster0, bytes.len() as u64).unwrap();
    header.extensions.mark.is_some_and(|mark| mark.state() == MarkState::Unclean)
}

/// What our check says of the image.
fn our_check(bed: &Bed) -> (CheckSummary, Vec<String>) {
    let (disk, path) = (unlocked(bed), bed.image());
    let mut findings = Vec::new();
    let mut report = |finding: &Finding| findings.push(finding.to_string());
    let summary = block_on(check(&disk, &path, Repair::None, &mut report)).unwrap();
    (summary, findings)
}

/// Right after a kill; how many leaks there are.
pub fn assert_only_leaks(bed: &Bed) -> u64 {
    let (summary, findings) = our_check(bed);
    assert_eq!((summary.corruptions, summary.check_errors), (0, 0), "{findings:#?}");
    let output = Command::new("qemu-img").arg("check").arg(bed.image()).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", text(&output));
    summary.leaks
}

pub fn assert_spotless(bed: &Bed) {
    let (summary, findings) = our_check(bed);
    assert!(summary.is_clean() && findings.is_empty(), "{findings:#?}");
    bed.assert_clean();
}
