//! Internal snapshots of an image with a redo log, whose process is killed at every event: the next one finds the disk with
//! all that was acknowledged, every snapshot as it was, and the one that was coming, going or becoming the disk either way.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use qcow::disk::sim::{Random, World};
use qcow::engine::FoundRedo;

use crate::drive::open;
use crate::hunt::{message_of, wanted};
use crate::memory::Memory;
use crate::snapshots::{Moment, Scene, content_of, expect_clean};
use crate::start::Files;

/// Cases for each change, and in a long run.
const CASES: u64 = 40;
const CASES_SOAK: u64 = 20_000;
/// Most requests of a case.
const STEPS_MAX: u64 = 10;
/// One event in so many is where it is killed.
const KILLED_ONE_IN: u64 = 4;

/// Runs the case of `seed`, killed at many events; how many that were.
fn run(seed: u64) -> u64 {
    let scene = Scene::with_redo(seed);
    let memory = scene.memory.clone().expect("a scene with a log");
    let (mut random, mut kills) = (Random::new(seed), 0);
    let observe = || {
        if random.below(KILLED_ONE_IN) != 0 {
            return;
        }
        kills += 1;
        let image = scene.gate.image.killed(&mut random);
        let files = Files { image, ..scene.gate.files() };
        revive(files, &memory.copy(), &scene.moment.borrow(), seed);
    };
    let played = scene.world.run(scene.play(STEPS_MAX), observe);
    played.expect("nothing hangs").unwrap_or_else(|e| panic!("{e}"));
    scene.expect_closed();
    kills
}

/// The next process.
fn revive(files: Files, memory: &Memory, moment: &Moment, seed: u64) {
    let world = World::new(!seed);
    let gate = files.put_into(&world);
    world.block_on(async {
        let image = open(&gate, 1 << 20).await.expect("open");
        image.attach_redo_log(memory.share(), FoundRedo::Replay).await.expect("replay");
        let found = content_of(&gate).await;
        moment.check(&found);
        image.recover_leaks(&AtomicBool::new(false)).await.expect("recover");
        image.close().await.expect("close");
        Moment::at_rest(found).check(&content_of(&gate).await);
    });
    expect_clean(&world, &gate);
}

#[test]
fn no_kill_leaves_half_a_snapshot() {
    let first =
        std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let (start, mut kills) = (Instant::now(), 0);
    for seed in first..first + wanted(CASES, CASES_SOAK) {
        if let Some(message) = message_of(|| kills += run(seed)) {
            panic!(
                "{message}\nrepeat it with: SIMULATION_SEED={seed} SIMULATION_SHARE={CASES} cargo test -p qcow --test \
                 simulation no_kill_leaves_half_a_snapshot"
            );
        }
    }
    println!("snapshots: {kills} kills in {:.1?}", start.elapsed());
}
