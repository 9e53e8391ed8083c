//! Kills at every moment of a case with a redo log: the file keeps everything that was written to it, and the log its
//! memory. The next process attaches it, and then every request that was acknowledged is there, flushed or not; of the
//! others each sector may be old or new.
//!
//! Some of these next processes are killed, too, while they replay, and replayed by one more; others lose power, after
//! which the log is gone and what was flushed is there.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use qcow::disk::sim::{Random, SimDisk, World};
use qcow::engine::FoundRedo;

use crate::case::{Case, Op, SECTOR, redo_case};
use crate::crash::{self, Effort, crash, table_grows};
use crate::cut::Cut;
use crate::drive::{Drive, Ending, SimGate, open, read};
use crate::history::History;
use crate::hunt::{expect_none, find, wanted};
use crate::memory::Memory;
use crate::qemu::Sampler;
use crate::recover::{check_tables, expect_clean, go_on, recover};
use crate::start::Files;

/// Seeds that are tried where a failing case is made smaller.
pub const SEEDS: u64 = 12;
/// Kills that are looked at for each change, and in a long run.
const KILLS: u64 = 5_000;
const KILLS_SOAK: u64 = 5_000_000;
/// States of power cuts of cases with a redo log.
const STATES: u64 = 3_000;
const STATES_SOAK: u64 = 5_000_000;
/// One kill in so many is looked at although its log is empty.
const EMPTY_ONE_IN: u64 = 8;
/// One event in so many of a case with a large disk is where it is killed.
const LARGE_ONE_IN: u64 = 24;
/// One event in so many of a replay is where it ends early ...
const AGAIN_ONE_IN: u64 = 8;
/// ... and one in so many of these ends is a power cut.
const CUT_ONE_IN: u64 = 2;

/// What a hunt has seen.
#[derive(Debug, Default)]
pub struct Tally {
    kills: AtomicU64,
    /// Kills whose log had something to replay.
    replays: AtomicU64,
    /// Replays that were cut short by another kill, and by a power cut.
    again: AtomicU64,
    cuts: AtomicU64,
}

/// What is left of a process that was killed.
#[derive(Clone)]
struct Killed {
    files: Files,
    memory: Memory,
    /// What every sector may hold for the next process.
    history: History,
}

impl Killed {
    /// Kills the process that uses `gate` and `memory` at this moment.
    fn now(gate: &SimGate, memory: &Memory, history: &History, random: &mut Random) -> Self {
        let mut history = history.clone();
        history.cut_off();
        let mut killed = |disk: &SimDisk| disk.killed(random);
        let files = Files {
            image: killed(&gate.image),
            data: gate.data.as_ref().map(&mut killed),
            backing: gate.backing.as_ref().map(SimDisk::content),
        };
        Self { files, memory: memory.copy(), history }
    }
}

/// Carries `case` out and kills it at every event.
pub fn kills(case: &Case, tally: &Tally) {
    some_kills(case, 1, tally);
}

/// As [`kills`], at one event in so many.
fn some_kills(case: &Case, one_in: u64, tally: &Tally) {
    let drive = Drive::new(case);
    let memory = drive.memory.clone().expect("a case with a redo log");
    let mut kills = Kills { case, tally, random: Random::new(case.seed ^ 0xdead) };
    let ending = drive.run(|drive| {
        let one_in = if memory.is_empty() { one_in * EMPTY_ONE_IN } else { one_in };
        if kills.random.below(one_in) != 0 {
            return;
        }
        let killed = Killed::now(&drive.gate, &memory, &drive.history.borrow(), &mut kills.random);
        kills.examine(killed);
    });
    assert_eq!(ending, Ending::Closed, "the case came to its end");
    drive.world.block_on(expect_clean(&case.shape, &drive.gate));
}

struct Kills<'t> {
    case: &'t Case,
    tally: &'t Tally,
    random: Random,
}

impl Kills<'_> {
    fn examine(&mut self, killed: Killed) {
        self.tally.kills.fetch_add(1, Ordering::Relaxed);
        let mut again = Again::of(Random::new(self.random.draw()));
        let replayed = revive(self.case, killed, self.random.draw(), Some(&mut again));
        self.tally.replays.fetch_add(u64::from(replayed > 0), Ordering::Relaxed);
        let (seed, case) = (self.random.draw(), self.case);
        if let Some(killed) = again.killed.take() {
            self.tally.again.fetch_add(1, Ordering::Relaxed);
            revive(case, killed, seed, None);
        }
        if let Some((files, history)) = again.cut.take() {
            self.tally.cuts.fetch_add(1, Ordering::Relaxed);
            let allowed = |values: &[u64]| history.check_survivors(values);
            recover(&case.shape, files, seed, &allowed, |_, _| {});
        }
    }
}

/// What a further kill and a further power cut leave of a replay.
struct Again {
    random: Random,
    killed: Option<Killed>,
    cut: Option<(Files, History)>,
}

impl Again {
    fn of(random: Random) -> Self {
        Self { random, killed: None, cut: None }
    }

    fn end_here(&mut self, gate: &SimGate, memory: &Memory, history: &History) {
        if memory.is_empty() || self.random.below(AGAIN_ONE_IN) != 0 {
            return;
        }
        if self.random.below(CUT_ONE_IN) != 0 {
            self.killed = Some(Killed::now(gate, memory, history, &mut self.random));
            return;
        }
        let cut = Cut::now(gate);
        let state = cut.sample(&mut self.random);
        self.cut = Some((cut.files(&state), history.clone()));
    }
}

/// The next process: opens the image, replays the log, and finds everything that was acknowledged. Then it goes on until the
/// image is closed clean. How many clusters it replayed.
fn revive(case: &Case, killed: Killed, seed: u64, mut again: Option<&mut Again>) -> u64 {
    let Killed { files, memory, history } = killed;
    let world = World::new(seed);
    let gate = files.put_into(&world);
    // Before the replay, nothing differs from what the first kill has left.
    let replaying = Cell::new(false);
    let attach = async {
        let image = open(&gate, case.cache).await.expect("open");
        replaying.set(true);
        let replayed = image.attach_redo_log(memory.share(), FoundRedo::Replay).await;
        (image, replayed.expect("replay"))
    };
    let (image, replayed) = world
        .run(attach, || {
            if let Some(again) = again.as_mut().filter(|_| replaying.get()) {
                again.end_here(&gate, &memory, &history);
            }
        })
        .expect("nothing hangs without a fault");
    world.block_on(async {
        let (summary, findings) = check_tables(&gate).await;
        assert!(
            summary.corruptions == 0 && summary.check_errors == 0,
            "after a replay: {findings:#?}"
        );
        let size = image.virtual_size() / SECTOR;
        let values = read(&image, 0, size).await.expect("read");
        let mut found = history.clone();
        let start = found.begin_now();
        found.check_whole(start, &values);
        let history = RefCell::new(History::new(size, |sector| values[sector as usize]));
        go_on(&case.shape, &gate, seed, &history, &image).await;
    });
    replayed
}

/// Lets the next process go on with what `drive`, which was killed, has left, if its redo log says anything.
pub fn replay(drive: &Drive<'_>) {
    let Some(memory) = drive.memory.as_ref().filter(|memory| !memory.is_void()) else { return };
    // What a sync has lost no log brings back, and the page cache may not show.
    if drive.world.failed_syncs() > 0 {
        return;
    }
    let history = drive.history.borrow().clone();
    let killed = Killed { files: drive.gate.files(), memory: memory.copy(), history };
    revive(drive.case, killed, !drive.case.seed, None);
}

impl Tally {
    fn summary(&self, start: Instant) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} kills in {:.0} s, {} with something to replay; {} replays killed, {} cut off",
            count(&self.kills),
            start.elapsed().as_secs_f64(),
            count(&self.replays),
            count(&self.again),
            count(&self.cuts),
        )
    }
}

#[test]
fn no_kill_loses_what_was_acknowledged() {
    let wanted = wanted(KILLS, KILLS_SOAK);
    let (tally, start) = (Tally::default(), Instant::now());
    let enough = || tally.kills.load(Ordering::Relaxed) >= wanted;
    let failure = find(redo_case, SEEDS, enough, |case| kills(case, &tally));
    expect_none("KILL", failure);
    println!("kills: {}", tally.summary(start));
    let (kills, replays) = (tally.kills.into_inner(), tally.replays.into_inner());
    assert!(replays * 3 > kills, "many of them have something to replay");
}

/// What the log names has no refcount block in the file, or one in a larger table.
#[test]
fn no_kill_loses_what_is_written_while_counts_grow() {
    let tally = Tally::default();
    let case = Case { redo: 100, ..table_grows() };
    // The same without flushes in between.
    let ops = case.ops.iter().copied().filter(|op| *op != Op::Flush).collect();
    for case in [Case { ops, ..case.clone() }, case] {
        some_kills(&case, LARGE_ONE_IN, &tally);
    }
    assert!(tally.replays.into_inner() > 10, "there is something to replay");
}

#[test]
fn no_power_cut_after_kills_and_replays_loses_flushed_data() {
    let wanted = wanted(STATES, STATES_SOAK);
    let (tally, sampler, start) = (crash::Tally::default(), Sampler::new(20_000), Instant::now());
    let enough = || tally.states() >= wanted;
    let effort = Effort { states_per_moment: 16 };
    let failure = find(redo_case, SEEDS, enough, |case| crash(case, effort, &tally, &sampler));
    expect_none("CRASH", failure);
    println!("power cuts of cases with a redo log: {}", tally.summary(start, &sampler));
}
