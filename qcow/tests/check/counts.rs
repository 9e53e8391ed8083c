//! Damage to counts and COPIED flags and nothing else, which both repairs mend wholly.

use std::path::Path;

use qcow::disk::sim::Random;
use qcow::engine::check::Repair;
use tempfile::TempDir;

use crate::damage::damage_counts;
use crate::images::{RECIPES, Recipe};
use crate::qemu::{self, qemu_img_may_fail};
use crate::{INCOMPATIBLE_AT, each_seed, our_check};

const DAMAGED_IMAGES: u64 = 160;

/// A sound image and what it reads as.
struct Sound {
    recipe: &'static Recipe,
    image: Vec<u8>,
    /// The disk, then each snapshot.
    contents: Vec<Vec<u8>>,
}

#[test]
fn damaged_counts_are_repaired_wholly() {
    let directory = TempDir::new().unwrap();
    let scratch = directory.path().join("sound");
    let sound: Vec<Sound> = RECIPES
        .iter()
        .map(|recipe| {
            let image = recipe.make(&scratch);
            Sound { recipe, contents: contents(&scratch), image }
        })
        .collect();
    each_seed(DAMAGED_IMAGES, |seed| repair_both_ways(&sound, directory.path(), seed));
}

fn repair_both_ways(sound: &[Sound], directory: &Path, seed: u64) {
    let mut random = Random::new(seed);
    let sound = &sound[random.below(sound.len() as u64) as usize];
    let mut image = sound.image.clone();
    let damage = damage_counts(&mut image, &mut random);
    let is_version_3 = image[7] == 3;
    image[INCOMPATIBLE_AT] |= u8::from(is_version_3);
    println!("seed {seed}, {}: {damage:#?}", sound.recipe.name);
    let file = |role: &str| directory.join(format!("{seed}-counts-{role}"));
    let (ours_path, theirs_path) = (file("ours"), file("theirs"));
    std::fs::write(&ours_path, &image).unwrap();
    std::fs::write(&theirs_path, &image).unwrap();

    let ours = our_check(&ours_path, Repair::All);
    let theirs = qemu::check(&theirs_path, &["-r", "all"]);
    println!("ours: {ours:?}\ntheirs: {theirs:?}");
    let summary = ours.outcome.as_ref().unwrap();
    assert!(summary.is_clean());
    let is_rebuilt = theirs.lines.iter().any(|line| line == "Rebuilding refcount structure");
    if !is_rebuilt && sound.recipe.name != "bitmaps" {
        assert_eq!(summary.corruptions_fixed, theirs.figure("corruptions-fixed"));
        assert_eq!(summary.leaks_fixed, theirs.figure("leaks-fixed"));
        // Ours come table by table.
        let mut lines: Vec<String> = ours.findings.iter().map(ToString::to_string).collect();
        let mut expected = theirs.lines;
        lines.sort();
        expected.sort();
        assert_eq!(lines, expected, "lines");
    }
    for path in [&ours_path, &theirs_path] {
        let again = our_check(path, Repair::None);
        assert!(again.outcome.as_ref().unwrap().is_clean(), "{again:?}");
        let verdict = qemu::check(path, &[]);
        assert_eq!(verdict.exit, 0, "{verdict:?}");
        assert_eq!(std::fs::read(path).unwrap()[INCOMPATIBLE_AT] & 1, 0, "the dirty bit");
        assert!(contents(path) == sound.contents, "what it reads as");
        std::fs::remove_file(path).unwrap();
    }
}

/// What the image at `path` reads as, and its snapshots; nothing of an encrypted one.
fn contents(path: &Path) -> Vec<Vec<u8>> {
    let raw = path.with_extension("raw");
    let mut contents = Vec::new();
    for snapshot in [None, Some("snapshot.name=one"), Some("snapshot.name=two")] {
        let mut arguments = vec!["convert", "-f", "qcow2", "-O", "raw"];
        arguments.extend(snapshot.iter().flat_map(|name| ["-l", *name]));
        arguments.extend([path.to_str().unwrap(), raw.to_str().unwrap()]);
        if qemu_img_may_fail(&arguments) {
            contents.push(std::fs::read(&raw).unwrap());
            std::fs::remove_file(&raw).unwrap();
        }
    }
    contents
}
