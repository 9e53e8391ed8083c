//! The anti-forensic splitter: a key as many stripes, which only all together give it back. Where a medium has kept an old
//! copy of some of them, the key is gone all the same.

use zeroize::Zeroize;

use crate::crypt::hash::{DIGEST_BYTES_MAX, Hash};
use crate::crypt::locked::LockedBytes;

/// Stripes of every key: QEMU and cryptsetup know no other number.
pub const STRIPES: usize = 4000;

/// Splits `key`; all stripes but the last are random.
pub fn split(hash: Hash, key: &[u8]) -> LockedBytes {
    let mut stripes = LockedBytes::random(key.len() * STRIPES);
    let (random, last) = stripes.split_at_mut(key.len() * (STRIPES - 1));
    fold(hash, random, last);
    xor(last, key);
    stripes
}

/// Puts a key together from its stripes.
pub fn merge(hash: Hash, stripes: &[u8]) -> LockedBytes {
    let len = stripes.len() / STRIPES;
    let mut key = LockedBytes::zeroed(len);
    let (random, last) = stripes.split_at(len * (STRIPES - 1));
    fold(hash, random, &mut key);
    xor(&mut key, last);
    key
}

/// Folds all stripes but the last into `into`.
fn fold(hash: Hash, stripes: &[u8], into: &mut [u8]) {
    into.zeroize();
    for stripe in stripes.chunks_exact(into.len()) {
        xor(into, stripe);
        diffuse(hash, into);
    }
}

/// Lets each bit depend on many: every digest's length of bytes is replaced by its digest.
fn diffuse(hash: Hash, bytes: &mut [u8]) {
    let mut digest = [0; DIGEST_BYTES_MAX];
    for (number, part) in (0_u32..).zip(bytes.chunks_mut(hash.digest_len())) {
        hash.digest(&[&number.to_be_bytes(), part], &mut digest);
        part.copy_from_slice(&digest[..part.len()]);
    }
    digest.zeroize();
}

fn xor(bytes: &mut [u8], with: &[u8]) {
    bytes.iter_mut().zip(with).for_each(|(byte, with)| *byte ^= with);
}
