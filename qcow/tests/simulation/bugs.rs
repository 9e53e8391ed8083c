//! Bugs that image engines have really had, put back one at a time: the tests find each of them.

use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use qcow::seeded_bugs::Bug;

use crate::case::{Case, Start, redo_case, sealed_case, small_case};
use crate::crash::{self, Effort, Tally, crash, table_grows};
use crate::creation::creation;
use crate::faults::{self, faults};
use crate::hunt::{Failure, find_from, message_of};
use crate::kills::{self, kills};
use crate::qemu::Sampler;
use crate::redo::{hostile_logs, stale_logs};
use crate::regressions::POWER_CUTS;
use crate::schedules::{self, schedule};
use crate::snapshots;

/// The longest that the tests may take to find a bug.
const LIMIT: Duration = Duration::from_secs(60);
/// The most requests of a case that shows it.
const REQUESTS_MAX: usize = 10;

/// How often a bug may be looked for until such a case is found.
const ATTEMPTS: u64 = 8;

/// The tests that find bugs.
#[derive(Clone, Copy, Debug)]
enum Finder {
    Schedules,
    /// Schedules on small images.
    SmallSchedules,
    PowerCuts,
    Faults,
    /// Power cuts while the refcount table grows.
    TableGrowth,
    /// Power cuts while an image is being created.
    Creation,
    /// Power cuts in cases that once failed.
    Regressions,
    /// Power cuts while snapshots come and go.
    Snapshots,
    /// Kills of processes with a redo log.
    Kills,
    /// Faults that befall processes with a redo log, and kills.
    RedoFaults,
    /// Power cuts on authenticated images.
    SealedPowerCuts,
    /// Power cuts while an authenticated image is written and flushed.
    SealedLinks,
    /// Writes to an authenticated image beside a sweep.
    SealedSweeps,
    /// Power cuts while an authenticated image is flushed beside writes to one place.
    SealedFlushes,
    /// Reads of an authenticated image beside writes to one place.
    SealedReads,
    /// Power cuts while snapshots of authenticated images come and go.
    SealedSnapshots,
    /// Redo logs of earlier sessions.
    StaleLogs,
    /// Redo logs that somebody has tampered with.
    HostileLogs,
}

use Finder::{
    Creation, Faults, HostileLogs, Kills, PowerCuts, RedoFaults, Regressions, Schedules,
    SealedFlushes, SealedLinks, SealedPowerCuts, SealedReads, SealedSnapshots, SealedSweeps,
    SmallSchedules, Snapshots, StaleLogs, TableGrowth,
};
/// Hostile logs that are tried.
const HOSTILE_LOGS: u64 = 3_000;

/// Blocks are left behind while a root is written that leads to them, and are taken at once.
const SEALED_FLUSHES: &str = "start=checksummed:512 size=512 cluster=12 depth=2 w0+512 w0+512 flush w0+512 w0+512 w0+512 w0+512";
/// Blocks are left behind and taken while they are being read.
const SEALED_READS: &str = "start=checksummed:64 size=64 cluster=12 depth=2 r0+64 w0+64 flush w0+64 r0+64 w0+64 flush w0+64 w0+64";

/// A root is written while a cluster is on its way that it may lead to.
const SEALED_LINKS: &str =
    "start=checksummed:0 size=16 cluster=12 depth=3 w0+8 flush w8+8 flush w0+8 flush w8+8";
/// Blocks are taken while it is being found out which are in use.
const SEALED_SWEEPS: &str = "start=sealed-backing:64 size=640 cluster=12 depth=5 s115 s115 kill c55+1 r78+1 w53+1 d74+14 w17+1 recover w29+1";

/// Which tests find which bug.
const BUGS: &[(Bug, Finder)] = &[
    (Bug::NoBarrierBeforeMappings, PowerCuts),
    (Bug::DataFileNotSynced, PowerCuts),
    (Bug::DataPunchedWhileInUse, SmallSchedules),
    (Bug::RawDataKeepsZeroed, PowerCuts),
    (Bug::RawDataBeforeMapping, PowerCuts),
    (Bug::NoBarrierBeforeRefcountTable, PowerCuts),
    (Bug::NoBarrierBeforeAcknowledgement, PowerCuts),
    (Bug::NoBarrierBeforeLargerTable, TableGrowth),
    (Bug::NoBarrierBeforeLongerL1, PowerCuts),
    (Bug::SizeBeforeZeros, PowerCuts),
    (Bug::GrowthShowsBacking, PowerCuts),
    (Bug::NoBarrierAfterMark, PowerCuts),
    (Bug::MarkedCleanTooEarly, PowerCuts),
    (Bug::NoBarrierBeforeNewHeader, Creation),
    (Bug::FlushJoinsTheRunningOne, PowerCuts),
    (Bug::FailedFlushIsTriedAgain, Faults),
    (Bug::FailedWriteCountsAsWritten, Faults),
    (Bug::CacheIsTrusted, Faults),
    (Bug::LostMappingsAreRead, Faults),
    (Bug::ReusedBeforeUnlinkIsDurable, PowerCuts),
    (Bug::ReusedBeforeDrained, SmallSchedules),
    (Bug::PunchedAfterFreed, SmallSchedules),
    (Bug::StaleMappingAfterDiscard, PowerCuts),
    (Bug::KnownPlaceStays, SmallSchedules),
    (Bug::BlockDoesNotCountItself, Schedules),
    (Bug::UsedClusterIsClaimed, PowerCuts),
    (Bug::FailedClaimLeaks, Faults),
    (Bug::TableReleasedBeforeClaim, Faults),
    (Bug::SharedClusterWrittenInPlace, PowerCuts),
    (Bug::SharedTableChangedInPlace, PowerCuts),
    (Bug::CopyOnWriteForgets, Schedules),
    (Bug::ReusedTakenForFresh, Schedules),
    (Bug::LinkedBeforeWritten, PowerCuts),
    (Bug::FreshTakenForEncryptedZeros, SmallSchedules),
    (Bug::SubclustersForgotten, Schedules),
    (Bug::SubclustersTakenForFilled, Schedules),
    (Bug::DiscardShowsBacking, Schedules),
    (Bug::ZeroingShowsBacking, Schedules),
    (Bug::ShortBackingRead, Schedules),
    (Bug::CompressedFreedInPart, PowerCuts),
    (Bug::PackedNotCounted, PowerCuts),
    (Bug::PackedCountedInPart, Schedules),
    (Bug::PackedTwice, Schedules),
    (Bug::PackedFreedOnce, PowerCuts),
    (Bug::PackedBeforeWritten, Schedules),
    (Bug::FreedStaysDecoded, SmallSchedules),
    (Bug::DirtySliceEvicted, Schedules),
    (Bug::LoadedWhileWritten, Schedules),
    (Bug::LostWakeup, Schedules),
    (Bug::ClusterAcrossTheEnd, Regressions),
    (Bug::NoBarrierBeforeSnapshotSwitch, Snapshots),
    (Bug::NoBarrierAfterSnapshotSwitch, Snapshots),
    (Bug::DirtyClearedTooEarly, Snapshots),
    (Bug::SettledWithoutDirty, Snapshots),
    (Bug::SnapshotBeforeCounts, Snapshots),
    (Bug::SnapshotBeforeFlags, Snapshots),
    (Bug::SnapshotFreedTooEarly, Snapshots),
    (Bug::FlagsStayAfterSnapshot, Snapshots),
    (Bug::RedoEmptiedTooEarly, Kills),
    (Bug::UnmapNotRecorded, Kills),
    (Bug::UnrecordedAcknowledged, Kills),
    (Bug::ReplayCountsNothing, Kills),
    (Bug::ReplayForgetsSession, Kills),
    (Bug::RedoOutlivesLostFlush, RedoFaults),
    (Bug::SessionOutlivesLostSync, RedoFaults),
    (Bug::StaleRedoIsReplayed, StaleLogs),
    (Bug::ReplayTakesWhatIsNamed, HostileLogs),
    (Bug::NoBarrierBeforeRoot, SealedPowerCuts),
    (Bug::NoBarrierAfterRoot, SealedPowerCuts),
    (Bug::SealedLinkedBeforeWritten, SealedLinks),
    (Bug::SealedFreedTooEarly, SealedFlushes),
    (Bug::SealedReusedBeforeDrained, SealedReads),
    (Bug::SealedSnapshotFreed, SealedSnapshots),
    (Bug::SweepForgetsNew, SealedSweeps),
];

#[test]
fn every_bug_is_found() {
    let only = std::env::var("BUG").ok();
    let missed: Vec<String> = BUGS
        .iter()
        .filter(|(bug, _)| only.as_ref().is_none_or(|only| format!("{bug:?}") == *only))
        .filter_map(|&(bug, finder)| judge(bug, finder).err())
        .collect();
    assert!(missed.is_empty(), "{missed:#?}");
}

/// How long it took to find the bug, and how small the case is that shows it; what is wrong with that otherwise.
fn judge(bug: Bug, finder: Finder) -> Result<(), String> {
    let mut smallest: Option<Failure> = None;
    for attempt in 0..ATTEMPTS {
        let Some(failure) = seek(bug, finder, attempt) else {
            return Err(format!("{bug:?}: not found by {finder:?} within {LIMIT:?}"));
        };
        if smallest.as_ref().is_none_or(|s| failure.case.ops.len() < s.case.ops.len()) {
            smallest = Some(failure);
        }
        if smallest.as_ref().is_some_and(|s| s.case.ops.len() <= REQUESTS_MAX) {
            break;
        }
    }
    let Failure { case, message, found_after } = smallest.expect("a bug that was found");
    let (seconds, requests) = (found_after.as_secs_f64(), case.ops.len());
    println!(
        "{bug:?}: found by {finder:?} after {seconds:.2} s, shown by {requests} requests: {case}"
    );
    println!("    {}", message.lines().take(3).collect::<Vec<_>>().join(" | "));
    if requests > REQUESTS_MAX {
        return Err(format!("{bug:?}: the smallest case has {requests} requests: {case}"));
    }
    Ok(())
}

fn seek(bug: Bug, finder: Finder, attempt: u64) -> Option<Failure> {
    let power_cuts = |case: &Case, states_per_moment| {
        crash(case, Effort { states_per_moment }, &Tally::default(), &Sampler::default());
    };
    let linearizable = |case: &Case| drop(schedule(case));
    let faulty = |case: &Case| {
        faults(case);
    };
    match finder {
        Schedules => hunt(bug, attempt, schedules::any_case, schedules::SEEDS, linearizable),
        SmallSchedules => hunt(bug, attempt, small_case, schedules::SEEDS, linearizable),
        PowerCuts => hunt(bug, attempt, small_case, crash::SEEDS, |case| power_cuts(case, 64)),
        Faults => hunt(bug, attempt, small_case, faults::SEEDS, faulty),
        Regressions => POWER_CUTS.iter().find_map(|case| {
            single(bug, case.parse().expect("a case"), |case| power_cuts(case, 64))
        }),
        TableGrowth => single(bug, table_grows(), |case| power_cuts(case, 12)),
        Snapshots => {
            let start = Instant::now();
            let message = snapshots::find(bug, attempt, false)?;
            Some(Failure { case: Case::plain(Start::Empty), message, found_after: start.elapsed() })
        }
        SealedSnapshots => {
            let start = Instant::now();
            let message = snapshots::find(bug, attempt, true)?;
            let case = Case::plain(Start::Sealed(0));
            Some(Failure { case, message, found_after: start.elapsed() })
        }
        SealedFlushes => orders(bug, SEALED_FLUSHES, |case| power_cuts(case, 2)),
        SealedReads => orders(bug, SEALED_READS, linearizable),
        SealedPowerCuts => {
            hunt(bug, attempt, sealed_case, crash::SEEDS, |case| power_cuts(case, 64))
        }
        SealedLinks => orders(bug, SEALED_LINKS, |case| power_cuts(case, 16)),
        SealedSweeps => orders(bug, SEALED_SWEEPS, linearizable),
        Kills => hunt(bug, attempt, redo_case, kills::SEEDS, |case| {
            kills(case, &kills::Tally::default());
        }),
        RedoFaults => hunt(bug, attempt, redo_case, faults::SEEDS, faulty),
        StaleLogs => single(bug, Case::plain(Start::Filled), |_| stale_logs()),
        HostileLogs => single(bug, Case::plain(Start::Filled), |_| {
            hostile_logs(HOSTILE_LOGS, 1);
        }),
        Creation => single(bug, Case::plain(Start::Empty), |case| {
            creation(&case.shape);
        }),
    }
}

/// Looks for an order of completions in which one case shows the bug.
fn orders(bug: Bug, case: &str, test: impl Fn(&Case)) -> Option<Failure> {
    let start = Instant::now();
    (0..).take_while(|_| start.elapsed() < LIMIT).find_map(|seed| {
        let case: Case = format!("seed={seed} {case}").parse().expect("a case");
        let message = message_of(|| bug.seeded(|| test(&case)))?;
        Some(Failure { case, message, found_after: start.elapsed() })
    })
}

fn single(bug: Bug, case: Case, test: impl FnOnce(&Case)) -> Option<Failure> {
    let start = Instant::now();
    let message = message_of(|| bug.seeded(|| test(&case)))?;
    Some(Failure { case, message, found_after: start.elapsed() })
}

fn hunt<S: Strategy<Value = Case>>(
    bug: Bug,
    attempt: u64,
    cases: impl Fn() -> S + Sync,
    seeds: u64,
    test: impl Fn(&Case) + Sync,
) -> Option<Failure> {
    let start = Instant::now();
    let enough = || start.elapsed() > LIMIT;
    find_from((attempt + 1) << 32, cases, seeds, enough, |case| bug.seeded(|| test(case)))
}
