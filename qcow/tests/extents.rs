//! Data and holes of a host file are told as they are, also where they have been told before.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use qcow::addr::HostOffset;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::disk::{Buffer, Disk};

const CLUSTER: u64 = 64 << 10;

/// Whether each cluster is data.
fn data(disk: &UringDisk, clusters: u64) -> Vec<bool> {
    let at = |cluster| HostOffset::new(cluster * CLUSTER);
    (0..clusters).map(|cluster| disk.extent_at(at(cluster)).unwrap().data).collect()
}

#[test]
fn holes_that_are_made_are_seen() {
    for directory in ["/dev/shm".into(), std::env::temp_dir()] {
        let directory = tempfile::tempdir_in(directory).unwrap();
        let path = directory.path().join("file");
        let disk = UringDisk::open(&path, Access::Create, CacheMode::PageCache).unwrap();
        block_on(async {
            let bytes = Buffer::from_bytes(&[1; 4 * CLUSTER as usize]).payload();
            disk.write(HostOffset::new(0), &bytes).await.unwrap();
            assert_eq!(data(&disk, 4), [true; 4]);
            let extent = disk.extent_at(HostOffset::new(CLUSTER + 1)).unwrap();
            assert_eq!((extent.len, extent.data), (3 * CLUSTER - 1, true));

            assert!(disk.punch_hole(HostOffset::new(CLUSTER), CLUSTER).await.unwrap());
            assert_eq!(data(&disk, 4), [true, false, true, true]);
            disk.set_len(2 * CLUSTER).await.unwrap();
            disk.set_len(4 * CLUSTER).await.unwrap();
            assert_eq!(data(&disk, 4), [true, false, false, false]);
            disk.write(HostOffset::new(3 * CLUSTER), &bytes.slice(0, CLUSTER)).await.unwrap();
            assert_eq!(data(&disk, 4), [true, false, false, true]);
        });
    }
}
