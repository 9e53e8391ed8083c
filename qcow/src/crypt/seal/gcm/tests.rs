//! Both ways to compute it do the same.

use proptest::prelude::*;

use super::*;
use crate::crypt::fill_random;

/// Seals and opens `plain` in both ways.
fn compare(key: &Key, nonce: &Nonce, associated: &[u8], plain: &[u8]) {
    let Some(wide) = wide::Wide::detect() else { return };
    let (mut ours, mut theirs) = (plain.to_vec(), plain.to_vec());
    let tag = wide.seal(key, nonce, associated, &mut ours);
    assert_eq!(tag, narrow::seal(key, nonce, associated, &mut theirs), "{} bytes", plain.len());
    assert_eq!(ours, theirs);
    assert!(wide.open(key, nonce, associated, &mut ours, &tag));
    assert!(narrow::open(key, nonce, associated, &mut theirs, &tag));
    assert_eq!((&ours[..], &theirs[..]), (plain, plain));
}

#[test]
fn every_length_gives_the_same() {
    let (mut key, mut nonce, mut bytes) = ([0; KEY_LEN], [0; GCM_NONCE_LEN], vec![0; 70_000]);
    fill_random(&mut key);
    fill_random(&mut nonce);
    fill_random(&mut bytes);
    let lens = (0..1100).chain([4095, 4096, 4097, 16 << 10, (64 << 10) - 1, 64 << 10, 70_000]);
    for len in lens {
        compare(&key, &nonce, &bytes[..len % 300], &bytes[..len]);
    }
    for len in 0..600 {
        compare(&key, &nonce, &bytes[..len], &bytes[..40]);
    }
}

#[test]
fn neither_way_opens_anything_else() {
    let (key, nonce) = ([3; KEY_LEN], [4; GCM_NONCE_LEN]);
    let mut sealed = [7; 700];
    let tag = seal(&key, &nonce, b"associated", &mut sealed);
    let ways = [
        narrow::open,
        |key: &Key, nonce: &Nonce, associated: &[u8], bytes: &mut [u8], tag: &Tag| {
            wide::Wide::detect().is_some_and(|wide| wide.open(key, nonce, associated, bytes, tag))
        },
    ];
    for open in ways {
        for bit in 0..sealed.len() * 8 {
            let mut bytes = sealed;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!open(&key, &nonce, b"associated", &mut bytes, &tag), "bit {bit}");
        }
        for bit in 0..128 {
            let (mut bytes, mut tag) = (sealed, tag);
            tag[bit / 8] ^= 1 << (bit % 8);
            assert!(!open(&key, &nonce, b"associated", &mut bytes, &tag), "bit {bit}");
            assert_eq!(bytes, [0; 700]);
        }
        assert!(!open(&key, &nonce, b"associatee", &mut sealed.clone(), &tag));
        assert!(!open(&key, &[5; GCM_NONCE_LEN], b"associated", &mut sealed.clone(), &tag));
    }
}

proptest! {
    /// Whatever keys, nonces and bytes: those of one bit, too.
    #[test]
    fn both_ways_give_the_same(
        key: Key,
        nonce: Nonce,
        associated in prop::collection::vec(any::<u8>(), 0..100),
        plain in prop::collection::vec(any::<u8>(), 0..2000),
        bit in 0..KEY_LEN * 8,
    ) {
        compare(&key, &nonce, &associated, &plain);
        let mut key = [0; KEY_LEN];
        key[bit / 8] = 1 << (bit % 8);
        compare(&key, &nonce, &associated, &plain);
    }
}
