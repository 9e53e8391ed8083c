//! The script of a seed.

use crate::random::Random;
use crate::script::{Program, Step};
use crate::world::World;
use crate::{amending, bitmaps, creation, disk_io, layers, tour, transfer};

/// Commands after the first images are there: least, and how many more at most.
const COMMANDS: (u64, u64) = (5, 11);
/// Words that stand for nothing.
const JUNK: [&str; 8] =
    ["1X", "-1", "nothing", "", "--frobnicate", "-Z", "0x", "99999999999999999999"];

type Maker = fn(&mut Random, &mut World) -> Vec<Step>;

/// Who makes commands, and how often.
const MAKERS: [(u64, Maker); 17] = [
    (30, disk_io::commands),
    (12, layers::snapshot),
    (12, transfer::convert),
    (8, layers::resize),
    (8, bitmaps::bitmap),
    (7, layers::rebase),
    (6, layers::commit),
    (6, creation::overlay),
    (5, amending::amend),
    (4, amending::check),
    (4, tour::info),
    (4, tour::map),
    (4, tour::compare),
    (4, transfer::dd),
    (3, tour::measure),
    (3, disk_io::bench),
    (3, creation::create),
];

/// The command lines of the script `seed`.
pub fn script(seed: u64) -> Vec<Step> {
    let random = &mut Random::new(seed);
    let world = &mut World::default();
    let mut steps = start(random, world);
    for _ in 0..COMMANDS.0 + random.below(COMMANDS.1) {
        let mut made = maker(random)(random, world);
        if random.chance(3) {
            made.iter_mut().for_each(|step| spoil(random, step));
        }
        steps.append(&mut made);
    }
    steps
}

/// The first images, with something in them.
fn start(random: &mut Random, world: &mut World) -> Vec<Step> {
    let raw = random.chance(10);
    let mut steps = creation::create_named(random, world, "a", if raw { "raw" } else { "qcow2" });
    let filled = world.any(random);
    steps.push(disk_io::run(random, &filled));
    if random.chance(50) {
        steps.append(&mut creation::overlay(random, world));
    }
    steps
}

fn maker(random: &mut Random) -> Maker {
    let mut left = random.below(MAKERS.iter().map(|(weight, _)| weight).sum());
    for (weight, maker) in MAKERS {
        match left.checked_sub(weight) {
            Some(rest) => left = rest,
            None => return maker,
        }
    }
    unreachable!("the weights are summed up above")
}

/// Makes a mistake in a command line.
fn spoil(random: &mut Random, step: &mut Step) {
    if step.program == Program::Io || step.words.len() < 2 {
        return;
    }
    let at = 1 + random.below(step.words.len() as u64 - 1) as usize;
    match random.below(3) {
        0 => {
            step.words.remove(at);
        }
        1 => step.words.push("extra".to_owned()),
        _ => (*random.pick(&JUNK)).clone_into(&mut step.words[at]),
    }
}
