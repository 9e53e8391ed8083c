//! Small files that claim to be huge: a check of them ends soon and needs little memory, or these tests would not end.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use qcow::engine::check::{CheckSummary, Finding, Repair};
use tempfile::TempDir;

use crate::our_check;
use crate::qemu::{self, qemu_img};

const MIB: u64 = 1 << 20;
const COPIED: u64 = 1 << 63;

/// An image that is being patched.
struct Image {
    directory: TempDir,
}

impl Image {
    fn create(cluster_size: &str, size: &str) -> Self {
        let image = Self { directory: TempDir::new().unwrap() };
        let options = format!("cluster_size={cluster_size},refcount_bits=64");
        let path = image.path();
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, path.to_str().unwrap(), size]);
        image
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn patch(&self, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn patch_u64(&self, at: u64, value: u64) {
        self.patch(at, &value.to_be_bytes());
    }

    fn set_len(&self, len: u64) {
        OpenOptions::new().write(true).open(self.path()).unwrap().set_len(len).unwrap();
    }

    fn check(&self) -> (CheckSummary, Vec<Finding>) {
        let ours = our_check(&self.path(), Repair::None);
        (ours.outcome.unwrap(), ours.findings)
    }

    /// Names an L1 table of `entries` at `at` in the header.
    fn name_l1(&self, at: u64, entries: u32) {
        self.patch(36, &entries.to_be_bytes());
        self.patch_u64(40, at);
    }
}

fn table_of(entry: u64, count: usize) -> Vec<u8> {
    entry.to_be_bytes().repeat(count)
}

#[test]
fn one_l2_table_behind_every_entry_of_thousands_of_the_largest_l1_tables() {
    let image = Image::create("64k", "1G");
    let (l1_at, l2_at, snapshots_at) = (MIB, 40 * MIB, 41 * MIB);
    let (l1_entries, snapshots) = (4 << 20, 60_000_u32);
    image.name_l1(l1_at, l1_entries);
    image.patch(l1_at, &table_of(l2_at | COPIED, l1_entries as usize));
    image.patch(l2_at, &table_of(l2_at + 0x10000, 8192));
    let mut snapshot = [0; 56];
    snapshot[..8].copy_from_slice(&l1_at.to_be_bytes());
    snapshot[8..12].copy_from_slice(&l1_entries.to_be_bytes());
    snapshot[36..40].copy_from_slice(&16_u32.to_be_bytes());
    image.patch(snapshots_at, &snapshot.repeat(snapshots as usize));
    image.patch(60, &snapshots.to_be_bytes());
    image.patch_u64(64, snapshots_at);

    let (summary, findings) = image.check();
    assert_eq!(summary.allocated_clusters, 8192 * u64::from(l1_entries));
    let l2_cluster = (l2_at >> 16) as usize;
    let is_l2 = |finding: &&Finding| match finding {
        Finding::Undercounted { cluster, .. } => cluster.get() == l2_cluster as u64,
        _ => false,
    };
    let l2 = findings.iter().find(is_l2).unwrap().to_string();
    // More references than are told apart.
    assert_eq!(l2, format!("ERROR cluster {l2_cluster} refcount=0 reference={}", u32::MAX));
}

#[test]
fn l2_tables_that_overlap_in_millions_of_ways() {
    let image = Image::create("2M", "1G");
    let l1_at = 16 * MIB;
    let entries = 4_u32 << 20;
    image.name_l1(l1_at, entries);
    let unaligned = (0..u64::from(entries)).map(|i| (64 * MIB + i * 512).to_be_bytes());
    image.patch(l1_at, &unaligned.flatten().collect::<Vec<u8>>());
    image.patch(64 * MIB, &[0x11; 4096]);
    image.set_len(64 * MIB + 512 * u64::from(entries) + 2 * MIB);

    let (summary, findings) = image.check();
    assert!(summary.check_errors > 0 && summary.corruptions > u64::from(entries) * 9 / 10);
    assert!(findings.contains(&Finding::TooManyUnalignedTables));
}

#[test]
fn a_hole_of_a_tebibyte_with_a_table_in_every_corner() {
    let image = Image::create("64k", "1G");
    let l1_at = MIB;
    let entries = 4_u32 << 20;
    image.name_l1(l1_at, entries);
    let holes = (0..u64::from(entries)).map(|i| ((64 * MIB + i * 0x40000) | COPIED).to_be_bytes());
    image.patch(l1_at, &holes.flatten().collect::<Vec<u8>>());
    image.set_len(64 * MIB + (u64::from(entries) << 18));

    let (summary, _) = image.check();
    assert_eq!(summary.allocated_clusters, 0);
    assert!(summary.corruptions >= u64::from(entries));
}

#[test]
fn thousands_of_missing_refcount_blocks_need_a_larger_refcount_table() {
    let image = Image::create("512", "1M");
    let l1_at = MIB;
    let entries = 1_u32 << 16;
    image.name_l1(l1_at, entries);
    let holes = (0..u64::from(entries)).map(|i| ((2 * MIB + i * 1024) | COPIED).to_be_bytes());
    image.patch(l1_at, &holes.flatten().collect::<Vec<u8>>());
    image.set_len(2 * MIB + u64::from(entries) * 1024);

    let summary = our_check(&image.path(), Repair::All).outcome.unwrap();
    assert!(summary.is_clean() && summary.corruptions_fixed >= u64::from(entries), "{summary:?}");
    assert!(image.check().0.is_clean());
    assert_eq!(qemu::check(&image.path(), &[]).exit, 0);
}

#[test]
fn a_file_of_more_clusters_than_can_be_counted_is_refused() {
    let image = Image::create("512", "1M");
    image.set_len(1 << 41);
    let error = our_check(&image.path(), Repair::None).outcome.unwrap_err();
    assert!(error.contains("check handles at most 2147483647"), "{error}");
}
