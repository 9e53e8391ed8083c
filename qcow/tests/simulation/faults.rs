//! A fault at every operation of a case: the host fails, is full, falls short, is late, or never answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use qcow::disk::sim::{Fault, Random};

use crate::case::{Case, small_case};
use crate::drive::{Drive, Ending};
use crate::hunt::{expect_none, find, message_of, soak_factor};
use crate::recover::{expect_clean, recover};
use crate::start::Files;

/// Faults that are tried for each change.
const FAULTS: u64 = 4_000;
/// Power cuts after each fault.
const CUTS: u64 = 3;

/// Carries `case` out once for each of its operations and each fault, with that fault there. How many that were.
pub fn faults(case: &Case) -> u64 {
    let operations = {
        let drive = Drive::new(case);
        drive.run(|_| {});
        drive.world.operations()
    };
    for operation in 0..operations {
        for fault in Fault::ALL {
            if let Some(message) = message_of(|| with_faults(case, &[(operation, fault)])) {
                panic!("with {fault:?} at operation {operation}: {message}");
            }
        }
    }
    operations * Fault::ALL.len() as u64
}

/// Carries `case` out with these faults.
fn with_faults(case: &Case, faults: &[(u64, Fault)]) {
    let drive = Drive::new(case);
    faults.iter().for_each(|&(operation, fault)| drive.inject(operation, fault));
    let ending = drive.run(|_| {});
    if ending == Ending::Closed {
        drive.world.block_on(expect_clean(&case.shape, &drive.gate));
    }
    let random = &mut Random::new(case.seed);
    let cut = drive.gate.image.power_cut();
    // First what the power leaves, then what the page cache shows to the next who opens the image.
    let history = drive.history.borrow();
    let files = |image| Files { image, backing: drive.gate.backing.as_ref().map(|b| b.content()) };
    for _ in 0..CUTS {
        let image = cut.content(&cut.sample(random));
        let allowed = |values: &[u64]| history.check_survivors(values);
        recover(&case.shape, files(image), case.seed, &allowed, |_, _| {});
    }
    drop(history);
    drive.kill();
    let now = drive.history.borrow_mut().begin_now();
    let history = drive.history.borrow();
    let allowed = |values: &[u64]| history.check_whole(now, values);
    recover(&case.shape, files(drive.gate.image.content()), case.seed, &allowed, |_, _| {});
}

#[test]
fn no_fault_of_the_host_loses_flushed_data() {
    let (wanted, done) = (FAULTS * soak_factor(), AtomicU64::new(0));
    let start = Instant::now();
    let enough = || done.load(Ordering::Relaxed) >= wanted;
    let failure = find(small_case, enough, |case| {
        done.fetch_add(faults(case), Ordering::Relaxed);
    });
    expect_none("FAULT", failure);
    let (done, seconds) = (done.into_inner(), start.elapsed().as_secs_f64());
    println!("faults: {done} in {seconds:.0} s");
}
