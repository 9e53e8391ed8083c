//! Damage that once led the engine to destroy what was still whole: each image must be refused, or the request must fail,
//! and nothing else may change.

use std::path::Path;

use qcow::ErrorKind;
use qcow::addr::HostOffset;
use qcow::disk::Buffer;
use qcow::disk::sim::{SimDisk, World};
use qcow::engine::check::{Repair, check};
use qcow::engine::{CreateOptions, Format, Image, OpenOptions, create};
use qcow::format::snapshot::{SnapshotEntry, encode_table};
use qcow::gate::OneFile;

const CLUSTER: u64 = 1024;
const COPIED: u64 = 1 << 63;

async fn open(file: &SimDisk, writable: bool) -> qcow::Result<Image<SimDisk>> {
    let options = OpenOptions { writable, format: Some(Format::Qcow2), ..OpenOptions::default() };
    Image::open(&OneFile(file.clone()), Path::new("image"), &options).await
}

async fn write(image: &Image<SimDisk>, cluster: u64, byte: u8) -> qcow::Result<()> {
    let bytes = Buffer::from_bytes(&[byte; CLUSTER as usize]);
    image.write(cluster * CLUSTER, &bytes.payload()).await
}

/// A sound image whose first guest clusters are written, to be damaged.
struct Bytes(Vec<u8>);

impl Bytes {
    fn sound() -> Self {
        let world = World::new(1);
        let file = world.add_file(&[]);
        world.block_on(async {
            let size = 128 * CLUSTER;
            let options = CreateOptions { size, cluster_bits: 10, ..CreateOptions::default() };
            create(&file, &options).await.expect("create");
            let image = open(&file, true).await.expect("open");
            for cluster in 0..4 {
                write(&image, cluster, 1 + cluster as u8).await.expect("write");
            }
            image.close().await.expect("close");
        });
        Self(file.to_vec())
    }

    fn word(&self, at: u64) -> u64 {
        let at = at as usize;
        u64::from_be_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    fn set_word(&mut self, at: u64, word: u64) {
        let at = at as usize;
        self.0[at..at + 8].copy_from_slice(&word.to_be_bytes());
    }

    fn l1(&self) -> u64 {
        self.word(40)
    }

    fn l2(&self) -> u64 {
        self.word(self.l1()) & !COPIED
    }

    fn refcount_table(&self) -> u64 {
        self.word(48)
    }

    /// Opening it for writing fails, reading it changes nothing.
    fn assert_refused(self) {
        let world = World::new(1);
        let file = world.add_file(&self.0);
        let refused = world.block_on(open(&file, true));
        assert_eq!(refused.expect_err("must be refused").kind(), ErrorKind::Corrupt);
        assert!(file.to_vec() == self.0);
    }
}

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
        image.close().await.expect("close");
    });
    assert!(file.to_vec() == bytes.0);
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
            write(&image, 10, 9).await.expect_err("a table is no data");
            image.discard(10 * CLUSTER, CLUSTER).await.expect("unlinked, and never freed");
            image.flush().await.expect("flush");
            for cluster in 4..20 {
                write(&image, cluster, cluster as u8).await.expect("write");
            }
            image.close().await.expect("close");
            let image = open(&file, false).await.expect("open");
            image.read(2 * CLUSTER, &read.payload()).await.expect("read");
            assert!(read.to_vec().iter().all(|&b| b == 3));
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
