//! Internal snapshots: the same words for the same mistakes, and images on which our program and QEMU's take turns.
//!
//! `SNAPSHOT_SEED` chooses other turns, `SOAK_FACTOR` more of them.

use std::path::Path;

use crate::tool::{Pair, Tool};

/// Sequences of turns for each change.
const SEQUENCES: u64 = 12;
/// Turns of one sequence.
const TURNS: u64 = 12;
/// Bytes that are written alike.
const BLOCK: u64 = 4096;

#[test]
fn mistakes_are_told_in_the_same_words() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 disk.qcow2 1M
         io disk.qcow2: write -P 1 0 1M
         img snapshot -c one disk.qcow2
         img create -q -f qcow2 -o refcount_bits=1 narrow.qcow2 1M
         io narrow.qcow2: write -P 1 0 1M
         img create -q -f raw disk.raw 1M",
    );
    for line in [
        "snapshot",
        "snapshot -l",
        "snapshot -l -a one disk.qcow2",
        "snapshot -l -l disk.qcow2",
        "snapshot -c a -c b disk.qcow2",
        "snapshot disk.qcow2 disk.raw",
        "snapshot -l no.qcow2",
        "snapshot -a none disk.qcow2",
        "snapshot -d none disk.qcow2",
        "snapshot -d 1 disk.qcow2",
        "snapshot -U -c two disk.qcow2",
        "snapshot -c two narrow.qcow2",
        "snapshot -f raw -l disk.raw",
        "snapshot -f raw -c two disk.raw",
        "snapshot -f raw -a two disk.raw",
        "snapshot -f raw -d two disk.raw",
        "snapshot -q -a 1 disk.qcow2",
        "snapshot -f qcow2 -d one disk.qcow2",
        "snapshot disk.qcow2",
    ] {
        pair.same_img(line);
    }
}

#[test]
fn ids_and_lists_are_the_same() {
    let pair = Pair::prepared("img create -q -f qcow2 disk.qcow2 1M");
    let directory = pair.ours();
    for (tool, name) in
        [(Tool::Ours, "a"), (Tool::Theirs, "b"), (Tool::Ours, "a"), (Tool::Theirs, "9")]
    {
        tool.img(directory, &format!("snapshot -c {name} disk.qcow2")).expect_success();
    }
    // By name: the first of that name.
    Tool::Ours.img(directory, "snapshot -d a disk.qcow2").expect_success();
    let long = "n".repeat(300);
    Tool::Ours.img(directory, &format!("snapshot -c {long} disk.qcow2")).expect_success();
    let list = |tool: Tool| tool.img(directory, "snapshot -l disk.qcow2").expect_success();
    assert_eq!(list(Tool::Ours), list(Tool::Theirs));
    let info =
        |tool: Tool| tool.img(directory, "info --output=json disk.qcow2").expect_success().json();
    let snapshots = &info(Tool::Ours)["snapshots"];
    assert_eq!(*snapshots, info(Tool::Theirs)["snapshots"]);
    let ids: Vec<&str> =
        snapshots.as_array().expect("a list").iter().filter_map(|s| s["id"].as_str()).collect();
    assert_eq!(ids, ["2", "3", "4", "5"]);
    assert_eq!(snapshots[3]["name"], "n".repeat(255));
}

#[test]
fn what_lies_behind_the_disk_belongs_to_the_snapshot() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 disk.qcow2 1M
         io disk.qcow2: write -P 1 0 1M; write -b -P 7 0 128k",
    );
    let directory = pair.ours();
    Tool::Ours.img(directory, "snapshot -c state disk.qcow2").expect_success();
    Tool::Theirs
        .io(directory, "disk.qcow2", &["write -P 2 0 1M", "write -b -P 8 0 128k"])
        .expect_success();
    Tool::Ours.img(directory, "snapshot -c later disk.qcow2").expect_success();
    Tool::Ours.img(directory, "snapshot -a state disk.qcow2").expect_success();
    let holds = |pattern: u8, state: u8| {
        let reads = [format!("read -P {pattern} 0 1M"), format!("read -b -P {state} 0 128k")];
        let said = Tool::Theirs.io(directory, "disk.qcow2", &[&reads[0], &reads[1]]);
        assert!(said.code == Some(0) && !said.stdout.contains("failed"), "{said:?}");
    };
    holds(1, 7);
    Tool::Theirs.img(directory, "snapshot -a later disk.qcow2").expect_success();
    holds(2, 8);
    Tool::Ours.img(directory, "snapshot -d later disk.qcow2").expect_success();
    holds(2, 8);
    Tool::Theirs.img(directory, "check disk.qcow2").expect_success();
}

/// What an image is to hold: a byte for each block of the disk.
#[derive(Clone, Debug)]
struct Model {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % bound
    }

    fn tool(&mut self) -> Tool {
        if self.below(2) == 0 { Tool::Ours } else { Tool::Theirs }
    }
}

#[test]
fn both_take_turns_on_an_image() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("SNAPSHOT_SEED").unwrap_or(1);
    for seed in first..first + SEQUENCES * number("SOAK_FACTOR").unwrap_or(1) {
        println!(
            "repeat: SNAPSHOT_SEED={seed} cargo test -p tools --test differential both_take_turns"
        );
        take_turns(seed);
    }
}

fn take_turns(seed: u64) {
    let pair = Pair::new();
    let (directory, mut random) = (pair.ours(), Random(seed));
    let version3 = random.below(4) > 0;
    let cluster = [512, 4096, 65536, 65536, 2 << 20][random.below(5) as usize];
    let bits = if version3 { [16, 8, 64, 32, 4][random.below(5) as usize] } else { 16 };
    let backing = random.below(3) == 0;
    let mut model = Model { disk: vec![0; 512], snapshots: Vec::new() };
    let mut options = format!("cluster_size={cluster},refcount_bits={bits}");
    options.push_str(if version3 { ",compat=1.1" } else { ",compat=0.10" });
    let mut base = String::new();
    if backing {
        Tool::Theirs.img(directory, "create -q -f raw base.raw 1M").expect_success();
        Tool::Theirs.io(directory, "-f raw base.raw", &["write -P 99 0 1M"]).expect_success();
        model.disk[..256].fill(99);
        base.push_str("-b base.raw -F raw");
    }
    Tool::Theirs
        .img(directory, &format!("create -q -f qcow2 -o {options} {base} i.qcow2 2M"))
        .expect_success();
    for turn in 0..TURNS {
        let tool = random.tool();
        let what = act(directory, tool, &mut random, &mut model, cluster, version3, bits);
        for checker in [Tool::Theirs, Tool::Ours] {
            let said = checker.img(directory, "check i.qcow2");
            assert_eq!(
                said.code,
                Some(0),
                "seed {seed}, turn {turn}, {tool:?} {what}: {checker:?} {said:?}"
            );
        }
        compare(
            directory,
            random.tool(),
            &model,
            &format!("seed {seed}, turn {turn}, {tool:?} {what}"),
        );
    }
}

/// Does something to image and model; what.
fn act(
    directory: &Path,
    tool: Tool,
    random: &mut Random,
    model: &mut Model,
    cluster: u64,
    version3: bool,
    bits: u64,
) -> String {
    let blocks = model.disk.len() as u64;
    let img = |line: String| {
        tool.img(directory, &line).expect_success();
        line
    };
    let count = model.snapshots.len();
    // Counts of four bits go up to 15, and compressed clusters share them.
    let snapshots_max = if bits == 4 { 2 } else { 5 };
    match random.below(8) {
        0 if version3 => {
            let mut size = 1 + random.below(900);
            if tool == Tool::Theirs {
                // What QEMU cuts off of a cluster shows again when the disk grows.
                size = size.next_multiple_of((cluster / BLOCK).max(1));
            }
            model.disk.resize(size as usize, 0);
            img(format!("resize -q --shrink i.qcow2 {}", size * BLOCK))
        }
        1 if (BLOCK..=65536).contains(&cluster) && bits >= 8 && blocks * BLOCK >= cluster => {
            let at = random.below(blocks * BLOCK / cluster) * cluster;
            let pattern = 1 + random.below(90) as u8;
            let range = (at / BLOCK) as usize..((at + cluster) / BLOCK) as usize;
            let write = format!("write -c -P {pattern} {at} {cluster}");
            // QEMU does not compress what is there already.
            if Tool::Theirs.io(directory, "i.qcow2", &[&write]).code == Some(0) {
                model.disk[range].fill(pattern);
            }
            write
        }
        2 | 3 if count < snapshots_max => {
            let name = format!("s{}", random.below(1000));
            model.snapshots.push((name.clone(), model.disk.clone()));
            img(format!("snapshot -c {name} i.qcow2"))
        }
        4 | 5 if count > 0 => {
            let (name, disk) = &model.snapshots[random.below(count as u64) as usize];
            let first = model.snapshots.iter().find(|(other, _)| other == name);
            model.disk = first.map_or_else(|| disk.clone(), |(_, disk)| disk.clone());
            img(format!("snapshot -a {name} i.qcow2"))
        }
        6 if count > 0 => {
            let name = model.snapshots[random.below(count as u64) as usize].0.clone();
            let first = model.snapshots.iter().position(|(other, _)| *other == name);
            model.snapshots.remove(first.expect("it is there"));
            img(format!("snapshot -d {name} i.qcow2"))
        }
        _ => {
            let at = random.below(blocks);
            let len = 1 + random.below((blocks - at).min(300));
            let pattern = 1 + random.below(90) as u8;
            model.disk[at as usize..(at + len) as usize].fill(pattern);
            let write = format!("write -P {pattern} {} {}", at * BLOCK, len * BLOCK);
            tool.io(directory, "i.qcow2", &[&write]).expect_success();
            write
        }
    }
}

/// The disk and every snapshot, as `reader` reads them, hold what they are to hold.
fn compare(directory: &Path, reader: Tool, model: &Model, when: &str) {
    let holds = |arguments: &str, blocks: &[u8], what: &str| {
        reader
            .img(directory, &format!("convert {arguments} -O raw i.qcow2 o.raw"))
            .expect_success();
        let bytes = std::fs::read(directory.join("o.raw")).expect("what was converted");
        // QEMU shows a snapshot with the size that the disk has now.
        let wrong = bytes
            .chunks(BLOCK as usize)
            .zip(blocks)
            .position(|(block, &pattern)| block.iter().any(|&byte| byte != pattern));
        assert_eq!(wrong, None, "{when}: block of {what} as {reader:?} reads it");
    };
    holds("", &model.disk, "the disk");
    let size = std::fs::metadata(directory.join("o.raw")).expect("a file").len();
    assert_eq!(size, model.disk.len() as u64 * BLOCK, "{when}: the size");
    for (index, (name, disk)) in model.snapshots.iter().enumerate() {
        if model.snapshots[..index].iter().all(|(other, _)| other != name) {
            holds(&format!("-l snapshot.name={name}"), disk, name);
        }
    }
}
