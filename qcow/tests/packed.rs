//! Compressed clusters beside what frees the cluster of the file that they are packed into.

use std::path::Path;
use std::time::Duration;

use qcow::disk::Buffer;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::check::{Repair, check};
use qcow::engine::{CreateOptions, Image, OpenOptions, SnapshotChoice, create};
use qcow::gate::{BackingPolicy, Gate, HostGate};

const CLUSTER: u64 = 64 << 10;

const GATE: HostGate =
    HostGate { cache: CacheMode::PageCache, shared: false, backing: BackingPolicy::Deny };

async fn new_image(path: &Path) -> Image<UringDisk> {
    let disk = UringDisk::open(path, Access::Create, CacheMode::PageCache).expect("create");
    let options = CreateOptions { size: 16 * CLUSTER, ..CreateOptions::default() };
    create(&disk, &options).await.expect("create");
    drop(disk);
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    Image::open(&GATE, path, &options).await.expect("open")
}

fn filled(byte: u8) -> Buffer {
    Buffer::from_bytes(&[byte; CLUSTER as usize])
}

async fn expect_filled(image: &Image<UringDisk>, cluster: u64, byte: u8) {
    let buffer = Buffer::zeroed(CLUSTER as usize);
    image.read(cluster * CLUSTER, &buffer.payload()).await.expect("read");
    assert!(buffer.to_vec().iter().all(|&b| b == byte), "cluster {cluster}");
}

async fn expect_clean(path: &Path) {
    let disk = GATE.open_image(path, false).expect("open");
    let summary = check(&disk, path, Repair::None, &mut |_| {}).await.expect("check");
    assert_eq!((summary.leaks, summary.corruptions), (0, 0));
}

#[test]
fn nothing_is_packed_into_what_a_snapshot_that_is_applied_frees() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    block_on(async {
        let image = new_image(&path).await;
        image.create_snapshot("empty".as_ref(), Duration::ZERO).await.expect("create");
        image.write_compressed(0, &filled(1).payload()).await.expect("pack");
        let empty = SnapshotChoice::IdOrName("empty".into());
        image.apply_snapshot(&empty).await.expect("apply");
        // These take the clusters that have become free, and the next packed one must not go there, too.
        for cluster in 1..8 {
            image.write(cluster * CLUSTER, &filled(2).payload()).await.expect("write");
        }
        image.write_compressed(8 * CLUSTER, &filled(3).payload()).await.expect("pack");
        for cluster in 1..8 {
            expect_filled(&image, cluster, 2).await;
        }
        expect_filled(&image, 8, 3).await;
        image.close().await.expect("close");
        drop(image);
        expect_clean(&path).await;
    });
}

#[test]
fn nothing_is_packed_into_what_a_discard_frees() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    block_on(async {
        let image = new_image(&path).await;
        image.write_compressed(0, &filled(1).payload()).await.expect("pack");
        image.discard(0, CLUSTER).await.expect("discard");
        image.flush().await.expect("flush");
        for cluster in 1..8 {
            image.write(cluster * CLUSTER, &filled(2).payload()).await.expect("write");
        }
        image.write_compressed(0, &filled(3).payload()).await.expect("pack");
        for cluster in 1..8 {
            expect_filled(&image, cluster, 2).await;
        }
        expect_filled(&image, 0, 3).await;
        image.close().await.expect("close");
        drop(image);
        expect_clean(&path).await;
    });
}
