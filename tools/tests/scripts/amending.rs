//! Changes of an image's options, and repairs.

use crate::random::Random;
use crate::script::Step;
use crate::sizes;
use crate::world::World;

/// Changes options of an image.
pub fn amend(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any_of(random, "qcow2");
    let mut list = Vec::new();
    for _ in 0..=random.below(2) {
        list.push(match random.below(10) {
            0..=2 => format!("compat={}", random.pick(&["0.10", "1.1", "v2", "v3"])),
            // QEMU walks over all counts that the table has room for: hours, with large clusters.
            3 | 4 if image.cluster <= 16384 => {
                format!("refcount_bits={}", random.pick(&["1", "2", "8", "16", "32", "64"]))
            }
            5 | 6 => format!("lazy_refcounts={}", random.pick(&["on", "off"])),
            7 => format!("size={}", sizes::disk(random, image.cluster)),
            8 => format!("data_file_raw={}", random.pick(&["on", "off"])),
            _ => random
                .pick(&[
                    "cluster_size=4k",
                    "preallocation=full",
                    "extended_l2=on",
                    "compression_type=zstd",
                    "backing_file=a",
                    "nonsense=1",
                ])
                .to_string(),
        });
    }
    let mut step = Step::img("amend");
    step.maybe(random, 30, &["-q"]).maybe(random, 10, &["-p"]);
    step.maybe(random, 60, &["-f", image.format]).option(random, 10, "-t", &["none", "unsafe"]);
    step.maybe(random, 5, &["--force"]);
    step.add(&["-o", &list.join(","), &image.name]).changes(&image.name);
    vec![step]
}

/// Checks an image, and perhaps repairs it.
pub fn check(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any_of(random, "qcow2");
    let mut step = Step::img("check");
    step.maybe(random, 20, &["-q"]).maybe(random, 60, &["-f", image.format]);
    step.option(random, 30, "-r", &["leaks", "all"]);
    step.option(random, 50, "--output", &["json", "human"]);
    step.maybe(random, 10, &["-U"]).add(&[&image.name]);
    if step.has("-r") {
        step.changes(&image.name);
    }
    vec![step]
}
