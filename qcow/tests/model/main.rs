//! Model test: the engine on a simulated disk, random requests that overlap in place and time, against a model that knows
//! for each sector which values it may hold.
//!
//! Every case is a seed and a list of requests. The seed decides in which order the disk completes; so a failing case
//! repeats, and proptest shrinks it. `PROPTEST_CASES=N cargo test -p qcow --test model` runs N cases, and a failure prints
//! the case itself, to be pasted into `regressions`.

mod case;
mod history;
mod run;

use proptest::prelude::*;

use case::Case;

fn cases() -> u32 {
    let factor = std::env::var("SOAK_FACTOR").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    6000 * factor
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_sector_holds_what_was_written_to_it(case in case::any_case()) {
        run::run(&case);
    }
}

/// Cases that once failed.
mod regressions {}

#[test]
fn the_model_finds_a_lost_write() {
    // A model that cannot fail proves nothing: a value nobody wrote must be refused.
    let mut history = history::History::new(4, |_| 0);
    let write = history.begin_write(0..2, |_| 7);
    history.end_write(write);
    let read = history.begin_read();
    let lost = std::panic::catch_unwind(|| history.check_read(read, 0, &[0, 7]));
    assert!(lost.is_err());
    history.check_read(read, 0, &[7, 7]);
}

#[test]
fn the_same_seed_gives_the_same_image() {
    let case = Case::example(42);
    assert_eq!(run::run(&case), run::run(&case));
}
