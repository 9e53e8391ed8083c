//! A fault at every operation of a case: the host fails, is full, falls short, is late, or never answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use qcow::disk::sim::{Fault, Random};

use proptest::strategy::Strategy;

use crate::case::{Case, redo_case, sealed_case, small_case};
use crate::cut::Cut;
use crate::drive::{Drive, Ending};
use crate::hunt::{expect_none, find, is_soak, message_of, wanted};
use crate::kills::replay;
use crate::recover::{expect_clean, recover};

/// Faults that are tried for each change, also of cases with a redo log, and pairs of faults in a long run.
const FAULTS: u64 = 40_000;
const REDO_FAULTS: u64 = 3_000;
const SEALED_FAULTS: u64 = 1_500;
const PAIRS_SOAK: u64 = 50_000_000;
/// Seeds that are tried where a failing case is made smaller.
pub const SEEDS: u64 = 4;
/// Power cuts after each fault.
const CUTS: u64 = 3;

/// Carries `case` out once for each of its operations and each fault, with that fault there. How many that were.
pub fn faults(case: &Case) -> u64 {
    let points = points(case);
    points.iter().for_each(|&point| with_faults(case, &[point]));
    points.len() as u64
}

/// Carries `case` out once for each pair of faults at two of its operations. How many that were.
fn pairs(case: &Case) -> u64 {
    let points = points(case);
    for (index, &first) in points.iter().enumerate() {
        for &second in points[index..].iter().filter(|(operation, _)| *operation > first.0) {
            with_faults(case, &[first, second]);
        }
    }
    points.len() as u64 * points.len() as u64 / 2
}

/// Every fault at every operation.
fn points(case: &Case) -> Vec<(u64, Fault)> {
    let drive = Drive::new(case);
    drive.run(|_| {});
    let operations = 0..drive.world.operations();
    operations.flat_map(|operation| Fault::ALL.map(|fault| (operation, fault))).collect()
}

/// Carries `case` out with these faults, each at an operation.
fn with_faults(case: &Case, faults: &[(u64, Fault)]) {
    if let Some(message) = message_of(|| survive(case, faults)) {
        panic!("with {faults:?}: {message}");
    }
}

fn survive(case: &Case, faults: &[(u64, Fault)]) {
    let drive = Drive::new(case);
    faults.iter().for_each(|&(operation, fault)| drive.inject(operation, fault));
    let ending = drive.run(|_| {});
    if ending == Ending::Closed {
        drive.world.block_on(expect_clean(&case.shape, &drive.gate));
    }
    let random = &mut Random::new(case.seed);
    let cut = Cut::now(&drive.gate);
    // First what the power leaves, then what the page cache shows to the next who opens the image.
    let history = drive.history.borrow();
    for _ in 0..CUTS {
        let files = cut.files(&cut.sample(random));
        let allowed = |values: &[u64]| history.check_survivors(values);
        recover(&case.shape, files, case.seed, &allowed, |_, _| {});
    }
    drop(history);
    drive.kill();
    replay(&drive);
    // Whoever opens the image without its log finds what was flushed.
    drive.history.borrow_mut().lose_unflushed();
    let now = drive.history.borrow_mut().begin_now();
    let history = drive.history.borrow();
    let allowed = |values: &[u64]| history.check_whole(now, values);
    recover(&case.shape, drive.gate.files(), case.seed, &allowed, |_, _| {});
}

#[test]
fn no_fault_of_the_host_loses_flushed_data() {
    hunt_faults(small_case, FAULTS);
}

#[test]
fn no_fault_of_the_host_loses_flushed_data_of_authenticated_images() {
    hunt_faults(sealed_case, SEALED_FAULTS);
}

#[test]
fn no_fault_of_the_host_makes_a_redo_log_show_what_was_lost() {
    hunt_faults(redo_case, REDO_FAULTS);
}

fn hunt_faults<S: Strategy<Value = Case>>(cases: impl Fn() -> S + Sync, per_change: u64) {
    let (wanted, done) = (wanted(per_change, PAIRS_SOAK), AtomicU64::new(0));
    let start = Instant::now();
    let enough = || done.load(Ordering::Relaxed) >= wanted;
    let failure = find(cases, SEEDS, enough, |case| {
        let tried = if is_soak() { pairs(case) } else { faults(case) };
        done.fetch_add(tried, Ordering::Relaxed);
    });
    expect_none("FAULT", failure);
    let (done, seconds) = (done.into_inner(), start.elapsed().as_secs_f64());
    println!("faults: {done} in {seconds:.0} s");
}
