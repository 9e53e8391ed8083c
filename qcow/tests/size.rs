//! Large images: what is quick with ten clusters must end with a million.

use std::path::Path;
use std::process::Command;

use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::{CreateOptions, Format, Image, OpenOptions, Preallocation, create};
use qcow::gate::{BackingPolicy, HostGate};

#[test]
fn a_million_clusters_are_discarded_in_one_request() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    let options = CreateOptions {
        size: 64 << 30,
        // Wide counts: their slices do not all fit the cache at the same time.
        refcount_order: 6,
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    };
    block_on(async {
        let disk = UringDisk::open(&path, Access::Create, CacheMode::PageCache).expect("create");
        create(&disk, &options).await.expect("create");
        drop(disk);
        let image = open(&path).await;
        image.discard(0, options.size).await.expect("discard");
        image.flush().await.expect("flush");
        image.close().await.expect("close");
    });
    let check = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&path).status();
    assert!(check.expect("qemu-img is installed").success());
}

async fn open(path: &Path) -> Image<UringDisk> {
    let gate =
        HostGate { cache: CacheMode::PageCache, shared: false, backing: BackingPolicy::Deny };
    let options =
        OpenOptions { writable: true, format: Some(Format::Qcow2), ..OpenOptions::default() };
    Image::open(&gate, path, &options).await.expect("open")
}
