//! Changes a block of key slots of an authenticated image, and does with it what can be done: no input may panic, ask for more
//! memory or work than the limits allow, or open with what it was not made with.

use qcow::crypt::Passphrase;
use qcow::crypt::seal::{DataKey, ImageId};
use qcow::crypt::sealed_slots::{KeySlots, SLOT_COUNT, SLOTS_LEN, SlotCost, SlotState};

/// KiB times passes that are computed; what asks for more is only parsed.
const WORK_MAX: u64 = 1 << 10;
const SLOT_LEN: usize = SLOTS_LEN / SLOT_COUNT;
/// Bytes of a slot in front of its checksum.
const CHECKED_LEN: usize = SLOT_LEN - 4;

/// A slot that opens with "fuzz" in the first place of the image with the identity 0, but for the zeros at its end and the
/// checksum. It was made by the first version of the engine that makes such slots, and each later one has to open it.
#[rustfmt::skip]
const SLOT: [u8; 128] = [
    0x71, 0x63, 0x6f, 0x77, 0x73, 0x6c, 0x6f, 0x74, 0x00, 0x01, 0x00, 0x01, 0x00, 0x00, 0x00, 0x08,
    0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x10, 0xbd, 0x0f, 0x73, 0x7a, 0xbd, 0x52, 0xa5,
    0xc4, 0xd3, 0x3d, 0x86, 0x5d, 0x17, 0xf5, 0x2d, 0x9d, 0xc2, 0x62, 0x9a, 0x14, 0x8e, 0xf2, 0x2a,
    0x3c, 0x42, 0x0d, 0xfa, 0x76, 0x92, 0x8a, 0x54, 0xc7, 0xe4, 0x77, 0x10, 0xf2, 0x4c, 0x56, 0x42,
    0x65, 0x34, 0x6a, 0x32, 0x70, 0x81, 0x76, 0xb1, 0xd6, 0xb3, 0xf9, 0x05, 0xa3, 0xf9, 0xb0, 0x62,
    0x64, 0x5e, 0x80, 0xee, 0xad, 0x28, 0x02, 0xf3, 0x5a, 0x5d, 0x51, 0x7a, 0x8a, 0xb8, 0x2d, 0x36,
    0xfa, 0x96, 0x7b, 0xbe, 0xe0, 0xb0, 0xba, 0x72, 0x55, 0xda, 0xa5, 0xa8, 0xc5, 0x22, 0x4c, 0x1d,
    0x4c, 0x49, 0xf8, 0x7d, 0xfb, 0x90, 0x42, 0xfc, 0x6a, 0x28, 0xbd, 0x2f, 0xd4, 0xed, 0xb0, 0x46,
];

/// The first of `bytes` says, by bit, which slots get a right checksum; the others are added to a block with one real slot.
pub fn run(bytes: &[u8]) {
    let Some((checked, changes)) = bytes.split_first() else { return };
    let mut block = real_block();
    for (byte, change) in block.iter_mut().zip(changes) {
        *byte ^= change;
    }
    let changed = block[..CHECKED_LEN] != real_block()[..CHECKED_LEN];
    for (slot, sector) in block.chunks_exact_mut(SLOT_LEN).enumerate() {
        if checked >> slot & 1 == 1 {
            let (content, checksum) = sector.split_at_mut(CHECKED_LEN);
            checksum.copy_from_slice(&crc32c::crc32c(content).to_be_bytes());
        }
    }
    let slots = KeySlots::parse(ImageId::default(), &block).expect("as many bytes as there are");
    assert_eq!(slots.bytes(), block);
    if !is_cheap(&slots) {
        return;
    }
    let opened = slots.unlock(&passphrase("fuzz"));
    if changed {
        // Not even in another place: that is sealed with the key, too.
        assert!(opened.is_err(), "a changed slot opened");
    } else if checked & 1 == 1 {
        assert_eq!(opened.expect("the real slot").0, 0);
    }
    change(slots);
}

/// Key slots come and go, whatever the others are.
fn change(mut slots: KeySlots) {
    let before = slots.clone();
    let key = DataKey::random();
    let Ok(added) = slots.add(None, &key, &passphrase("other"), SlotCost::TINY) else {
        assert!((0..SLOT_COUNT).all(|slot| slots.state(slot) != SlotState::Empty));
        return assert_eq!(slots, before);
    };
    assert_eq!(before.state(added), SlotState::Empty);
    assert_eq!(slots.unlock(&passphrase("other")).expect("what was added").0, added);
    let active = |slots: &KeySlots, slot| matches!(slots.state(slot), SlotState::Active(_));
    let others = (0..SLOT_COUNT).any(|slot| active(&before, slot));
    assert_eq!(slots.erase(added).is_ok(), others, "the last one stays");
    assert!(!others || slots == before);
}

fn is_cheap(slots: &KeySlots) -> bool {
    let work = |slot| match slots.state(slot) {
        SlotState::Active(argon) => u64::from(argon.memory_kib) * u64::from(argon.passes),
        SlotState::Empty | SlotState::Damaged => 0,
    };
    (0..SLOT_COUNT).map(work).sum::<u64>() <= WORK_MAX
}

/// The real slot, and seven that are empty.
fn real_block() -> Vec<u8> {
    let mut block = KeySlots::empty(ImageId::default()).bytes().to_vec();
    block[..SLOT.len()].copy_from_slice(&SLOT);
    block
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::read(text.as_bytes()).expect("a passphrase")
}
