//! Commands that change nothing.

use crate::creation::Options;
use crate::random::Random;
use crate::script::Step;
use crate::sizes;
use crate::world::World;

/// Describes an image.
pub fn info(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any(random);
    let mut step = Step::img("info");
    step.maybe(random, 50, &["-f", image.format]);
    step.option(random, 70, "--output", &["json", "json", "human"]);
    step.maybe(random, 30, &["--backing-chain"]).maybe(random, 10, &["-U"]);
    step.add(&[&image.name]);
    vec![step]
}

/// Lists where the data of a disk are.
pub fn map(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any(random);
    let mut step = Step::img("map");
    step.maybe(random, 60, &["-f", image.format]);
    step.option(random, 75, "--output", &["json", "json", "human"]);
    let (start, len) = sizes::request(random, image.size, image.cluster);
    let (start, len) = (sizes::typed(random, start), sizes::typed(random, len));
    step.maybe(random, 20, &["-s", &start]).maybe(random, 20, &["-l", &len]);
    step.maybe(random, 10, &["-U"]).add(&[&image.name]);
    vec![step]
}

/// Compares two images.
pub fn compare(random: &mut Random, world: &mut World) -> Vec<Step> {
    let (first, second) = (world.any(random), world.any(random));
    let mut step = Step::img("compare");
    step.maybe(random, 60, &["-f", first.format]).maybe(random, 60, &["-F", second.format]);
    step.maybe(random, 20, &["-q"]).maybe(random, 10, &["-p"]).maybe(random, 40, &["-s"]);
    step.maybe(random, 10, &["-U"]).option(random, 10, "-T", &["none", "unsafe"]);
    step.add(&[&first.name, &second.name]);
    vec![step]
}

/// Measures what a new image would take.
pub fn measure(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any(random);
    let mut step = Step::img("measure");
    step.option(random, 60, "--output", &["json", "human"]);
    let format = *random.pick(&["qcow2", "qcow2", "raw"]);
    step.add(&["-O", format]);
    if format == "qcow2" && random.chance(60) {
        Options::qcow2(random, "measured", image.size).add_to(random, &mut step);
        step.changes.clear();
    }
    if random.chance(30) {
        let size = sizes::disk(random, 65536);
        step.add(&["--size", &sizes::typed(random, size)]);
        return vec![step];
    }
    step.maybe(random, 60, &["-f", image.format]);
    if let Some(snapshot) = random.pick_any(&image.snapshots)
        && random.chance(40)
    {
        step.add(&["-l", snapshot]);
    }
    step.add(&[&image.name]);
    vec![step]
}
