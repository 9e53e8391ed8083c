//! What concerns layers: snapshots, backing files, and the size of a disk.

use crate::random::Random;
use crate::script::Step;
use crate::sizes;
use crate::world::{Known, World};

const CACHES: [&str; 4] = ["writeback", "none", "writethrough", "unsafe"];

/// Makes, applies, deletes or lists snapshots.
pub fn snapshot(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any_of(random, "qcow2");
    let mut step = Step::img("snapshot");
    step.maybe(random, 30, &["-q"]).maybe(random, 60, &["-f", image.format]);
    let made = image.snapshots.is_empty() || random.chance(40);
    let chosen = random.pick_any(&image.snapshots).cloned();
    let chosen = if random.chance(92) { chosen } else { Some("none".to_owned()) };
    let chosen = chosen.unwrap_or_else(|| "1".to_owned());
    match random.below(10) {
        0 => {
            step.maybe(random, 20, &["-U"]).add(&["-l"]);
        }
        _ if made => {
            let name = world.new_name("s");
            step.add(&["-c", &name]);
            if let Some(known) = world.find_mut(&image.name) {
                known.snapshots.push(name);
            }
        }
        1..=5 => {
            step.add(&["-a", &chosen]);
        }
        _ => {
            step.add(&["-d", &chosen]);
            if let Some(known) = world.find_mut(&image.name) {
                known.snapshots.retain(|name| *name != chosen);
            }
        }
    }
    step.add(&[&image.name]);
    if !step.has("-l") {
        step.changes(&image.name);
    }
    vec![step]
}

/// Changes the size of a disk.
pub fn resize(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any(random);
    let mut step = Step::img("resize");
    step.maybe(random, 30, &["-q"]).maybe(random, 85, &["-f", image.format]);
    let unit = *random.pick(&[512, 512, 4096, image.cluster, 1]);
    let change = random.below(2 << 20) / unit * unit;
    let shorter = image.size.saturating_sub(change);
    let (size, typed) = match random.below(6) {
        0 => (shorter, format!("-{}", sizes::typed(random, change))),
        1 => (shorter, sizes::typed(random, shorter)),
        2 => (image.size, sizes::typed(random, image.size)),
        3 => (image.size + change, sizes::typed(random, image.size + change)),
        _ => (image.size + change, format!("+{}", sizes::typed(random, change))),
    };
    let shrinks = size < image.size;
    step.maybe(random, if shrinks { 90 } else { 10 }, &["--shrink"]);
    let mode = *random.pick(&["off", "metadata", "falloc", "full"]);
    if random.chance(if shrinks { 5 } else { 40 }) {
        step.add(&[&format!("--preallocation={mode}")]);
    }
    step.add(&[&image.name, &typed]).changes(&image.name);
    if let Some(known) = world.find_mut(&image.name) {
        known.size = size;
    }
    vec![step]
}

/// Moves what an overlay holds into an image below it.
pub fn commit(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = with_backing(random, world);
    let mut step = Step::img("commit");
    step.maybe(random, 30, &["-q"]).maybe(random, 10, &["-p"]).maybe(random, 30, &["-d"]);
    step.maybe(random, 50, &["-f", image.format]).option(random, 20, "-t", &CACHES);
    if let Some(below) = &image.backing {
        let lower = world.find(below).and_then(|image| image.backing.clone());
        let base = lower.filter(|_| random.chance(50)).unwrap_or_else(|| below.clone());
        step.maybe(random, 25, &["-b", &base]).changes(below).changes(&base);
    }
    step.add(&[&image.name]).changes(&image.name);
    vec![step]
}

/// Puts an image on another backing file.
pub fn rebase(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = if random.chance(75) { with_backing(random, world) } else { world.any(random) };
    let mut step = Step::img("rebase");
    step.maybe(random, 30, &["-q"]).maybe(random, 10, &["-p"]);
    step.maybe(random, 70, &["-f", image.format]);
    step.option(random, 15, "-t", &CACHES).option(random, 15, "-T", &CACHES);
    step.maybe(random, 15, &["-c"]);
    let unsafely = random.chance(25);
    if unsafely {
        step.add(&["-u"]);
    }
    let new = world.any(random);
    let backing = match random.below(10) {
        0..=2 => None,
        _ if world.reaches(&new.name, &image.name) => None,
        _ => Some(new),
    };
    match &backing {
        Some(new) => step.add(&["-b", &new.name]).maybe(
            random,
            if unsafely { 90 } else { 100 },
            &["-F", new.format],
        ),
        None => step.add(&["-b", ""]),
    };
    step.add(&[&image.name]).changes(&image.name);
    if let Some(known) = world.find_mut(&image.name) {
        known.backing = backing.map(|new| new.name);
    }
    vec![step]
}

/// An image on top of another, if there is one.
fn with_backing(random: &mut Random, world: &World) -> Known {
    let tops: Vec<&Known> = world.images.iter().filter(|image| image.backing.is_some()).collect();
    match random.pick_any(&tops) {
        Some(image) => (*image).clone(),
        None => world.any(random),
    }
}
