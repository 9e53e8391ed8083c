//! The L2 tables of snapshots are metadata, too: damage of the active tables must not reach them.

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::sim::World;

use crate::image::{Bytes, CLUSTER, COPIED, open, write};

/// A sound image with a snapshot whose L2 table the active image no longer shares.
fn parted() -> Bytes {
    let (bytes, _) = shared().through("qemu-io", &["-f", "qcow2", "-c", "write -P 40 5k 1k"]);
    assert_ne!(bytes.l2(), snapshot_l2(&bytes));
    bytes
}

/// A sound image with a snapshot that shares its L2 table.
fn shared() -> Bytes {
    let (bytes, _) = Bytes::sound().through("qemu-img", &["snapshot", "-c", "one"]);
    assert_eq!(bytes.l2(), snapshot_l2(&bytes));
    bytes
}

/// Offset of the snapshot's L1 table.
fn snapshot_l1(bytes: &Bytes) -> u64 {
    bytes.word(bytes.word(64))
}

/// Offset of the snapshot's L2 table.
fn snapshot_l2(bytes: &Bytes) -> u64 {
    bytes.word(snapshot_l1(bytes)) & !COPIED
}

/// Writing `cluster` fails, condemns the image, and leaves the snapshot's table as it was.
fn assert_condemned_by_write(bytes: &Bytes, cluster: u64) -> Bytes {
    let table = snapshot_l2(bytes);
    let world = World::new(1);
    let file = world.add_file(&bytes.0);
    world.block_on(async {
        let image = open(&file, true).await.expect("open");
        let refused = write(&image, cluster, 9).await.expect_err("a table is in the way");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        write(&image, 30, 9).await.expect_err("read-only");
        image.discard(0, CLUSTER).await.expect_err("read-only");
        image.flush().await.expect_err("read-only");
        let read = Buffer::zeroed(CLUSTER as usize);
        image.read(2 * CLUSTER, &read.payload()).await.expect("reads go on");
        assert!(read.to_vec().iter().all(|&b| b == 3));
        image.close().await.expect_err("read-only");
        let refused = open(&file, true).await.expect_err("the corrupt bit");
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        open(&file, false).await.expect("to be read");
    });
    let after = Bytes(file.to_vec());
    assert!(after.cluster(table) == bytes.cluster(table));
    assert!(after.is_marked_corrupt());
    after
}

#[test]
fn a_guest_cluster_that_maps_the_table_of_a_snapshot() {
    let mut bytes = parted();
    let entry = bytes.l2() + 10 * 8;
    bytes.set_word(entry, snapshot_l2(&bytes) | COPIED);
    let after = assert_condemned_by_write(&bytes, 10);
    let (_, told) = after.through("qemu-img", &["info", "-f", "qcow2", "--output=json"]);
    assert!(told.contains("\"corrupt\": true"), "{told}");
}

#[test]
fn an_l1_entry_that_claims_the_table_of_a_snapshot_for_itself() {
    let mut bytes = shared();
    bytes.set_word(bytes.l1(), snapshot_l2(&bytes) | COPIED);
    assert_condemned_by_write(&bytes, 1);
}

#[test]
fn a_table_of_a_snapshot_that_counts_as_free() {
    let mut bytes = parted();
    bytes.set_count(snapshot_l2(&bytes) / CLUSTER, 0);
    assert_condemned_by_write(&bytes, 20);
}

#[test]
fn a_shared_table_that_is_counted_once() {
    let mut bytes = shared();
    let table = snapshot_l2(&bytes);
    bytes.set_count(table / CLUSTER, 1);
    let world = World::new(1);
    let file = world.add_file(&bytes.0);
    world.block_on(async {
        let image = open(&file, true).await.expect("open");
        write(&image, 10, 9).await.expect("to a copy of the table");
        image.flush().await.expect_err("the table would become free");
        image.close().await.expect_err("read-only");
    });
    let after = Bytes(file.to_vec());
    assert!(after.cluster(table) == bytes.cluster(table));
    assert_eq!(after.count(table / CLUSTER), 1);
    assert!(after.is_marked_corrupt());
}

#[test]
fn an_l1_entry_of_a_snapshot_that_is_no_entry() {
    for entry in [1, 0x100_0000, CLUSTER / 2, 0] {
        let mut bytes = parted();
        // The last of them names the refcount table.
        let entry = if entry == 0 { bytes.refcount_table() } else { entry };
        bytes.set_word(snapshot_l1(&bytes), entry);
        bytes.assert_refused();
    }
}

#[test]
fn a_sound_table_that_a_snapshot_shares_is_copied_and_let_go() {
    let bytes = shared();
    let table = snapshot_l2(&bytes);
    let world = World::new(1);
    let file = world.add_file(&bytes.0);
    world.block_on(async {
        let image = open(&file, true).await.expect("open");
        write(&image, 1, 9).await.expect("write");
        image.discard(2 * CLUSTER, CLUSTER).await.expect("discard");
        image.close().await.expect("close");
    });
    let after = Bytes(file.to_vec());
    assert!(after.cluster(table) == bytes.cluster(table));
    assert_eq!((bytes.count(table / CLUSTER), after.count(table / CLUSTER)), (2, 1));
    after.through("qemu-img", &["check", "-q", "-f", "qcow2"]);
}
