//! Images that are damaged at random: they are refused and not written to, or they were sound after all.

use qcow::disk::sim::{Content, Random, World};
use qcow::error::ErrorKind;

use crate::images::Made;
use crate::layers::{Layers, look};
use crate::{compact_image, each_seed};

const IMAGES: u64 = 1500;
/// Images are made once for so many damaged ones.
const DAMAGED_EACH: u64 = 30;

#[test]
fn what_is_damaged_is_left_alone() {
    let mut refused = 0;
    let mut known: Option<(u64, Made)> = None;
    each_seed(IMAGES, "what_is_damaged_is_left_alone", |seed| {
        let number = seed / DAMAGED_EACH;
        if known.as_ref().is_none_or(|(known, _)| *known != number) {
            known = Some((number, Made::small(number)));
        }
        let (_, made) = known.as_ref().unwrap();
        refused += u64::from(is_refused(made, seed));
    });
    println!("{refused} refused");
    assert!(refused > IMAGES / 4);
}

fn is_refused(made: &Made, seed: u64) -> bool {
    let mut bytes = made.content.to_vec();
    damage(&mut bytes, made, &mut Random::new(seed));
    let world = World::new(seed);
    let disk = world.add_content(Content::from_bytes(&bytes));
    world.block_on(async {
        let before = Layers::try_read(&disk).await.ok();
        match compact_image(&disk, seed).await {
            Ok(_) => {
                assert!(Layers::try_read(&disk).await.ok() == before, "a layer has changed");
                assert!(look(&disk).await.is_clean());
                false
            }
            Err(error) => {
                // A damaged LUKS header looks like a wrong key.
                let locked = [ErrorKind::Denied].iter().filter(|_| made.is_encrypted);
                let damaged = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::Limit];
                let mut told = damaged.iter().chain(locked);
                assert!(told.any(|kind| *kind == error.kind()), "{error}");
                // What a dirty bit asks for is done first.
                let is_repaired = bytes[79] & 1 == 1;
                assert!(is_repaired || disk.to_vec() == bytes, "it was written to: {error}");
                true
            }
        }
    })
}

/// Changes some words, mostly of tables.
fn damage(bytes: &mut [u8], made: &Made, random: &mut Random) {
    let cluster = made.geometry.cluster_size();
    for _ in 0..1 + random.below(3) {
        let words = bytes.len() as u64 / 8;
        let at = match random.below(3) {
            0 => random.below(14),
            1 => random.below((8 * cluster / 8).min(words)),
            _ => random.below(words),
        };
        let at = at as usize * 8;
        let flipped = 1_u64 << random.below(64);
        let old = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let new = match random.below(4) {
            0 => old ^ flipped,
            1 => old.wrapping_add(cluster),
            2 => old.wrapping_sub(cluster),
            _ => cluster * random.below(bytes.len() as u64 / cluster + 2),
        };
        bytes[at..at + 8].copy_from_slice(&new.to_be_bytes());
    }
}
