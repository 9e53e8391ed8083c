//! Cases that once failed, and the way to repeat one that fails now.

use crate::case::Case;
use crate::crash::{Effort, Tally, crash};
use crate::faults::faults;
use crate::qemu::Sampler;
use crate::schedules::schedule;

/// Repeats the case that the environment names: `CRASH_CASE`, `FAULT_CASE` or `SCHEDULE_CASE`.
#[test]
#[ignore = "needs a case in the environment"]
fn repeat() {
    let case = |name| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<Case>().unwrap_or_else(|e| panic!("{name}: {e}")))
    };
    if let Some(case) = case("CRASH_CASE") {
        power_cuts(&case);
    }
    if let Some(case) = case("FAULT_CASE") {
        faults(&case);
    }
    if let Some(case) = case("SCHEDULE_CASE") {
        schedule(&case);
    }
}

/// All states that power cuts during the case leave.
fn power_cuts(case: &Case) {
    crash(case, Effort { states_per_moment: 4096 }, &Tally::default(), &Sampler::new(1000));
}
