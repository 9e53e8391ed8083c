//! Every sequence of two requests on images of every kind, with a power cut at every event.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::case::{Case, Op, Start};
use crate::crash::{Effort, Tally, crash};
use crate::hunt::{Failure, expect_none, is_soak, message_of};
use crate::qemu::Sampler;

/// Moments with up to so many states are enumerated.
const EFFORT: Effort = Effort { states_per_moment: 256 };

/// Every request, on clusters of two sectors: part of one, all of one, two, across a border, more than one table.
fn requests() -> Vec<Op> {
    let write = |at, count| Op::Write { at, count };
    let zero = |at, count, unmap| Op::Zero { at, count, unmap };
    let compressed = |at, count| Op::Compressed { at, count };
    let discard = |at, count| Op::Discard { at, count };
    let resize = |size| Op::Resize { size };
    vec![
        write(0, 1),
        write(0, 2),
        write(1, 2),
        write(0, 4),
        write(4, 2),
        zero(0, 2, false),
        zero(0, 4, true),
        zero(1, 2, true),
        compressed(0, 2),
        compressed(4, 8),
        discard(0, 2),
        discard(0, 4),
        discard(0, 16),
        // Inside of a cluster, to a cluster's end, as far as the L1 table reaches, and past that.
        resize(3),
        resize(4),
        resize(256),
        resize(257),
        Op::Flush,
        Op::Reopen,
        Op::Kill,
    ]
}

fn starts() -> [Start; 9] {
    [
        Start::Empty,
        Start::Backing(5),
        Start::Filled,
        Start::Snapshot,
        Start::Compressed,
        Start::External(3),
        Start::RawExternal(3),
        Start::Encrypted(3),
        Start::SealedBacking(9),
    ]
}

/// All sequences of `len` requests, one after the other and at the same time.
fn sequences(len: usize) -> impl Iterator<Item = Case> {
    let (requests, starts) = (requests(), starts());
    let count = requests.len().pow(len as u32) * starts.len() * 2;
    (0..count).map(move |mut index| {
        let mut next = |base: usize| {
            let digit = index % base;
            index /= base;
            digit
        };
        let mut case = Case::plain(starts[next(starts.len())]);
        case.depth = [1, len][next(2)];
        case.ops = (0..len).map(|_| requests[next(requests.len())]).collect();
        case
    })
}

#[test]
fn every_sequence_of_two_survives_a_power_cut_anywhere() {
    // Three requests are for `make soak`.
    let len = if is_soak() { 3 } else { 2 };
    let (tally, sampler, start) = (Tally::default(), Sampler::new(20_000), Instant::now());
    let cases: Vec<Case> = sequences(len).collect();
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed) as usize;
            let case = cases.get(index)?;
            if let Some(message) = message_of(|| crash(case, EFFORT, &tally, &sampler)) {
                let case = case.clone();
                return Some(Failure { case, message, found_after: start.elapsed() });
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in running {
            expect_none("CRASH", thread.join().expect("the thread lives"));
        }
    });
    println!("sequences of {len}: {} cases, {}", cases.len(), tally.summary(start, &sampler));
}
