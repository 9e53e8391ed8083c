//! The power is cut at every event of a compaction: every layer shows what it showed, nothing is corrupt, and once the image
//! has been opened and closed nothing is leaked.

use std::path::Path;

use qcow::disk::sim::{Content, Random, World};
use qcow::engine::check::{Repair, check};

use crate::images::Made;
use crate::layers::{Layers, look, open_to_write, write_all};
use crate::{compact_image, each_seed};

const IMAGES: u64 = 60;
/// States that are looked at of each moment.
const STATES_PER_MOMENT: u64 = 6;
/// Of so many states one is written to.
const WRITTEN_ONE_IN: u64 = 4;

#[test]
fn a_cut_leaves_the_same_layers() {
    let mut states = 0;
    each_seed(IMAGES, "a_cut_leaves_the_same_layers", |seed| {
        states += cut_off(&Made::small(seed), seed);
    });
    println!("{states} states");
    assert!(states > 40 * IMAGES);
}

#[test]
fn a_cut_leaves_the_same_layers_where_the_mark_is_new() {
    let (mut states, images) = (0, IMAGES / 3);
    each_seed(images, "a_cut_leaves_the_same_layers_where_the_mark_is_new", |seed| {
        states += cut_off(&Made::small(seed).without_mark(), seed);
    });
    assert!(states > 40 * images);
}

/// Cuts the compaction off at every event; how many states were looked at.
fn cut_off(made: &Made, seed: u64) -> u64 {
    println!("{made:?}");
    let world = World::new(seed);
    let disk = world.add_content(made.content.clone());
    let (mut states, mut random) = (0, Random::new(seed));
    let mut look = || {
        let cut = disk.power_cut();
        for _ in 0..STATES_PER_MOMENT.min(cut.count()) {
            let written = random.below(WRITTEN_ONE_IN) == 0;
            must_be_whole(cut.content(&cut.sample(&mut random)), made, written);
            states += 1;
        }
    };
    let done = world.run(compact_image(&disk, seed), &mut look).unwrap();
    done.unwrap();
    look();
    states
}

fn must_be_whole(content: Content, made: &Made, written: bool) {
    let world = World::new(4);
    let disk = world.add_content(content);
    world.block_on(async {
        let summary = look(&disk).await;
        assert_eq!((summary.corruptions, summary.check_errors), (0, 0), "{summary:?}");
        assert!(Layers::read(&disk).await == made.layers, "a layer has changed");
        // Where there is no room for a mark, and before it is there, nothing tells of leaks.
        if !made.is_marked {
            check(&disk, Path::new("image"), Repair::Leaks, &mut |_| ()).await.unwrap();
        }
        let image = open_to_write(&disk).await.unwrap();
        image.recover_leaks(&false.into()).await.unwrap();
        image.close().await.unwrap();
        assert!(Layers::read(&disk).await == made.layers, "a layer has changed at the next open");
        if written {
            write_all(&disk).await;
        }
        let summary = look(&disk).await;
        assert!(summary.is_clean(), "after recovery: {summary:?}");
    });
}

#[cfg(feature = "seeded-bugs")]
mod bugs {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use qcow::seeded_bugs::Bug;

    use super::*;

    /// Images among which a bug has to show.
    const TRIED_MAX: u64 = 200;

    #[test]
    fn every_missing_barrier_is_found() {
        for bug in [Bug::MovedBeforeCopied, Bug::MovedFreedTooEarly] {
            let cut = |seed| bug.seeded(|| cut_off(&Made::small(seed), seed));
            let shows = |seed: &u64| catch_unwind(AssertUnwindSafe(|| cut(*seed))).is_err();
            let seed = (0..TRIED_MAX).find(shows);
            println!("{bug:?}: found with seed {seed:?}");
            assert!(seed.is_some(), "{bug:?} is not found");
        }
    }
}
