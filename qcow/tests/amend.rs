//! An image that becomes one of another version, or gets counts of another width, with the power cut at every event: it is
//! the old image or the new one, shows the same disk, and is not corrupt.

use std::path::Path;

use qcow::disk::Buffer;
use qcow::disk::sim::{Content, Random, SimDisk, World};
use qcow::engine::check::{Repair, change_refcount_width, check};
use qcow::engine::{CreateOptions, Image, OpenOptions, create};
use qcow::gate::OneFile;

const CLUSTER: u64 = 1 << 10;
const SIZE: u64 = 40 * CLUSTER;
/// States that are looked at of each moment.
const STATES_PER_MOMENT: u64 = 400;

async fn open(disk: &SimDisk, writable: bool) -> Image<SimDisk> {
    let options = OpenOptions { writable, ..OpenOptions::default() };
    Image::open(&OneFile(disk.clone()), Path::new("image"), &options).await.expect("open")
}

async fn disk_of(image: &Image<SimDisk>) -> Vec<u8> {
    let buffer = Buffer::from_bytes(&vec![0xee; SIZE as usize]);
    image.read(0, &buffer.payload()).await.expect("every state can be read");
    buffer.to_vec()
}

/// An image with data, with zeros that are said by the mapping alone, and with zeros that keep their place.
fn prepared(cluster_bits: u32) -> (Content, Vec<u8>) {
    let world = World::new(1);
    let disk = world.add_file(&[]);
    let shown = world.block_on(async {
        let options = CreateOptions { size: SIZE, cluster_bits, ..CreateOptions::default() };
        create(&disk, &options).await.expect("create");
        let image = open(&disk, true).await;
        let data = Buffer::from_bytes(&vec![7; 20 * CLUSTER as usize]);
        image.write(CLUSTER / 2, &data.payload()).await.expect("write");
        image.write_zeroes(2 * CLUSTER, 3 * CLUSTER, false).await.expect("zero");
        image.write_zeroes(9 * CLUSTER, 4 * CLUSTER, true).await.expect("zero");
        image.write_zeroes(30 * CLUSTER, 5 * CLUSTER, true).await.expect("zero");
        let shown = disk_of(&image).await;
        image.close().await.expect("close");
        shown
    });
    (disk.content(), shown)
}

/// Cuts `change` off at every event; how many states were looked at.
fn cut_off<F: Future<Output = ()>>(
    (content, shown): &(Content, Vec<u8>),
    change: impl FnOnce(SimDisk) -> F,
) -> u64 {
    let world = World::new(3);
    let disk = world.add_content(content.clone());
    let (mut states, mut random) = (0, Random::new(5));
    let mut look = || {
        let cut = disk.power_cut();
        for _ in 0..STATES_PER_MOMENT.min(cut.count()) {
            must_be_whole(cut.content(&cut.sample(&mut random)), shown);
            states += 1;
        }
    };
    world.run(change(disk.clone()), &mut look).expect("nothing hangs");
    look();
    states
}

fn must_be_whole(content: Content, shown: &[u8]) {
    let world = World::new(4);
    let disk = world.add_content(content);
    world.block_on(async {
        let path = Path::new("image");
        let summary = check(&disk, path, Repair::None, &mut |_| ()).await.expect("check");
        assert_eq!((summary.corruptions, summary.check_errors), (0, 0), "{summary:?}");
        assert!(disk_of(&open(&disk, false).await).await == shown, "another disk");
        let image = open(&disk, true).await;
        let data = Buffer::from_bytes(&vec![9; SIZE as usize]);
        image.write(0, &data.payload()).await.expect("write");
        image.close().await.expect("close");
    });
}

#[test]
fn a_version_is_the_old_one_or_the_new_one() {
    for cluster_bits in [9, 10, 13] {
        let image = prepared(cluster_bits);
        let states = cut_off(&image, |disk| async move {
            let image = open(&disk, true).await;
            image.downgrade().await.expect("downgrade");
            image.close().await.expect("close");
            let image = open(&disk, true).await;
            image.upgrade().await.expect("upgrade");
            image.set_lazy_refcounts(true).await.expect("lazy");
            image.close().await.expect("close");
        });
        assert!(states > 100, "{states} states");
    }
}

#[test]
fn a_width_is_the_old_one_or_the_new_one() {
    let image = prepared(9);
    for order in [0, 3, 6] {
        let states = cut_off(&image, |disk| async move {
            change_refcount_width(&disk, Path::new("image"), order).await.expect("change");
        });
        assert!(states > 70, "{states} states");
    }
}
