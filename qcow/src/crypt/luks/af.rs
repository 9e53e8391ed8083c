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
    merge_of(hash, stripes, STRIPES)
}

/// As [`merge`], of `count` stripes.
fn merge_of(hash: Hash, stripes: &[u8], count: usize) -> LockedBytes {
    let len = stripes.len() / count;
    let mut key = LockedBytes::zeroed(len);
    let (random, last) = stripes.split_at(len * (count - 1));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A key, and five stripes of it with SHA-256: of QEMU's test of its splitter.
    const KEY: &str = "000102030405060708090a0b0c0d0e0fa0a1a2a3a4a5a6a7a8a9aaabacadaeaf";
    const SPLIT: &str = "fdd273b17d99933470defa07c5ac58d230672f1a3543607d7702db623ccb2c33\
                         4808b6f17ca320a0ad2d4cf3cd186f53f9e8e759273ca9546187b3aff6f77e64\
                         86aa897f1f9fdb86f4a216ffa34f8ca159c4233428c4777183d4cd8e891bc7c5\
                         ae4da9cdc972857013685283fcb81172ba3dc64a28fae2867b27ab58e1a4caf6\
                         9ebcfe0c9279b3ec1c5f793b0d1eaa1a770f70194bc880ee277c6e4a91965cf4";

    #[test]
    fn a_published_split_gives_its_key() {
        let bytes = |hex: &str| -> Vec<u8> {
            let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
            digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
        };
        let merged = merge_of(Hash::Sha256, &bytes(SPLIT), 5);
        assert_eq!(*merged, bytes(KEY)[..]);
    }
}
