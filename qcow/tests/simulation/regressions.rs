//! Cases that once failed, and the way to repeat one that fails now.

use crate::case::Case;
use crate::crash::{Effort, Tally, crash};
use crate::faults::faults;
use crate::kills::{self, kills};
use crate::qemu::Sampler;
use crate::schedules::schedule;

/// Power cuts that once lost data.
pub const POWER_CUTS: &[&str] = &[
    // The last cluster lay across the end of the file. A power cut that kept a longer file, but not what had made it
    // longer, left anything at all between.
    "seed=0 start=empty size=33 cluster=10 refcount=4 version=2 cache=0 w19+4 flush w22+2",
    "seed=0 start=empty size=33 cluster=10 refcount=4 version=2 cache=0 w14+7 flush w13+9",
    // Counts were durable and the length of the file was not: leaks that showed only when the file had grown again.
    "seed=1 start=backing:5 size=16 cluster=10 w0+1 w0+1",
    // A shrink wrote zeros behind the end of an external data file. A power cut that kept the file longer, but not the
    // zeros, left anything there, and a disk that grew showed it.
    "seed=1012385657 start=raw-external:9 size=57 cluster=12 refcount=6 s7 s1 w0+1",
];

/// Faults that once lost data.
const FAULTS: &[&str] = &[
    // A flush failed, and who opened the image next took what the page cache still showed for what was on disk.
    "seed=1975875479 start=empty cluster=9 version=2 cache=0 w0+1 z0+1 flush reopen w0+1",
    // A flush failed, and the mapping of a cluster whose content it had lost could be read.
    "seed=2156348296 start=backing:5 cluster=9 depth=2 cache=0 reopen w0+1 z0+1 flush w1+1",
    // A flush failed while a read was under way whose mapping had been sound when the read began.
    "seed=1792813215 start=compressed size=57 cluster=9 version=2 depth=5 \
     w6+3 w55+2 s105 w73+8 w31+7 r21+9 r79+4 z23+4 w22+6",
    // A flush failed after it had made the file longer.
    "seed=5671859 start=empty cluster=9 version=2 cache=0 w0+1 flush kill w0+1",
];

#[test]
fn power_cuts_that_once_lost_data() {
    POWER_CUTS.iter().for_each(|case| power_cuts(&case.parse().expect("a case")));
}

#[test]
fn faults_that_once_lost_data() {
    for case in FAULTS {
        faults(&case.parse().expect("a case"));
    }
}

/// Repeats the case that the environment names: `CRASH_CASE`, `FAULT_CASE`, `KILL_CASE` or `SCHEDULE_CASE`.
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
    if let Some(case) = case("KILL_CASE") {
        kills(&case, &kills::Tally::default());
    }
    if let Some(case) = case("SCHEDULE_CASE") {
        schedule(&case);
    }
}

/// Power cuts during the case: as the tests do it, and then more thoroughly.
fn power_cuts(case: &Case) {
    for states_per_moment in [64, 256, 2048] {
        crash(case, Effort { states_per_moment }, &Tally::default(), &Sampler::new(1000));
    }
}
