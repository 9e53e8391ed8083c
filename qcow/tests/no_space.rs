//! A full host: requests that need space fail, all others go on, nothing is lost, and the image stays consistent.

use std::path::Path;

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::sim::{Random, SimDisk, World};
use qcow::engine::check::{Repair, check};
use qcow::engine::{CreateOptions, Format, Image, OpenOptions, create};
use qcow::gate::OneFile;

const CLUSTERS: u64 = 256;
const CLUSTER: u64 = 1024;

#[test]
fn only_the_request_that_needs_space_fails() {
    for seed in 0..200 {
        println!("seed {seed}");
        let world = World::new(seed);
        let file = world.add_file(&[]);
        world.block_on(fill_up(&file, Random::new(seed)));
    }
}

async fn fill_up(file: &SimDisk, mut random: Random) {
    let options =
        CreateOptions { size: CLUSTERS * CLUSTER, cluster_bits: 10, ..CreateOptions::default() };
    create(file, &options).await.expect("create");
    file.set_capacity((40 + random.below(100)) * CLUSTER);
    let image = open(file).await;
    let mut model = vec![0u8; CLUSTERS as usize];
    let mut failures = 0;
    while failures < 20 {
        let cluster = random.below(CLUSTERS);
        let byte = 1 + random.below(255) as u8;
        match write(&image, cluster, byte).await {
            Ok(()) => model[cluster as usize] = byte,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                failures += 1;
            }
        }
        if random.below(8) == 0 {
            // A flush may lack the space for a table, and is tried again later.
            if let Err(e) = image.flush().await {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
            }
        }
        verify(&image, &model).await;
    }
    // Given space again, everything goes on.
    file.set_capacity(u64::MAX);
    for cluster in 0..CLUSTERS {
        write(&image, cluster, 7).await.expect("write");
    }
    model.fill(7);
    verify(&image, &model).await;
    image.close().await.expect("close");
    verify(&open(file).await, &model).await;
    let summary = check(file, Path::new("image"), Repair::None, &mut |f| println!("{f}")).await;
    let summary = summary.expect("check");
    assert_eq!((summary.corruptions, summary.leaks), (0, 0));
}

async fn open(file: &SimDisk) -> Image<SimDisk> {
    let options =
        OpenOptions { writable: true, format: Some(Format::Qcow2), ..OpenOptions::default() };
    Image::open(&OneFile(file.clone()), Path::new("image"), &options).await.expect("open")
}

async fn write(image: &Image<SimDisk>, cluster: u64, byte: u8) -> qcow::Result<()> {
    let bytes = Buffer::from_bytes(&[byte; CLUSTER as usize]);
    image.write(cluster * CLUSTER, &bytes.payload()).await
}

async fn verify(image: &Image<SimDisk>, model: &[u8]) {
    let buffer = Buffer::zeroed((CLUSTERS * CLUSTER) as usize);
    image.read(0, &buffer.payload()).await.expect("read");
    for (cluster, bytes) in buffer.to_vec().chunks(CLUSTER as usize).enumerate() {
        assert!(bytes.iter().all(|&b| b == model[cluster]), "cluster {cluster}");
    }
}
