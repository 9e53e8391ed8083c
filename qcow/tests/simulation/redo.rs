//! Redo logs that must not be replayed, or not as they are.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::sim::{Random, SimDisk, World};
use qcow::engine::{FoundRedo, Image};

use crate::case::{Case, SECTOR, Shape, Start};
use crate::drive::{SimGate, open, read};
use crate::history::History;
use crate::hunt::wanted;
use crate::memory::Memory;
use crate::recover::{check_tables, expect_clean, go_on};
use crate::start::{Files, files, sectors};

/// Hostile logs for each change, and in a long run.
const LOGS: u64 = 1_500;
const LOGS_SOAK: u64 = 300_000;
/// Where in the memory the header ends, and words of a record.
const HEADER_WORDS: usize = 8;
const RECORD_WORDS: usize = 3;

async fn write(image: &Image<SimDisk>, stamp: u64, at: u64, count: u64) {
    let bytes = sectors((at..at + count).map(|sector| stamp | sector));
    image.write(at * SECTOR, &Buffer::from_bytes(&bytes).payload()).await.expect("write");
}

/// An image of that shape whose process was killed after it had written here and there, and its log.
fn killed(shape: &Shape, seed: u64) -> (Files, Memory) {
    let world = World::new(seed);
    let gate = files(shape).put_into(&world);
    let memory = Memory::new(20);
    world.block_on(async {
        let image = open(&gate, 1 << 20).await.expect("open");
        image.attach_redo_log(memory.share(), FoundRedo::Replay).await.expect("attach");
        write(&image, 1 << 32, 0, 3).await;
        image.flush().await.expect("flush");
        write(&image, 2 << 32, 5, shape.size / 2).await;
        image.discard(0, 4 * SECTOR).await.expect("discard");
    });
    (gate.files(), memory)
}

fn shape(start: Start) -> Shape {
    Shape { size: 57, cluster_bits: 9, ..Case::plain(start).shape }
}

/// Logs of a session that somebody has come after: each is refused, and the disk is as it was without.
pub fn stale_logs() {
    let shape = shape(Start::Filled);
    for (seed, after) in (0..).zip(["written", "closed", "killed", "repaired"]) {
        let (files, memory) = killed(&shape, seed);
        // Worlds of one seed give out the same random numbers.
        let world = World::new(seed + 100);
        let gate = files.put_into(&world);
        world.block_on(async {
            if after == "repaired" {
                let disk = &gate.image;
                let path = std::path::Path::new("image");
                let repair = qcow::engine::check::Repair::Leaks;
                qcow::engine::check::check(disk, path, repair, &mut |_| {}).await.expect("repair");
            } else {
                let image = open(&gate, 1 << 20).await.expect("open");
                write(&image, 3 << 32, 8, 4).await;
                if after == "killed" {
                    image.flush().await.expect("flush");
                }
                if after == "written" {
                    let refused = image.attach_redo_log(memory.share(), FoundRedo::Replay).await;
                    assert_eq!(refused.expect_err("changed").kind(), ErrorKind::Stale);
                }
                if after == "closed" {
                    image.close().await.expect("close");
                }
            }
            let image = open(&gate, 1 << 20).await.expect("open");
            let before = (gate.image.content().to_vec(), read(&image, 0, shape.size).await);
            let refused = image.attach_redo_log(memory.share(), FoundRedo::Replay).await;
            let refused = refused.expect_err("a log of an image that has changed since");
            assert_eq!(refused.kind(), ErrorKind::Stale, "after it was {after}: {refused}");
            let values = read(&image, 0, shape.size).await.expect("read");
            assert_eq!(gate.image.content().to_vec(), before.0, "after it was {after}");
            assert_eq!(values, before.1.expect("read"), "after it was {after}");
            image.attach_redo_log(memory.share(), FoundRedo::Discard).await.expect("begin anew");
            let history = RefCell::new(History::new(shape.size, |s| values[s as usize]));
            go_on(&shape, &gate, seed, &history, &image).await;
        });
    }
}

#[test]
fn a_stale_log_is_refused() {
    stale_logs();
}

/// The memory of a killed process after somebody has had his way with it; its session is right, or else it would be refused.
fn tampered(memory: &Memory, image: &[u8], random: &mut Random) -> Memory {
    let mut words = memory.words();
    let room = (words.len() - HEADER_WORDS) / RECORD_WORDS;
    for _ in 0..=random.below(6) {
        let record = HEADER_WORDS + random.below(room as u64) as usize * RECORD_WORDS;
        let some_word = |random: &mut Random| match random.below(8) {
            0 => random.draw(),
            1 => 0,
            2 => u64::MAX,
            3 => random.below(100),
            // Some cluster of the file, as its only user, as one of several, and as zeros.
            4 | 5 => 1 << 63 | random.below(image.len() as u64 / 512 + 3) << 9,
            6 => random.below(image.len() as u64 / 512 + 3) << 9 | random.below(2),
            _ => {
                let at = random.below(image.len() as u64 / 8) as usize * 8;
                u64::from_be_bytes(image[at..at + 8].try_into().expect("eight bytes"))
            }
        };
        match random.below(12) {
            0 => words[random.below(HEADER_WORDS as u64) as usize] = some_word(random),
            1 => words[4] = words[3].wrapping_add(random.below(room as u64 + 2)),
            2 => words[record] = random.draw(),
            3 | 4 => words[record] = random.below(80) | (1 + random.below(3)) << 48,
            5 => words[record + 2] = some_word(random),
            _ => words[record + 1] = some_word(random),
        }
    }
    Memory::holding(words)
}

/// Whatever a log says, the image is not damaged by it, and nothing panics.
pub fn hostile_logs(count: u64, first_seed: u64) {
    let starts =
        [Start::Empty, Start::Filled, Start::Snapshot, Start::Partly(20), Start::External(9)];
    let extended = Shape { extended: true, cluster_bits: 14, ..shape(Start::Filled) };
    let mut shapes: Vec<Shape> = starts.into_iter().map(shape).collect();
    shapes.push(extended);
    let killed: Vec<_> = shapes.iter().map(|shape| killed(shape, 1)).collect();
    let (mut replayed, mut refused) = (0, 0);
    for seed in first_seed..first_seed + count {
        let which = seed as usize % shapes.len();
        let ((files, memory), shape) = (&killed[which], &shapes[which]);
        let mut random = Random::new(seed);
        let memory = tampered(memory, &files.image.to_vec(), &mut random);
        let looked = catch_unwind(AssertUnwindSafe(|| suffer(shape, files, &memory, seed)));
        match looked {
            Ok(true) => replayed += 1,
            Ok(false) => refused += 1,
            Err(_) => panic!("hostile log {seed}: SIMULATION_SEED={seed} repeats it"),
        }
    }
    println!("hostile logs: {replayed} replayed, {refused} refused");
    assert!(replayed * 20 > count && refused * 20 > count, "some of both");
}

/// Attaches the log; whether it was replayed. Then the image goes on to a clean close.
fn suffer(shape: &Shape, files: &Files, memory: &Memory, seed: u64) -> bool {
    let world = World::new(seed);
    let gate = files.clone().put_into(&world);
    world.block_on(async {
        let image = open(&gate, 1 << 20).await.expect("open");
        let attached = image.attach_redo_log(memory.share(), FoundRedo::Replay).await;
        if let Err(e) = &attached {
            let kinds = [ErrorKind::Corrupt, ErrorKind::Stale, ErrorKind::Invalid];
            assert!(kinds.contains(&e.kind()), "{e}");
            image.health().expect("a refusal changes nothing");
            let again = image.attach_redo_log(memory.share(), FoundRedo::Discard).await;
            again.expect("begin anew");
        }
        use_up(shape, &gate, seed, &image).await;
        attached.is_ok()
    })
}

async fn use_up(shape: &Shape, gate: &SimGate, seed: u64, image: &Image<SimDisk>) {
    let (summary, findings) = check_tables(gate).await;
    assert!(summary.corruptions == 0 && summary.check_errors == 0, "{findings:#?}");
    // What the guest reads is what the log wanted it to read, torn sectors of tables and all.
    let buffer = Buffer::zeroed((shape.size * SECTOR) as usize);
    image.read(0, &buffer.payload()).await.expect("read");
    let history = RefCell::new(History::new(shape.size, |_| 0));
    go_on(shape, gate, seed, &history, image).await;
    expect_clean(shape, gate).await;
}

#[test]
fn a_hostile_log_damages_nothing() {
    let first = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok());
    hostile_logs(wanted(LOGS, LOGS_SOAK), first.unwrap_or(1));
}
