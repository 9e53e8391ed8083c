//! Reading and writing disks through `qemu-io`, and `bench`.

use crate::random::Random;
use crate::script::Step;
use crate::sizes;
use crate::world::{Known, World};

/// The most commands of one run.
const COMMANDS_MAX: u64 = 5;

/// A few `qemu-io` commands on one image.
pub fn commands(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any(random);
    let step = run(random, &image);
    vec![step]
}

/// A few commands on `image`, most of which write.
pub fn run(random: &mut Random, image: &Known) -> Step {
    let mut step = Step::io();
    step.maybe(random, 92, &["-f", image.format]);
    step.maybe(random, 4, &["-r"]).maybe(random, 4, &["-U"]);
    let direct = image.format != "raw" || image.size.is_multiple_of(4096);
    let caches = ["writeback", "writethrough", "unsafe", "none", "directsync"];
    step.option(random, 15, "-t", &caches[..if direct { 5 } else { 3 }]);
    step.option(random, 25, "-d", &["unmap", "ignore", "on", "off"]);
    step.maybe(random, 4, &["-C"]).maybe(random, 2, &["-s"]);
    step.option(random, 5, "-i", &["threads", "io_uring"]);
    step.add(&[&image.name]);
    for _ in 0..=random.below(COMMANDS_MAX) {
        let command = command(random, image);
        step.add(&["-c", &command]);
        if command.starts_with("aio_") {
            // What comes next might overtake it.
            step.add(&["-c", "aio_flush"]);
        }
    }
    step.changes(&image.name);
    step
}

fn command(random: &mut Random, image: &Known) -> String {
    let (start, len) = sizes::request(random, image.size, image.cluster);
    let (at, count) = (sizes::typed(random, start), sizes::typed(random, len));
    let pattern = 1 + random.below(255);
    match random.below(40) {
        0..=13 => format!("write -P {pattern} {at} {count}"),
        14 => format!("write -f -P {pattern} {at} {count}"),
        15 => format!("writev -P {pattern} {at} {} {count}", len / 1024 * 512),
        16 => format!("aio_write -q -P {pattern} {at} {count}"),
        17..=20 => {
            let flags = ["-z", "-zu", "-zu", "-zf", "-zn", "-zun"];
            let flags = random.pick(&flags[..if image.format == "raw" { 4 } else { 6 }]);
            format!("write {flags} {at} {count}")
        }
        21..=23 => compressed(random, image, pattern),
        24..=27 => format!("discard {at} {count}"),
        28 => format!("read -P {pattern} {at} {count}"),
        29 => format!("read -P 0 -s {} -l {} {at} {count}", len / 3, len / 2),
        30..=32 => format!("read -v {at} {}", len.min(64)),
        33 => "flush".to_owned(),
        34 => format!("alloc {at} {count}"),
        35 => "map".to_owned(),
        36 => "length".to_owned(),
        37 => truncate(random, image.size),
        38 => format!("reopen {}", random.pick(&["-r", "-w", "-c none", "-c unsafe", ""])),
        _ => wrong(random, &at, &count),
    }
}

/// One cluster, and rarely less: QEMU goes on with those behind one that cannot be written, ours does not.
fn compressed(random: &mut Random, image: &Known, pattern: u64) -> String {
    let (start, len) = sizes::request(random, image.size, image.cluster);
    let start = start / image.cluster * image.cluster;
    let len = if random.chance(10) { len.min(image.cluster) } else { image.cluster };
    let len = if random.chance(5) { len } else { len.min(image.size.saturating_sub(start)) };
    format!("write -c -P {pattern} {start} {len}")
}

fn truncate(random: &mut Random, size: u64) -> String {
    let size = match random.below(4) {
        0 => random.below(size),
        1 => random.below(size) / 512 * 512,
        _ => size + 512 * random.below(3000),
    };
    format!("truncate {}", sizes::typed(random, size))
}

/// A command that makes no sense.
fn wrong(random: &mut Random, at: &str, count: &str) -> String {
    match random.below(6) {
        0 => format!("write -cz {at} {count}"),
        1 => format!("write -u {at} {count}"),
        2 => format!("read {at}"),
        3 => format!("write -P 256 {at} {count}"),
        4 => format!("wrote {at} {count}"),
        _ => format!("read -{at} {count}x"),
    }
}

/// A small benchmark, its requests one after the other.
pub fn bench(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any(random);
    let mut step = Step::img("bench");
    let count = (1 + random.below(20)).to_string();
    step.add(&["-c", &count, "-d", "1"]);
    step.maybe(random, 90, &["-f", image.format]);
    step.option(random, 60, "-s", &["512", "4k", "1000", "64k", "0", "1M"]);
    step.option(random, 40, "-S", &["512", "4k", "8k", "100k", "0"]);
    let start = random.below(image.size.min(4 << 20));
    let start = sizes::typed(random, start);
    step.maybe(random, 40, &["-o", &start]);
    step.option(random, 15, "-t", &["none", "writeback", "unsafe"]);
    step.maybe(random, 10, &["-q"]).maybe(random, 10, &["-U"]);
    step.option(random, 10, "-i", &["threads", "io_uring"]);
    if random.chance(60) {
        step.add(&["-w"]);
        step.option(random, 50, "--pattern", &["0", "7", "200"]);
        step.option(random, 30, "--flush-interval", &["1", "3", "0"]);
        step.maybe(random, 10, &["--no-drain"]);
        step.changes(&image.name);
    }
    step.add(&[&image.name]);
    vec![step]
}
