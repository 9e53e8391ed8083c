//! What condemns an image, and what does not.

use qcow::ErrorKind;
use qcow::disk::sim::World;

use crate::image::{Bytes, CLUSTER, COPIED, open, write};

/// Writes to new clusters until that fails, which must be for a reason; the bytes then.
fn fill(bytes: &Bytes) -> Bytes {
    let world = World::new(1);
    let file = world.add_file(&bytes.0);
    world.block_on(async {
        let image = open(&file, true).await.expect("open");
        let refused = write(&image, 20, 9).await.expect_err("a cluster in use counts as free");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        assert!(refused.to_string().contains("qemu-img check -r all"), "{refused}");
        image.health().expect_err("read-only");
        image.close().await.expect_err("read-only");
    });
    Bytes(file.to_vec())
}

#[test]
fn a_live_l2_table_that_counts_as_free_is_not_handed_out() {
    let mut bytes = Bytes::sound();
    bytes.set_count(bytes.l2() / CLUSTER, 0);
    let after = fill(&bytes);
    bytes.set_corrupt_bit();
    after.assert_only_marked(&bytes);
}

#[test]
fn a_live_refcount_block_that_counts_as_free_is_not_handed_out() {
    let mut bytes = Bytes::sound();
    bytes.set_count(bytes.word(bytes.refcount_table()) / CLUSTER, 0);
    let after = fill(&bytes);
    bytes.set_corrupt_bit();
    after.assert_only_marked(&bytes);
}

#[test]
fn version_2_has_no_bit_to_set() {
    let (mut bytes, _) =
        Bytes::sound().through("qemu-img", &["amend", "-f", "qcow2", "-o", "compat=0.10"]);
    bytes.set_count(bytes.l2() / CLUSTER, 0);
    fill(&bytes).assert_only_marked(&bytes);
}

/// As in Cloud Hypervisor's bug 8358, where the header was handed out and overwritten.
#[test]
fn a_header_that_counts_as_free_is_not_handed_out() {
    let mut bytes = Bytes::sound();
    bytes.set_count(0, 0);
    let world = World::new(1);
    let file = world.add_file(&bytes.0);
    world.block_on(async {
        let image = open(&file, true).await.expect("open");
        for cluster in 4..100 {
            write(&image, cluster, 9).await.expect("there is other space");
        }
        image.discard(0, 50 * CLUSTER).await.expect("discard");
        image.flush().await.expect("flush");
        for cluster in 0..50 {
            write(&image, cluster, 8).await.expect("there is other space");
        }
        image.close().await.expect("close");
    });
    assert!(Bytes(file.to_vec()).cluster(0) == bytes.cluster(0));
}

#[test]
fn a_cluster_in_use_that_counts_as_free_is_not_freed_again() {
    let mut bytes = Bytes::sound();
    let data = bytes.word(bytes.l2() + 8) & !COPIED;
    bytes.set_count(data / CLUSTER, 0);
    let world = World::new(1);
    let file = world.add_file(&bytes.0);
    world.block_on(async {
        let image = open(&file, true).await.expect("open");
        image.discard(CLUSTER, CLUSTER).await.expect("its mapping is sound");
        let refused = image.flush().await.expect_err("its count is not");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        write(&image, 20, 9).await.expect_err("read-only");
    });
    let after = Bytes(file.to_vec());
    assert!(after.is_marked_corrupt());
    assert!(after.cluster(data) == bytes.cluster(data), "no hole was punched");
}
