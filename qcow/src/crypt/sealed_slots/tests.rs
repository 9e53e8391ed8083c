//! Passphrases that come and go, and what others might make of a slot.

use proptest::prelude::*;

use super::sector::{SLOT_LEN, SlotSector};
use super::*;
use crate::crypt::seal::{DataKey, ImageId};
use crate::crypt::secret::Passphrase;
use crate::error::{ErrorKind, Result};
use crate::limits::{ARGON_LANES_MAX, ARGON_MEMORY_KIB_MAX, ARGON_PASSES_MAX, ARGON_WORK_MAX};

const IMAGE: ImageId = ImageId([7; 16]);
const TINY: Argon = Argon { memory_kib: 8, passes: 1, lanes: 1 };

fn passphrase(text: &str) -> Passphrase {
    Passphrase::read(text.as_bytes()).unwrap()
}

/// Slots with a key under one passphrase.
fn slots(text: &str) -> (KeySlots, DataKey) {
    let (mut slots, key) = (KeySlots::empty(IMAGE), DataKey::random());
    assert_eq!(slots.add(None, &key, &passphrase(text), SlotCost::TINY).unwrap(), 0);
    (slots, key)
}

/// The slot that a passphrase opens, and the key. Nothing is remembered.
fn unlock(slots: &KeySlots, text: &str) -> Result<(usize, [u8; 32])> {
    slots.unlock(&passphrase(text)).map(|(slot, key)| (slot, *key.bytes()))
}

fn expect_wrong(slots: &KeySlots, text: &str) -> String {
    let refused = unlock(slots, text).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    assert!(refused.message().starts_with("Invalid password, cannot unlock any keyslot"));
    refused.to_string()
}

/// `slots` with other bytes in one of them, read again.
fn with_sector(slots: &KeySlots, slot: usize, sector: &[u8]) -> KeySlots {
    let mut bytes = slots.bytes().to_vec();
    bytes[slot * SLOT_LEN..][..SLOT_LEN].copy_from_slice(sector);
    KeySlots::parse(IMAGE, &bytes).unwrap()
}

/// A slot's bytes with a checksum that is right.
fn checksummed(sector: &[u8]) -> [u8; SLOT_LEN] {
    SlotSector(sector.try_into().unwrap()).checksummed().0
}

#[test]
fn passphrases_come_and_go() {
    let (mut slots, key) = slots("one");
    assert_eq!(unlock(&slots, "one").unwrap(), (0, *key.bytes()));
    expect_wrong(&slots, "two");
    expect_wrong(&slots, "");

    assert_eq!(slots.add(None, &key, &passphrase("two"), SlotCost::TINY).unwrap(), 1);
    assert_eq!(slots.add(Some(7), &key, &passphrase("three"), SlotCost::TINY).unwrap(), 7);
    let slots = &mut KeySlots::parse(IMAGE, slots.bytes()).unwrap();
    for (slot, text) in [(0, "one"), (1, "two"), (7, "three")] {
        assert_eq!(unlock(slots, text).unwrap(), (slot, *key.bytes()));
        assert_eq!(slots.state(slot), SlotState::Active(TINY));
    }
    assert_eq!(slots.state(2), SlotState::Empty);

    let before = slots.clone();
    slots.erase(0).unwrap();
    assert_eq!((slots.state(0), slots.sector(0)), (SlotState::Empty, before.sector(2)));
    assert_eq!(slots.bytes()[SLOT_LEN..], before.bytes()[SLOT_LEN..], "one sector has changed");
    expect_wrong(slots, "one");
    slots.erase(7).unwrap();
    assert_eq!(unlock(slots, "two").unwrap(), (1, *key.bytes()));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (mut slots, key) = slots("one");
    let before = slots.clone();
    let two = passphrase("two");
    let beyond = SlotCost::Exactly(Argon { passes: ARGON_PASSES_MAX + 1, ..TINY });
    let refused = [
        (slots.add(Some(0), &key, &two, SlotCost::TINY).unwrap_err(), "active keyslot 0"),
        (slots.add(Some(8), &key, &two, SlotCost::TINY).unwrap_err(), "between 0 and 7"),
        (slots.add(None, &key, &two, beyond).unwrap_err(), "65 passes"),
        (slots.erase(0).unwrap_err(), "only active keyslot 0"),
        (slots.erase(1).unwrap_err(), "already erased"),
        (slots.erase(usize::MAX).unwrap_err(), "between 0 and 7"),
    ];
    for (error, what) in refused {
        assert!(error.message().contains(what), "{error}");
    }
    assert_eq!(slots, before);
    (1..SLOT_COUNT).for_each(|_| {
        slots.add(None, &key, &two, SlotCost::TINY).unwrap();
    });
    let full = slots.add(None, &key, &two, SlotCost::TINY).unwrap_err();
    assert!(full.message().contains("all keyslots are in use"), "{full}");
    for len in [0, 512, SLOTS_LEN - 1, SLOTS_LEN + 1] {
        let refused = KeySlots::parse(IMAGE, &vec![0; len]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn no_changed_byte_opens() {
    let (slots, key) = slots("one");
    for at in 0..SLOT_LEN {
        let mut sector = slots.sector(0).to_vec();
        sector[at] ^= 1 << (at % 8);
        let damaged = with_sector(&slots, 0, &sector);
        assert_eq!(damaged.state(0), SlotState::Damaged, "byte {at}");
        let told = expect_wrong(&damaged, "one");
        assert!(told.ends_with("; keyslot 0 is damaged"), "{told}");
    }
    // Somebody has changed it who can make a checksum.
    for at in 0..at_checksum() {
        let mut sector = slots.sector(0).to_vec();
        sector[at] ^= 1;
        expect_wrong(&with_sector(&slots, 0, &checksummed(&sector)), "one");
    }
    assert_eq!(unlock(&slots, "one").unwrap(), (0, *key.bytes()));
}

/// Bytes in front of a slot's checksum.
fn at_checksum() -> usize {
    SLOT_LEN - 4
}

#[test]
fn a_slot_works_in_its_place_alone() {
    let (slots, key) = slots("one");
    let moved = with_sector(&KeySlots::empty(IMAGE), 3, slots.sector(0));
    assert_eq!(moved.state(3), SlotState::Active(TINY));
    expect_wrong(&moved, "one");
    let other = KeySlots::parse(ImageId([8; 16]), slots.bytes()).unwrap();
    expect_wrong(&other, "one");

    // Damaged slots are no obstacle, and can be used again.
    let mut damaged = slots.clone();
    for slot in 1..4 {
        damaged = with_sector(&damaged, slot, &[slot as u8; SLOT_LEN]);
    }
    assert_eq!(unlock(&damaged, "one").unwrap(), (0, *key.bytes()));
    damaged.erase(1).unwrap();
    assert_eq!(damaged.state(1), SlotState::Empty);
    damaged.add(Some(2), &key, &passphrase("two"), SlotCost::TINY).unwrap();
    assert_eq!(unlock(&damaged, "two").unwrap(), (2, *key.bytes()));
    assert_eq!(damaged.state(3), SlotState::Damaged);
    assert_eq!(KeySlots::parse(IMAGE, &[0; SLOTS_LEN]).unwrap().state(0), SlotState::Damaged);
}

/// `slots` with such parameters in one of them.
fn with_argon(slots: &KeySlots, slot: usize, argon: Argon) -> KeySlots {
    let mut sector = slots.sector(0).to_vec();
    for (at, number) in [(12, argon.memory_kib), (16, argon.passes), (20, argon.lanes)] {
        sector[at..at + 4].copy_from_slice(&number.to_be_bytes());
    }
    with_sector(slots, slot, &checksummed(&sector))
}

#[test]
fn hostile_parameters_are_refused_before_anything_is_computed() {
    let (slots, _) = slots("one");
    let beyond = [
        Argon { memory_kib: u32::MAX, ..TINY },
        Argon { memory_kib: ARGON_MEMORY_KIB_MAX + 1, ..TINY },
        Argon { memory_kib: 0, ..TINY },
        Argon { passes: u32::MAX, ..TINY },
        Argon { passes: 0, ..TINY },
        Argon { lanes: ARGON_LANES_MAX + 1, memory_kib: 1 << 10, ..TINY },
        Argon { lanes: 0, ..TINY },
    ];
    for argon in beyond {
        let hostile = with_argon(&slots, 0, argon);
        assert_eq!(hostile.state(0), SlotState::Damaged, "{argon:?}");
        expect_wrong(&hostile, "one");
    }
    // Each within its limits, and together too much: what is in front is tried.
    let (memory_kib, passes) = (ARGON_MEMORY_KIB_MAX, ARGON_PASSES_MAX);
    let largest = Argon { memory_kib, passes, lanes: 1 };
    assert_eq!(largest.work(), ARGON_WORK_MAX);
    let hostile = with_argon(&slots, 1, largest);
    assert_eq!(hostile.state(1), SlotState::Active(largest));
    assert_eq!(unlock(&hostile, "one").unwrap().0, 0);
    assert_eq!(unlock(&hostile, "two").unwrap_err().kind(), ErrorKind::Limit);
}

/// What a slot has given once is given again without a computation.
#[test]
fn a_passphrase_remembers_the_key_it_opened() {
    let (slots, key) = slots("one");
    let one = passphrase("one");
    let expensive = with_argon(&slots, 1, Argon { memory_kib: ARGON_MEMORY_KIB_MAX, ..TINY });
    let opened: Vec<_> = (0..2).map(|_| slots.unlock(&one).unwrap().1).collect();
    for found in &opened {
        assert_eq!(found.bytes(), key.bytes());
    }
    // The same memory, shared.
    assert!(std::ptr::eq(opened[0].bytes(), opened[1].bytes()));
    assert!(std::ptr::eq(expensive.unlock(&one).unwrap().1.bytes(), opened[0].bytes()));
    // Another image's slots are others, whatever their bytes.
    let other = KeySlots::parse(ImageId::default(), slots.bytes()).unwrap();
    assert!(other.unlock(&one).is_err() && other.unlock(&one).is_err());
    assert!(slots.unlock(&one).is_ok());
}

#[test]
fn slots_are_random() {
    let (first, key) = slots("one");
    let mut second = KeySlots::empty(IMAGE);
    second.add(None, &key, &passphrase("one"), SlotCost::TINY).unwrap();
    let parts = [24..56, 56..80, 80..112, 112..128];
    for part in parts {
        assert_ne!(first.sector(0)[part.clone()], second.sector(0)[part]);
    }
    assert!(first.bytes().windows(32).all(|bytes| bytes != key.bytes()));
    assert!(first.sector(0)[128..508].iter().all(|byte| *byte == 0));
}

proptest! {
    /// Any bytes with or without a right checksum: a refusal, never a panic.
    #[test]
    fn noise_is_no_slot(
        mut sector in prop::collection::vec(any::<u8>(), SLOT_LEN),
        sum: bool,
        kept in 0..SLOT_LEN,
    ) {
        let (slots, _) = slots("one");
        sector[..kept].copy_from_slice(&slots.sector(0)[..kept]);
        if sum {
            sector = checksummed(&sector).to_vec();
        }
        let changed = with_sector(&slots, 0, &sector);
        if !matches!(changed.state(0), SlotState::Active(argon) if argon.work() > 1 << 10) {
            prop_assert!(changed.bytes() == slots.bytes() || unlock(&changed, "one").is_err());
        }
    }
}
