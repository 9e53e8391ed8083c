//! Published vectors, and: any change of any bit is found.

mod shake;
mod vectors;

use proptest::prelude::*;

use super::*;

const LABEL: Label = Label { level: 1, index: 0x0102_0304_0506_0708, len: 16 << 10 };

fn sealers() -> [Sealer; 2] {
    let image = ImageId::random();
    [Sealer::crc32c(image), Sealer::aes_256_gcm(image, &DataKey::random())]
}

/// `label` with each one of its bits changed.
fn other_labels(label: Label) -> impl Iterator<Item = Label> {
    let levels = (0..8).map(move |bit| Label { level: label.level ^ 1 << bit, ..label });
    let indices = (0..64).map(move |bit| Label { index: label.index ^ 1 << bit, ..label });
    let lens = (0..32).map(move |bit| Label { len: label.len ^ 1 << bit, ..label });
    levels.chain(indices).chain(lens)
}

/// `seal` with each one of its bits changed.
fn other_seals(seal: Seal) -> impl Iterator<Item = Seal> {
    let nonces = (0..NONCE_LEN * 8).map(move |bit| {
        let mut seal = seal;
        seal.nonce[bit / 8] ^= 1 << (bit % 8);
        seal
    });
    let tags = (0..TAG_LEN * 8).map(move |bit| {
        let mut seal = seal;
        seal.tag[bit / 8] ^= 1 << (bit % 8);
        seal
    });
    nonces.chain(tags)
}

#[test]
fn what_was_sealed_opens() {
    for sealer in sealers() {
        for len in [0, 1, 15, 16, 17, 127, 128, 129, 4096, 16 << 10, 70_001] {
            let plain: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut bytes = plain.clone();
            let seal = sealer.seal(LABEL, &mut bytes);
            let encrypted = sealer.kind() == SealKind::Aes256Gcm;
            assert!(len < 15 || (bytes != plain) == encrypted, "{sealer:?} {len}");
            assert!(sealer.open(LABEL, &seal, &mut bytes), "{sealer:?} {len}");
            assert_eq!(bytes, plain);
        }
    }
}

#[test]
fn no_changed_bit_opens() {
    for sealer in sealers() {
        for len in [0, 1, 16, 40, 300] {
            let mut sealed = vec![7; len];
            let seal = sealer.seal(LABEL, &mut sealed);
            for bit in 0..len * 8 {
                let mut bytes = sealed.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!sealer.open(LABEL, &seal, &mut bytes), "{sealer:?} {len}: bit {bit}");
            }
            for label in other_labels(LABEL) {
                assert!(!sealer.open(label, &seal, &mut sealed.clone()), "{sealer:?} {label:?}");
            }
            for seal in other_seals(seal) {
                assert!(!sealer.open(LABEL, &seal, &mut sealed.clone()), "{sealer:?} {seal:?}");
            }
        }
    }
}

#[test]
fn no_part_of_another_image_kind_or_key_opens() {
    let (image, key) = (ImageId([1; 16]), DataKey::random());
    let ours = Sealer::aes_256_gcm(image, &key);
    let mut sealed = *b"the same";
    let seal = ours.seal(LABEL, &mut sealed);
    let others = [
        Sealer::aes_256_gcm(ImageId([2; 16]), &key),
        Sealer::aes_256_gcm(image, &DataKey::random()),
        Sealer::crc32c(image),
    ];
    for other in others {
        assert!(!other.open(LABEL, &seal, &mut sealed.clone()), "{other:?}");
    }
    assert!(ours.open(LABEL, &seal, &mut sealed));
    let seal = Sealer::crc32c(image).seal(LABEL, &mut sealed);
    assert!(!Sealer::crc32c(ImageId([2; 16])).open(LABEL, &seal, &mut sealed));
    assert!(!ours.open(LABEL, &seal, &mut sealed.clone()));
}

#[test]
fn what_does_not_open_is_wiped() {
    let sealer = Sealer::aes_256_gcm(ImageId::random(), &DataKey::random());
    let mut bytes = [7; 100];
    let mut seal = sealer.seal(LABEL, &mut bytes);
    seal.tag[15] ^= 0x80;
    assert!(!sealer.open(LABEL, &seal, &mut bytes));
    assert_eq!(bytes, [0; 100]);
}

#[test]
fn nothing_is_sealed_twice_alike_and_no_key_is_shown() {
    let key = DataKey::random();
    let sealer = Sealer::aes_256_gcm(ImageId::default(), &key);
    let mut nonces: Vec<_> = (0..1000).map(|_| sealer.seal(LABEL, &mut []).nonce).collect();
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), 1000);
    assert_eq!(format!("{key:?}"), "DataKey((secret))");
    let image = ImageId::default();
    assert_eq!(
        format!("{sealer:?}"),
        format!("Sealer {{ kind: Aes256Gcm, image: {image:?}, .. }}")
    );
}

proptest! {
    /// Any change: of any bytes, anywhere, also of their number.
    #[test]
    fn only_what_was_sealed_opens(
        plain in prop::collection::vec(any::<u8>(), 0..600),
        other in prop::collection::vec(any::<u8>(), 0..600),
        (level, index, len) in any::<(u8, u64, u32)>(),
        (other_level, other_index, other_len) in any::<(u8, u64, u32)>(),
    ) {
        let label = Label { level, index, len };
        let other_label = Label { level: other_level, index: other_index, len: other_len };
        for sealer in sealers() {
            let mut bytes = plain.clone();
            let seal = sealer.seal(label, &mut bytes);
            let mut longer = [&bytes[..], &[0]].concat();
            prop_assert!(!sealer.open(label, &seal, &mut longer));
            if let Some((_, shorter)) = bytes.split_last() {
                prop_assert!(!sealer.open(label, &seal, &mut shorter.to_vec()));
            }
            prop_assert!(bytes == other || !sealer.open(label, &seal, &mut other.clone()));
            prop_assert!(label == other_label || !sealer.open(other_label, &seal, &mut bytes.clone()));
            prop_assert!(sealer.open(label, &seal, &mut bytes));
            prop_assert_eq!(&bytes, &plain);
        }
    }
}
