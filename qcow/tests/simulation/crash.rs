//! Power cuts at every moment of a case, and every state that each may leave.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use qcow::disk::sim::Random;

use crate::case::{Case, Shape, sealed_case, small_case};
use crate::cut::Cut;
use crate::drive::{Drive, Ending, SimGate};
use crate::history::History;
use crate::hunt::{Failure, expect_none, find, message_of, wanted};
use crate::qemu::Sampler;
use crate::recover::{Found, expect_clean, recover};
use crate::start::Files;

/// States that are looked at for each change, and in a long run; besides those of `sequences`.
const STATES: u64 = 1_200_000;
const STATES_SOAK: u64 = 200_000_000;
/// Of these, on authenticated images alone.
const SEALED_STATES: u64 = 12_000;
/// Seeds that are tried where a failing case is made smaller.
pub const SEEDS: u64 = 12;
/// Moments with up to so many states are enumerated.
const EFFORT: Effort = Effort { states_per_moment: 64 };
/// Orders in which a disk grows beside writes, for each change and in a long run.
const GROWTHS: u64 = 200;
const GROWTHS_SOAK: u64 = 20_000;
/// One state in so many is cut off again while it is being used, which gives states of the second order.
const TWICE_ONE_IN: u64 = 64;
/// States of the second order that such a one gives at most.
const TWICE_STATES: u64 = 4;
/// One event in so many of a state's use is where it is cut off.
const AGAIN_ONE_IN: u64 = 6;

/// What a hunt has seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// States that were opened, checked, compared, used and closed.
    pub states: AtomicU64,
    /// Of these, states of the second order.
    pub twice: AtomicU64,
    /// Most clusters that one state leaked.
    pub leaks_max: AtomicU64,
}

/// How thoroughly to look.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// A moment with up to so many states is enumerated; of others so many are drawn.
    pub states_per_moment: u64,
}

/// Carries `case` out and cuts the power at every event.
pub fn crash(case: &Case, effort: Effort, tally: &Tally, sampler: &Sampler) {
    let drive = Drive::new(case);
    let mut crashes = Crashes {
        shape: case.shape,
        effort,
        tally,
        sampler,
        seen: HashSet::new(),
        random: Random::new(case.seed ^ 0xdead),
    };
    let ending = drive.run(|drive| crashes.cut(&drive.gate, &drive.history.borrow()));
    assert_eq!(ending, Ending::Closed, "the case came to its end");
    drive.world.block_on(expect_clean(&case.shape, &drive.gate));
    crashes.cut(&drive.gate, &drive.history.borrow());
}

struct Crashes<'t> {
    shape: Shape,
    effort: Effort,
    tally: &'t Tally,
    sampler: &'t Sampler,
    /// States that were looked at, each with the moment of the history that it was compared to.
    seen: HashSet<(u64, u64)>,
    random: Random,
}

impl Crashes<'_> {
    /// Looks at what a power cut at this moment may leave.
    fn cut(&mut self, gate: &SimGate, history: &History) {
        let cut = Cut::now(gate);
        let count = cut.count();
        let exhaustive = count <= self.effort.states_per_moment;
        let fingerprint_of = cut.fingerprints();
        for index in 0..count.min(self.effort.states_per_moment) {
            let state = if exhaustive { cut.state(index) } else { cut.sample(&mut self.random) };
            let fingerprint = fingerprint_of(&state);
            if self.seen.insert((fingerprint, history.flushed())) {
                self.examine(history, &cut.files(&state), fingerprint);
            }
        }
    }

    fn examine(&mut self, history: &History, files: &Files, fingerprint: u64) {
        let allowed = |values: &[u64]| history.check_survivors(values);
        // What encrypted data looks like is another each time.
        let seed = if self.shape.is_encrypted() || self.shape.is_authenticated() {
            self.random.draw()
        } else {
            fingerprint
        };
        let wanted = if self.random.below(TWICE_ONE_IN) == 0 { TWICE_STATES } else { 0 };
        let mut again =
            Again { random: Random::new(self.random.draw()), wanted, states: Vec::new() };
        let found = recover(&self.shape, files.clone(), seed, &allowed, |gate, history| {
            again.cut(gate, history);
        });
        self.note(&found);
        self.sampler.look(&self.shape, files, &found);
        for (files, history) in again.states {
            let allowed = |values: &[u64]| history.check_survivors(values);
            let found = recover(&self.shape, files, seed, &allowed, |_, _| {});
            self.note(&found);
            self.tally.twice.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn note(&self, found: &Found) {
        self.tally.states.fetch_add(1, Ordering::Relaxed);
        self.tally.leaks_max.fetch_max(found.leaks, Ordering::Relaxed);
    }
}

/// Collects what further power cuts leave while a state is being used.
struct Again {
    random: Random,
    wanted: u64,
    states: Vec<(Files, History)>,
}

impl Again {
    fn cut(&mut self, gate: &SimGate, history: &History) {
        if self.wanted == 0 || self.random.below(AGAIN_ONE_IN) != 0 {
            return;
        }
        self.wanted -= 1;
        let cut = Cut::now(gate);
        let state = cut.sample(&mut self.random);
        self.states.push((cut.files(&state), history.clone()));
    }
}

impl Tally {
    /// What was seen since `start`, in one line.
    pub fn summary(&self, start: Instant, sampler: &Sampler) -> String {
        let (states, seconds) = (self.states(), start.elapsed().as_secs_f64());
        format!(
            "{states} states ({} of them cut off twice) in {seconds:.0} s, {:.0} per second; at most {} clusters \
             leaked; QEMU agreed on {}",
            self.twice.load(Ordering::Relaxed),
            states as f64 / seconds,
            self.leaks_max.load(Ordering::Relaxed),
            sampler.shown(),
        )
    }

    /// How many states were looked at.
    pub fn states(&self) -> u64 {
        self.states.load(Ordering::Relaxed)
    }
}

#[test]
fn no_power_cut_loses_flushed_data() {
    let wanted = wanted(STATES, STATES_SOAK);
    let (tally, sampler, start) = (Tally::default(), Sampler::new(20_000), Instant::now());
    let enough = || tally.states() >= wanted;
    let failure = find(small_case, SEEDS, enough, |case| crash(case, EFFORT, &tally, &sampler));
    expect_none("CRASH", failure);
    println!("power cuts: {}", tally.summary(start, &sampler));
}

#[test]
fn no_power_cut_loses_flushed_data_of_authenticated_images() {
    let wanted = wanted(SEALED_STATES, STATES_SOAK / 10);
    let (tally, sampler, start) = (Tally::default(), Sampler::new(0), Instant::now());
    let enough = || tally.states() >= wanted;
    let failure = find(sealed_case, SEEDS, enough, |case| crash(case, EFFORT, &tally, &sampler));
    expect_none("CRASH", failure);
    println!("authenticated images: {}", tally.summary(start, &sampler));
}

/// The next clusters to be claimed need a larger refcount table.
#[test]
fn a_larger_refcount_table_survives_a_power_cut_anywhere() {
    let tally = Tally::default();
    let case = table_grows();
    crash(&case, Effort { states_per_moment: 12 }, &tally, &Sampler::new(500));
    assert!(tally.states() > 100, "the case has many moments");
    let drive = Drive::new(&case);
    let table_len = |drive: &Drive<'_>| drive.gate.image.to_vec()[59];
    let before = table_len(&drive);
    drive.run(|_| {});
    assert!(table_len(&drive) > before, "the refcount table has grown");
}

/// A case in which the refcount table grows.
pub fn table_grows() -> Case {
    let case = "seed=1 start=partly:3960 size=4096 cluster=9 refcount=6 depth=3";
    let ops = "w3960+20 flush w3980+30 d0+9 w4010+20 flush w5+9 w4030+9 flush w4040+3";
    format!("{case} {ops}").parse().expect("a case")
}

#[test]
fn no_power_cut_loses_what_is_written_while_the_disk_grows() {
    // Each resize replaces the L1 table, and each write needs an L2 table, whose entry the new L1 table must have in time.
    let ops = "s142 w0+1 w64+1 flush s270 w128+1 flush";
    let (tally, sampler, start) = (Tally::default(), Sampler::new(20_000), Instant::now());
    for seed in 0..wanted(GROWTHS, GROWTHS_SOAK) {
        let case = format!("seed={seed} size=100 cluster=9 depth=4 cache=0 {ops}");
        let case: Case = case.parse().expect("a case");
        let message = message_of(|| crash(&case, EFFORT, &tally, &sampler));
        let found_after = start.elapsed();
        let failure = message.map(|message| Failure { case, message, found_after });
        expect_none("CRASH", failure);
    }
    println!("growing beside writes: {}", tally.summary(start, &sampler));
}
