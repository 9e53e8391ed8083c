//! What it costs to open an image and to begin using it, as the image grows: counted in requests to its file.

use std::future::Future;
use std::path::Path;

use qcow::disk::Buffer;
use qcow::disk::sim::{SimDisk, World};
use qcow::engine::{CreateOptions, Format, Image, OpenOptions, Preallocation, create};
use qcow::gate::OneFile;

const CLUSTER: u64 = 64 << 10;

/// An image of a disk of `gib` GiB, all of it mapped.
struct Mapped {
    world: World,
    file: SimDisk,
    size: u64,
}

impl Mapped {
    fn new(gib: u64) -> Self {
        let world = World::new(1);
        let file = world.add_file(&[]);
        let (size, preallocation) = (gib << 30, Preallocation::Metadata);
        let options = CreateOptions { size, preallocation, ..CreateOptions::default() };
        world.block_on(create(&file, &options)).expect("create");
        Self { world, file, size }
    }

    async fn open(&self, writable: bool) -> Image<SimDisk> {
        let format = Some(Format::Qcow2);
        let options = OpenOptions { writable, format, ..OpenOptions::default() };
        let gate = OneFile(self.file.clone());
        Image::open(&gate, Path::new("image"), &options).await.expect("open")
    }

    /// How many requests `action` makes.
    fn requests<T>(&self, action: impl Future<Output = T>) -> (T, u64) {
        let before = self.world.operations();
        let result = self.world.block_on(action);
        (result, self.world.operations() - before)
    }
}

#[test]
fn opening_takes_as_many_requests_whatever_the_size() {
    let of_size = |gib| {
        let mapped = Mapped::new(gib);
        [false, true].map(|writable| mapped.requests(mapped.open(writable)).1)
    };
    let small = of_size(1);
    assert_eq!(of_size(64), small);
    assert!(small.iter().all(|&requests| requests <= 10), "{small:?} requests");
}

#[test]
fn the_first_claim_in_a_full_file_reads_many_refcounts_at_a_time() {
    let mapped = Mapped::new(64);
    let last = mapped.size - CLUSTER;
    mapped.world.block_on(async {
        let image = mapped.open(true).await;
        image.discard(last, CLUSTER).await.expect("discard");
        image.close().await.expect("close");
    });
    let image = mapped.world.block_on(mapped.open(true));
    let (data, found) = (Buffer::from_bytes(&[7; 512]), Buffer::zeroed(512));
    let (written, requests) = mapped.requests(image.write(last, &data.payload()));
    written.expect("write");
    mapped.world.block_on(image.read(last, &found.payload())).expect("read");
    assert_eq!(found.to_vec(), data.to_vec());
    // A million clusters are in use: 512 slices of refcounts, 32 blocks.
    assert!(requests < 64, "{requests} requests");
}
