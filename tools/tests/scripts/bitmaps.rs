//! Persistent bitmaps.

use crate::random::Random;
use crate::script::Step;
use crate::world::World;

/// Does one thing or several to a bitmap.
pub fn bitmap(random: &mut Random, world: &mut World) -> Vec<Step> {
    let image = world.any_of(random, "qcow2");
    let mut step = Step::img("bitmap");
    step.maybe(random, 50, &["-f", image.format]);
    if image.bitmaps.is_empty() || random.chance(40) {
        let name = world.new_name("m");
        step.add(&["--add"]).maybe(random, 20, &["--disable"]);
        step.option(random, 50, "-g", &["512", "1k", "4k", "64k", "128k", "2M", "3k", "0"]);
        step.add(&[&image.name, &name]).changes(&image.name);
        if let Some(known) = world.find_mut(&image.name) {
            known.bitmaps.push(name);
        }
        return vec![step];
    }
    let name = random.pick(&image.bitmaps).clone();
    for _ in 0..=random.below(2) {
        match random.below(6) {
            0 => step.add(&["--clear"]),
            1 => step.add(&["--enable"]),
            2 => step.add(&["--disable"]),
            3 => step.add(&["--remove"]),
            _ => step.add(&["--merge", random.pick(&image.bitmaps).as_str()]),
        };
    }
    if step.has("--merge") && random.chance(30) {
        let other = world.any_of(random, "qcow2");
        step.add(&["-b", &other.name]).maybe(random, 80, &["-F", other.format]);
    }
    let name = if random.chance(96) { name } else { "none".to_owned() };
    step.add(&[&image.name, &name]).changes(&image.name);
    vec![step]
}
