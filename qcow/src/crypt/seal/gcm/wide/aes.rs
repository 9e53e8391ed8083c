//! AES-256: round keys, single blocks, and counter mode, a stride at a time.

use std::arch::x86_64::*;

use super::vectors::*;
use crate::crypt::seal::gcm::{Key, Nonce};

/// Round keys of AES-256.
const ROUND_KEYS: usize = 15;

/// A key, expanded.
pub struct Rounds(pub [u128; ROUND_KEYS]);

impl Rounds {
    pub const EMPTY: Self = Self([0; ROUND_KEYS]);

    /// AES's key schedule (FIPS 197, section 5.2).
    #[inline]
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    pub fn expand(&mut self, key: &Key) {
        let (halves, _) = key.as_chunks();
        let mut older = vector(u128::from_le_bytes(halves[0]));
        let mut newer = vector(u128::from_le_bytes(halves[1]));
        (self.0[0], self.0[1]) = (number(older), number(newer));
        for index in 2..ROUND_KEYS {
            let substituted = _mm_aeskeygenassist_si128::<0>(newer);
            let added = if index % 2 == 0 {
                let rotated = _mm_shuffle_epi32::<0xff>(substituted);
                _mm_xor_si128(rotated, _mm_set1_epi32(1 << (index / 2 - 1)))
            } else {
                _mm_shuffle_epi32::<0xaa>(substituted)
            };
            let sums = _mm_xor_si128(older, _mm_slli_si128::<4>(older));
            let sums = _mm_xor_si128(sums, _mm_slli_si128::<8>(sums));
            (older, newer) = (newer, _mm_xor_si128(sums, added));
            self.0[index] = number(newer);
        }
    }

    /// One block.
    #[inline]
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    pub fn encrypt(&self, block: [u8; BLOCK_LEN]) -> [u8; BLOCK_LEN] {
        let [first, rounds @ .., last] = &self.0;
        let mut state = vector(u128::from_le_bytes(block) ^ first);
        for key in rounds {
            state = _mm_aesenc_si128(state, vector(*key));
        }
        number(_mm_aesenclast_si128(state, vector(*last))).to_le_bytes()
    }
}

/// The key stream of a message, from its first block on.
pub struct Stream<'k> {
    rounds: &'k Rounds,
    /// The next four counter blocks, but for the order of the counters' bytes.
    next: __m512i,
}

impl<'k> Stream<'k> {
    #[inline]
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    pub fn new(rounds: &'k Rounds, nonce: &Nonce) -> Self {
        // The first one encrypts the tag.
        let next = [2u32, 3, 4, 5]
            .map(|counter| u128::from_le_bytes(counter_block(nonce, counter.to_le_bytes())));
        Self { rounds, next: load_numbers(&next) }
    }

    /// Encrypts or decrypts a stride; what is encrypted of it, with the bytes of each block reversed.
    #[inline]
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    pub fn apply<const SEALING: bool>(&mut self, stride: &mut Stride) -> [__m512i; VECTORS] {
        let [first, rounds @ .., last] = &self.rounds.0;
        // Four by name: as an array that is walked, they would not stay in registers.
        let [mut a, mut b, mut c, mut d] = self.counters(broadcast(*first));
        for key in rounds {
            let key = broadcast(*key);
            a = _mm512_aesenc_epi128(a, key);
            b = _mm512_aesenc_epi128(b, key);
            c = _mm512_aesenc_epi128(c, key);
            d = _mm512_aesenc_epi128(d, key);
        }
        let last = broadcast(*last);
        let [p, q, r, s] = stride;
        [
            add::<SEALING>(p, _mm512_aesenclast_epi128(a, last)),
            add::<SEALING>(q, _mm512_aesenclast_epi128(b, last)),
            add::<SEALING>(r, _mm512_aesenclast_epi128(c, last)),
            add::<SEALING>(s, _mm512_aesenclast_epi128(d, last)),
        ]
    }

    /// The counter blocks of the next stride, with `key` added.
    #[inline]
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    fn counters(&mut self, key: __m512i) -> [__m512i; VECTORS] {
        let step = _mm512_set4_epi32(VECTOR_BLOCKS as i32, 0, 0, 0);
        let mut blocks = [key; VECTORS];
        for blocks in &mut blocks {
            *blocks = _mm512_xor_si512(*blocks, with_counters_reversed(self.next));
            self.next = _mm512_add_epi32(self.next, step);
        }
        blocks
    }
}

/// Adds the key stream to `bytes`; what is encrypted of them, with the bytes of each block reversed.
#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
fn add<const SEALING: bool>(bytes: &mut [u8; VECTOR_LEN], stream: __m512i) -> __m512i {
    let before = load(bytes);
    let after = _mm512_xor_si512(before, stream);
    store(bytes, after);
    reversed(if SEALING { after } else { before })
}

/// GCM's counter block.
pub fn counter_block(nonce: &Nonce, counter: [u8; 4]) -> [u8; BLOCK_LEN] {
    let mut block = [0; BLOCK_LEN];
    block[..nonce.len()].copy_from_slice(nonce);
    block[nonce.len()..].copy_from_slice(&counter);
    block
}
