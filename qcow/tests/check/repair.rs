//! What a repair does beyond counts, and what is refused.

use std::path::{Path, PathBuf};

use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::check::{Repair, check};
use qcow::error::ErrorKind;
use tempfile::TempDir;

use crate::qemu::{self, qemu_img, qemu_io};
use crate::{INCOMPATIBLE_AT, our_check};

fn create(directory: &Path, options: &str) -> PathBuf {
    let path = directory.join("image");
    let data_file = directory.join("data");
    let options = options.replace("DATA", data_file.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, path.to_str().unwrap(), "8M"]);
    path
}

fn patch(path: &Path, change: impl Fn(&mut [u8])) {
    let mut image = std::fs::read(path).unwrap();
    change(&mut image);
    std::fs::write(path, image).unwrap();
}

#[test]
fn an_image_without_errors_is_neither_dirty_nor_corrupt_after_a_repair() {
    let directory = TempDir::new().unwrap();
    let path = create(directory.path(), "lazy_refcounts=on");
    qemu_io(&path, &["write -P 1 0 100k"]);
    patch(&path, |image| image[INCOMPATIBLE_AT] = 0b11);
    assert!(our_check(&path, Repair::None).outcome.unwrap().is_clean());
    assert_eq!(std::fs::read(&path).unwrap()[INCOMPATIBLE_AT], 0b11);
    assert!(our_check(&path, Repair::Leaks).outcome.unwrap().is_clean());
    assert_eq!(std::fs::read(&path).unwrap()[INCOMPATIBLE_AT], 0);
    assert_eq!(qemu::check(&path, &[]).exit, 0);
}

#[test]
fn corruptions_keep_the_image_marked_and_are_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = create(directory.path(), "cluster_size=64k");
    qemu_io(&path, &["write -P 1 0 128k"]);
    // The header's cluster is counted once too often, the L1 table's not at all.
    patch(&path, |image| {
        image[INCOMPATIBLE_AT] = 0b10;
        image[0x20001] = 2;
        image[0x20007] = 0;
    });
    let before = std::fs::read(&path).unwrap();
    let summary = our_check(&path, Repair::Leaks).outcome.unwrap();
    assert_eq!((summary.corruptions, summary.leaks, summary.check_errors), (1, 1, 1));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn counts_are_not_corrected_where_more_is_wrong() {
    // With 64 KiB clusters: refcount table, block, L1 table, L2 table, data, in clusters 1 to 5 and 6.
    let entry_to = |cluster: u8| vec![0x80, 0, 0, 0, 0, cluster, 0, 0];
    let damages = [
        ("data that is the refcount table", 0x40008, entry_to(1)),
        ("data that is the refcount block", 0x40008, entry_to(2)),
        ("data that is the L1 table", 0x40008, entry_to(3)),
        ("data that is the L2 table", 0x40008, entry_to(4)),
        ("data in the header", 0x40008, vec![0x80, 0, 0, 0, 0, 0, 0x02, 0]),
        ("data behind the end", 0x40008, entry_to(9)),
        ("an L2 table behind the end", 0x30000, entry_to(9)),
        ("a reserved bit", 0x40008, vec![0x81]),
        ("a refcount block behind the end", 0x10000, entry_to(9)[1..].to_vec()),
        ("an unaligned refcount block", 0x10006, vec![0x02]),
    ];
    for (what, at, bytes) in damages {
        let directory = TempDir::new().unwrap();
        let path = create(directory.path(), "cluster_size=64k");
        qemu_io(&path, &["write -P 1 0 128k"]);
        patch(&path, |image| {
            // The last cluster is counted once too often.
            image[0x2000d] = 2;
            image[INCOMPATIBLE_AT] = 1;
            image[at..at + bytes.len()].copy_from_slice(&bytes);
        });
        let before = std::fs::read(&path).unwrap();
        let ours = our_check(&path, Repair::Counts);
        assert!(!ours.outcome.as_ref().unwrap().is_clean(), "{what}: {ours:?}");
        assert!(std::fs::read(&path).unwrap() == before, "{what}: {ours:?}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_not_repaired() {
    let directory = TempDir::new().unwrap();
    let path = create(directory.path(), "cluster_size=64k");
    let disk = UringDisk::open(&path, Access::ReadOnly, CacheMode::PageCache).unwrap();
    let outcome = block_on(check(&disk, &path, Repair::Leaks, &mut |_| ()));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ReadOnly);
}
