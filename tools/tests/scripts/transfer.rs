//! Copies from image to image: `convert` and `dd`.

use crate::creation::Options;
use crate::random::Random;
use crate::script::Step;
use crate::sizes;
use crate::world::{Known, World};

const CACHES: [&str; 5] = ["writeback", "none", "writethrough", "unsafe", "directsync"];

/// Converts an image, or two, into another.
pub fn convert(random: &mut Random, world: &mut World) -> Vec<Step> {
    let source = world.any(random);
    let mut step = Step::img("convert");
    step.maybe(random, 15, &["-q"]).maybe(random, 10, &["-p"]).maybe(random, 10, &["-W"]);
    step.option(random, 20, "-m", &["1", "2", "8", "16"]);
    let zeros = ["512", "4k", "64k", "1M", "1536", "0", "0"];
    let stored = source.size <= 16 << 20;
    step.option(random, 25, "-S", &zeros[..if stored { 7 } else { 5 }]);
    step.option(random, 15, "-t", &CACHES).option(random, 15, "-T", &CACHES);
    step.maybe(random, 10, &["-U"]).maybe(random, 70, &["-f", source.format]);
    step.maybe(random, 4, &["-r", "10G"]).maybe(random, 6, &["-C"]);
    step.maybe(random, 6, &["--salvage"]);
    if let Some(snapshot) = random.pick_any(&source.snapshots)
        && random.chance(30)
    {
        let named = format!("snapshot.name={snapshot}");
        let choice = if random.chance(40) { &named } else { snapshot };
        step.add(&["-l", choice]);
    }
    if random.chance(12) {
        return into_existing(random, world, &source, step);
    }
    let format = if random.chance(25) { "raw" } else { "qcow2" };
    step.add(&["-O", format]);
    let Some(target) = world.free_name(random, &[&source.name]) else { return Vec::new() };
    let mut known = Known {
        name: target.clone(),
        format,
        size: source.size,
        cluster: 65536,
        backing: None,
        snapshots: Vec::new(),
        bitmaps: Vec::new(),
    };
    if format == "qcow2" {
        known.backing = base(random, world, &source, &target, &mut step);
        step.maybe(random, 40, &["-c"]);
        if !source.bitmaps.is_empty() && random.chance(60) {
            step.add(&["--bitmaps"]).maybe(random, 20, &["--skip-broken-bitmaps"]);
            known.bitmaps.clone_from(&source.bitmaps);
        }
    }
    if random.chance(60) {
        let options = match format {
            "raw" => Options::raw(random, source.size),
            _ => Options::qcow2(random, &target, source.size),
        };
        options.add_to(random, &mut step);
        known.cluster = options.cluster;
    }
    step.add(&[&source.name]);
    let second = world.any(random);
    // A format that is named is that of both.
    let other_format = step.has("-f") && second.format != source.format;
    let is_alone = known.backing.is_some() || step.has("-l") || other_format;
    if !is_alone && random.chance(8) && !world.reaches(&second.name, &target) {
        step.add(&[&second.name]);
        known.size += second.size;
    }
    step.add(&[&target]).changes(&target);
    world.put(known);
    vec![step]
}

/// What the target is to be stacked on, most often that on which the source is.
fn base(
    random: &mut Random,
    world: &World,
    source: &Known,
    target: &str,
    step: &mut Step,
) -> Option<String> {
    let own = source.backing.as_deref().and_then(|name| world.find(name));
    let base = match own {
        Some(own) if random.chance(40) => own.clone(),
        _ if random.chance(4) => world.any(random),
        _ => return None,
    };
    if world.reaches(&base.name, target) {
        return None;
    }
    step.add(&["-B", &base.name]).maybe(random, 97, &["-F", base.format]);
    Some(base.name)
}

/// Converts into an image that is there.
fn into_existing(random: &mut Random, world: &World, source: &Known, mut step: Step) -> Vec<Step> {
    let target = world.any(random);
    if world.reaches(&source.name, &target.name) {
        return Vec::new();
    }
    step.add(&["-n", "-O", target.format]);
    step.maybe(random, 20, &["-c"]);
    step.add(&[&source.name, &target.name]).changes(&target.name);
    vec![step]
}

/// Copies a part of an image.
pub fn dd(random: &mut Random, world: &mut World) -> Vec<Step> {
    let source = world.any(random);
    let Some(target) = world.free_name(random, &[&source.name]) else { return Vec::new() };
    let format = if random.chance(50) { "raw" } else { "qcow2" };
    let mut step = Step::img("dd");
    step.maybe(random, 80, &["-f", source.format]).add(&["-O", format]);
    step.maybe(random, 10, &["-U"]);
    let block = *random.pick(&[512, 512, 1000, 4096, 65536, 1 << 20]);
    if block != 512 || random.chance(30) {
        step.add(&[&format!("bs={}", sizes::typed(random, block))]);
    }
    let blocks = source.size.min(4 << 20) / block;
    let skip = if random.chance(50) { random.below(blocks + 2) } else { 0 };
    // All of a large disk would take too long, block by block.
    let count = if source.size > 8 << 20 || random.chance(60) {
        Some(random.below(blocks.min((1 << 20) / block) + 3))
    } else {
        None
    };
    if skip > 0 {
        step.add(&[&format!("skip={skip}")]);
    }
    if let Some(count) = count {
        step.add(&[&format!("count={count}")]);
    }
    step.add(&[&format!("if={}", source.name), &format!("of={target}")]).changes(&target);
    let whole = source.size.min(count.map_or(u64::MAX, |count| (skip + count) * block));
    world.put(Known {
        name: target,
        format,
        size: whole.saturating_sub(skip * block),
        cluster: 65536,
        backing: None,
        snapshots: Vec::new(),
        bitmaps: Vec::new(),
    });
    vec![step]
}
