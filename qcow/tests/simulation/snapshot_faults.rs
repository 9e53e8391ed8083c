//! Internal snapshots on a host that fails: a fault at every operation of cases in which snapshots come, go and become the
//! disk. Whatever the image says of it, what is found afterwards is what was before the request under way or after it.

use std::time::Instant;

use qcow::disk::sim::Fault;

use crate::hunt::{message_of, wanted};
use crate::snapshots::Scene;

/// Faults for each change, and in a long run.
const FAULTS: u64 = 4_000;
const FAULTS_SOAK: u64 = 1_000_000;
/// Most requests of a case.
const STEPS_MAX: u64 = 4;

/// Plays the case of `seed` once for each of its operations and each fault, with that fault there. How many that were.
fn faults(seed: u64) -> u64 {
    let scene = Scene::new(seed);
    scene.world.run(scene.play(STEPS_MAX), || ()).expect("nothing hangs").expect("no fault");
    let operations = scene.world.operations();
    for operation in 0..operations {
        for fault in Fault::ALL {
            if let Some(message) = message_of(|| survive(seed, operation, fault)) {
                panic!("{fault:?} at operation {operation}: {message}");
            }
        }
    }
    operations * Fault::ALL.len() as u64
}

fn survive(seed: u64, operation: u64, fault: Fault) {
    let scene = Scene::new(seed);
    scene.world.inject(operation, fault);
    if let Some(Ok(())) = scene.world.run(scene.play(STEPS_MAX), || ()) {
        return scene.expect_closed();
    }
    // First what the power leaves, then what the page cache shows to the next who opens the image.
    let looker = scene.looker(false);
    let moment = scene.moment.borrow();
    looker.cut(&scene.gate, &moment, false);
    scene.world.kill();
    looker.examine(&scene.gate.files(), &moment, false);
}

#[test]
fn no_fault_of_the_host_leaves_half_a_snapshot() {
    let first =
        std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let (start, wanted) = (Instant::now(), wanted(FAULTS, FAULTS_SOAK));
    let (mut seed, mut done) = (first, 0);
    while done < wanted {
        if let Some(message) = message_of(|| done += faults(seed)) {
            panic!(
                "{message}\nrepeat it with: SIMULATION_SEED={seed} SIMULATION_SHARE={FAULTS} cargo test -p qcow --test \
                 simulation no_fault_of_the_host_leaves_half_a_snapshot"
            );
        }
        seed += 1;
    }
    println!("faults of snapshots: {done} in {:.1?}", start.elapsed());
}
