//! Damage that once led the engine to destroy what was still whole: each image must be refused, or the request must fail,
//! and nothing else may change.

use std::path::Path;

use qcow::ErrorKind;
use qcow::addr::HostOffset;
use qcow::disk::Buffer;
use qcow::disk::sim::World;
use qcow::engine::check::{Repair, check};
use qcow::format::snapshot::{SnapshotEntry, encode_table};

use image::{Bytes, CLUSTER, COPIED, open, write};

mod condemned;
mod image;
mod snapshots;

#[test]
fn an_l2_table_past_the_end_of_the_file() {
    let mut bytes = Bytes::sound();
    bytes.set_word(bytes.l1(), 0x100_0000);
    bytes.assert_refused();
}

#[test]
fn an_l2_table_that_is_the_refcount_table() {
    let mut bytes = Bytes::sound();
    bytes.set_word(bytes.l1(), bytes.refcount_table() | COPIED);
    bytes.assert_refused();
}

#[test]
fn a_refcount_block_that_is_the_l1_table() {
    let mut bytes = Bytes::sound();
    bytes.set_word(bytes.refcount_table(), bytes.l1());
    bytes.assert_refused();
}

#[test]
fn a_refcount_block_that_is_named_twice() {
    let mut bytes = Bytes::sound();
    let (table, block) = (bytes.refcount_table(), bytes.word(bytes.refcount_table()));
    bytes.set_word(table + 8, block);
    bytes.assert_refused();
}

#[test]
fn without_a_refcount_block_nothing_is_allocated() {
    let mut bytes = Bytes::sound();
    bytes.set_word(bytes.refcount_table(), 0);
    let world = World::new(1);
    let file = world.add_file(&bytes.0);
    world.block_on(async {
        let image = open(&file, true).await.expect("open");
        let refused = write(&image, 60, 7).await.expect_err("no cluster is known to be free");
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        image.close().await.expect_err("read-only by now");
    });
    bytes.set_corrupt_bit();
    Bytes(file.to_vec()).assert_only_marked(&bytes);
}

#[test]
fn a_guest_cluster_that_maps_its_own_table() {
    for seed in 0..50 {
        let mut bytes = Bytes::sound();
        let l2 = bytes.l2();
        bytes.set_word(l2 + 10 * 8, l2 | COPIED);
        let world = World::new(seed);
        let file = world.add_file(&bytes.0);
        world.block_on(async {
            let image = open(&file, true).await.expect("open");
            let read = Buffer::zeroed(CLUSTER as usize);
            let leaked = image.read(10 * CLUSTER, &read.payload()).await;
            assert_eq!(leaked.expect_err("a table is no data").kind(), ErrorKind::Corrupt);
            write(&image, 4, 9).await.expect("a read alone condemns nothing");
            image.flush().await.expect("flush");
            match seed % 2 {
                0 => write(&image, 10, 9).await.expect_err("a table is no data"),
                _ => image.discard(10 * CLUSTER, CLUSTER).await.expect_err("nor is it freed"),
            };
            write(&image, 5, 9).await.expect_err("read-only");
            image.close().await.expect_err("read-only");
            let image = open(&file, false).await.expect("open");
            for (cluster, byte) in [(2, 3), (4, 9)] {
                image.read(cluster * CLUSTER, &read.payload()).await.expect("read");
                assert!(read.to_vec().iter().all(|&b| b == byte));
            }
        });
    }
}

#[test]
fn a_snapshot_whose_l1_table_lies_at_the_end_of_all_numbers() {
    let entry = SnapshotEntry {
        l1_table_offset: HostOffset::new(0xffff_ffff_ffff_0000),
        l1_size: 8192,
        id: "1".into(),
        name: "far".into(),
        date_seconds: 0,
        date_nanoseconds: 0,
        vm_clock_nanoseconds: 0,
        vm_state_size: 0,
        disk_size: 128 * CLUSTER,
        icount: None,
        unknown_extra: Vec::new(),
    };
    let mut bytes = Bytes::sound();
    let at = (bytes.0.len() as u64).next_multiple_of(CLUSTER);
    bytes.0.resize(at as usize, 0);
    bytes.0.extend(encode_table(&[entry]).expect("encode"));
    bytes.0[60..64].copy_from_slice(&1u32.to_be_bytes());
    bytes.set_word(64, at);
    let world = World::new(1);
    let file = world.add_file(&bytes.0);
    let path = Path::new("image");
    let summary = world.block_on(check(&file, path, Repair::None, &mut |f| println!("{f}")));
    assert!(summary.is_err() || summary.is_ok_and(|s| s.corruptions > 0));
    bytes.assert_refused();
}
