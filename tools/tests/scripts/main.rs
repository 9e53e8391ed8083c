//! Random scripts: `qcow` and QEMU's own tools run the same command lines in twin directories, and must stay alike.
//!
//! A script is made from a seed: an image with any creation options, then commands of every kind. After each command
//! both sides must have said the same and ended alike; an image that was changed must be clean for both checkers on both
//! sides; in the end both sides hold the same disks, snapshots and bitmaps. What may differ, and why, stands in
//! `differences.rs` and `behind.rs`.
//!
//! `SCRIPTS_FIRST` and `SCRIPTS_COUNT` choose the seeds, `SOAK_FACTOR` multiplies their number. A script that fails is
//! cut down to the commands that it takes.

mod amending;
mod behind;
mod bitmaps;
mod contents;
mod creation;
mod differences;
mod disk_io;
mod generate;
mod judge;
mod layers;
mod normal;
mod random;
mod run;
mod script;
mod shrink;
#[path = "../sides/mod.rs"]
mod sides;
mod sizes;
mod tour;
mod transfer;
mod twins;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use judge::Verdict;

/// Scripts of one change.
const SCRIPTS: u64 = 200;
/// Scripts at the same time; the programs that they run have one thread each.
const THREADS: usize = 2;
/// Failures that are told; more of them rarely say more.
const TOLD_MAX: usize = 5;
/// Scripts in a hundred that may end early at a deliberate difference.
const CUT_SHORT_MAX: u64 = 25;

#[derive(Debug, Default)]
struct Tally {
    failures: Vec<String>,
    /// Deliberate differences, and how many scripts ended at each.
    differences: BTreeMap<&'static str, u64>,
    commands: u64,
}

#[test]
fn both_sides_stay_alike() {
    println!("compared with {}", run::qemu_version());
    let first = number("SCRIPTS_FIRST").unwrap_or(1);
    let count = number("SCRIPTS_COUNT").unwrap_or(SCRIPTS * number("SOAK_FACTOR").unwrap_or(1));
    let (next, tally) = (AtomicU64::new(first), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let enough = tally.lock().expect("no panic").failures.len() >= TOLD_MAX;
                    if seed >= first + count || enough {
                        return;
                    }
                    play(seed, &tally);
                }
            });
        }
    });
    let tally = tally.into_inner().expect("no panic");
    println!("{count} scripts from seed {first} on, {} commands", tally.commands);
    for (difference, scripts) in &tally.differences {
        println!("  {scripts} scripts end early: {difference}");
    }
    assert!(tally.failures.is_empty(), "\n{}", tally.failures.join("\n\n"));
    let cut_short: u64 = tally.differences.values().sum();
    assert!(cut_short * 100 <= count.max(100) * CUT_SHORT_MAX, "{cut_short} of {count} end early");
}

fn play(seed: u64, tally: &Mutex<Tally>) {
    let script = generate::script(seed);
    let verdict = judge::play(&script);
    let failure = match &verdict {
        Verdict::Failed(failure) => Some(shrink::report(seed, &script, failure)),
        Verdict::Alike | Verdict::CutShort(_) => None,
    };
    let mut tally = tally.lock().expect("no panic");
    tally.commands += script.len() as u64;
    tally.failures.extend(failure);
    if let Verdict::CutShort(difference) = verdict {
        *tally.differences.entry(difference).or_default() += 1;
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
