//! Requests that overlap in time and place, in orders that follow a seed: each sector is linearizable.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use proptest::prelude::*;

use crate::case::{Case, Start, busy_case, sealed_case, small_case};
use crate::drive::{Drive, Ending};
use crate::history::History;
use crate::hunt::{expect_none, find, wanted};
use crate::recover::expect_clean;

/// Schedules that are tried for each change, and in a long run.
const SCHEDULES: u64 = 50_000;
const SCHEDULES_SOAK: u64 = 10_000_000;
/// Seeds that are tried where a failing schedule is made smaller.
pub const SEEDS: u64 = 60;

/// Carries `case` out, closes the image, and finds it clean. The image it leaves.
pub fn schedule(case: &Case) -> Vec<u8> {
    let drive = Drive::new(case);
    assert_eq!(drive.run(|_| {}), Ending::Closed, "the case came to its end");
    drive.world.block_on(expect_clean(&case.shape, &drive.gate));
    drive.gate.image.to_vec()
}

/// Cases of all sizes.
pub fn any_case() -> impl Strategy<Value = Case> {
    prop_oneof![3 => busy_case().boxed(), 6 => small_case().boxed(), 1 => sealed_case().boxed()]
}

#[test]
fn every_sector_is_linearizable() {
    let (wanted, done) = (wanted(SCHEDULES, SCHEDULES_SOAK), AtomicU64::new(0));
    let start = Instant::now();
    let enough = || done.load(Ordering::Relaxed) >= wanted;
    let failure = find(any_case, SEEDS, enough, |case| {
        schedule(case);
        done.fetch_add(1, Ordering::Relaxed);
    });
    expect_none("SCHEDULE", failure);
    let seconds = start.elapsed().as_secs_f64();
    println!("schedules: {wanted} in {seconds:.0} s");
}

#[test]
fn the_model_finds_a_lost_write() {
    // A model that cannot fail proves nothing: a value nobody wrote must be refused.
    let mut history = History::new(4, |_| 0);
    let write = history.begin_write(0..2, |_| 7);
    history.end_write(&write, true);
    let read = history.begin_now();
    let lost = std::panic::catch_unwind(|| history.check_read(read, 0, &[0, 7]));
    assert!(lost.is_err());
    history.check_read(read, 0, &[7, 7]);
    history.check_survivors(&[0, 7, 0, 0]);
}

#[test]
fn the_same_seed_gives_the_same_image() {
    let ops = "w0+3 w2+9 z1+4 flush d0+8 u4+8 w7+7 w1+14 kill w3+5 flush w4+4 r0+16";
    let case: Case = format!("seed=42 start=backing:9 depth=4 {ops}").parse().expect("a case");
    assert_eq!(case.shape.start, Start::Backing(9));
    assert_eq!(schedule(&case), schedule(&case));
}
