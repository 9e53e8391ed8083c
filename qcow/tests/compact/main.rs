//! Compaction of random images: all layers keep their content, nothing is leaked, the file gets as short as it can, and a
//! second compaction finds nothing to do; with the power cut at every event, with a fault at every operation, and of images
//! that are damaged.
//!
//! A failure names its seed; `COMPACT_SEED=N cargo test -p qcow --test compact TEST` repeats it alone. `SOAK_FACTOR`
//! multiplies the number of images.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;

use qcow::addr::Geometry;
use qcow::disk::sim::{SimDisk, World};
use qcow::engine::check::Crew;
use qcow::engine::compact::{Compaction, compact_in_goes};

mod crash;
mod damage;
mod faults;
mod images;
mod layers;

use images::Made;
use layers::{KEY, Layers, look};

const IMAGES: u64 = 250;
/// Of so many images QEMU looks at one.
const QEMU_ONE_IN: u64 = 8;

/// Compacts the image in `disk`, of every other seed in goes of a few clusters.
async fn compact_image(disk: &SimDisk, seed: u64) -> qcow::Result<Compaction> {
    let clusters_max = if seed.is_multiple_of(2) { u64::MAX } else { 1 + seed / 2 % 8 };
    let (path, key) = (Path::new("image"), Some(&**KEY));
    compact_in_goes(Crew::ALONE, disk, path, key, clusters_max, &mut |_| ()).await
}

/// Runs `case` with `count` seeds times the soak factor, or with the one that is asked for.
fn each_seed(count: u64, test: &str, mut case: impl FnMut(u64)) {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let all = 0..count * number("SOAK_FACTOR").unwrap_or(1);
    let seeds = number("COMPACT_SEED").map_or(all, |seed| seed..seed + 1);
    for seed in seeds {
        println!("repeat with: COMPACT_SEED={seed} cargo test -p qcow --test compact {test}");
        case(seed);
    }
}

#[test]
fn layers_keep_their_content_and_the_file_is_as_short_as_it_can_be() {
    let directory = tempfile::tempdir().unwrap();
    let test = "layers_keep_their_content_and_the_file_is_as_short_as_it_can_be";
    let (mut moved, mut given_back) = (0, 0);
    each_seed(IMAGES, test, |seed| {
        let made = Made::new(seed);
        println!("{made:?}");
        let world = World::new(seed);
        let disk = world.add_content(made.content.clone());
        let done = world.block_on(compact_image(&disk, seed)).unwrap();
        println!("{done:?}");
        moved += done.clusters_moved;
        given_back += done.before.len - done.after.len;
        must_be_compact(&world, &disk, &made);
        if seed % QEMU_ONE_IN == 0 {
            must_be_clean_to_qemu(&disk, directory.path(), &made);
        }
        let bytes = disk.to_vec();
        let again = world.block_on(compact_image(&disk, seed)).unwrap();
        assert_eq!((again.clusters_moved, again.after.len), (0, done.after.len), "a second time");
        // Free clusters between others are punched each time, and may read as anything.
        assert!(made.has_runs || disk.to_vec() == bytes, "a second compaction writes");
        world.block_on(layers::write_all(&disk));
        assert!(world.block_on(look(&disk)).is_clean(), "after all of it was written");
    });
    println!("{moved} clusters moved, {given_back} bytes given back");
    assert!(moved > IMAGES && given_back > 0);
}

fn must_be_compact(world: &World, disk: &SimDisk, made: &Made) {
    let summary = world.block_on(look(disk));
    assert!(summary.is_clean(), "{summary:?}");
    assert!(world.block_on(Layers::read(disk)) == made.layers, "a layer has changed");
    let len = disk.to_vec().len() as u64;
    assert!(len <= made.content.len());
    let cluster = made.geometry.cluster_size();
    let used = used_clusters(&disk.to_vec(), made.geometry);
    if !made.has_runs {
        assert_eq!(len, used * cluster, "free clusters are left");
    }
}

/// Clusters that are counted.
fn used_clusters(image: &[u8], geometry: Geometry) -> u64 {
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let table = word(48) as usize;
    let clusters = u32::from_be_bytes(image[56..60].try_into().unwrap()) as usize;
    let cluster = geometry.cluster_size() as usize;
    let blocks = (0..clusters * cluster / 8).map(|index| word(table + index * 8) as usize);
    let counts = blocks.filter(|&block| block != 0).map(|block| {
        let bytes = &image[block..block + cluster];
        let count = |at| qcow::meta::refs::read_count(bytes, geometry.refcount_order(), at);
        (0..geometry.refcounts_per_block() as usize).filter(|&at| count(at) > 0).count() as u64
    });
    counts.sum()
}

fn must_be_clean_to_qemu(disk: &SimDisk, directory: &Path, made: &Made) {
    std::fs::write(directory.join("image"), disk.to_vec()).unwrap();
    std::fs::write(directory.join("key"), "key").unwrap();
    let mut opened = "driver=qcow2,file.filename=image".to_owned();
    if made.is_encrypted {
        opened += ",encrypt.key-secret=key";
    }
    let mut command = Command::new("qemu-img");
    command.args(["check", "-q", "--object", "secret,id=key,file=key", "--image-opts", &opened]);
    let output = command.current_dir(directory).output();
    let output = output.expect("this test needs qemu-img: install qemu-utils");
    assert!(output.status.success(), "qemu-img check: {output:?}");
}
