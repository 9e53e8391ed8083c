//! AES-256-GCM with the instructions of AVX-512 that encrypt and multiply four blocks at a time (VAES, VPCLMULQDQ): three to
//! four times as fast as one block at a time.
//!
//! A stride of sixteen blocks goes through AES and then, as it is in registers, into GHASH; the processor overlaps one stride's
//! products with the next one's rounds. No branch and no address depends on a key or on content.
//!
//! Functions name the instructions that they use, and walk arrays with loops instead of closures: iterators name none, and a
//! compiler that leaves them as they are would call a function for each vector.
#![expect(unsafe_code, reason = "the instructions exist on some processors only")]

mod aes;
mod ghash;
mod vectors;

use std::arch::x86_64::{__m128i, _mm_setzero_si128};

use zeroize::Zeroize;

use self::aes::{Rounds, Stream, counter_block};
use self::ghash::Powers;
use self::vectors::{BLOCK_LEN, STRIDE_LEN, VECTOR_LEN, VECTORS, number};
use super::{Key, Nonce, Tag};
use crate::crypt::locked::scrub_stack_of;

/// Bytes of stack that a message takes, and more.
const STACK_BYTES: usize = 4096;

/// Proof that this processor has the instructions.
#[derive(Clone, Copy)]
pub struct Wide(());

impl Wide {
    /// `None` where it has not.
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq");
        found.then_some(Self(()))
    }

    /// As [`super::seal`].
    pub fn seal(self, key: &Key, nonce: &Nonce, associated: &[u8], bytes: &mut [u8]) -> Tag {
        self.apply::<true>(key, nonce, associated, bytes).to_be_bytes()
    }

    /// As [`super::open`].
    #[must_use]
    pub fn open(
        self,
        key: &Key,
        nonce: &Nonce,
        associated: &[u8],
        bytes: &mut [u8],
        tag: &Tag,
    ) -> bool {
        let expected = self.apply::<false>(key, nonce, associated, bytes);
        let opened = expected == u128::from_be_bytes(*tag);
        if !opened {
            bytes.fill(0);
        }
        opened
    }

    /// Encrypts or decrypts `bytes`; the tag of what is encrypted of them, as a number.
    fn apply<const SEALING: bool>(
        self,
        key: &Key,
        nonce: &Nonce,
        associated: &[u8],
        bytes: &mut [u8],
    ) -> u128 {
        let mut keys = Keys { rounds: Rounds::EMPTY, powers: Powers::EMPTY };
        // SAFETY: needed because the instructions do not exist everywhere; `self` exists only where they do.
        let tag = unsafe {
            keys.fill(key);
            keys.apply::<SEALING>(nonce, associated, bytes)
        };
        keys.rounds.0.zeroize();
        keys.powers.0.zeroize();
        scrub_stack_of::<STACK_BYTES>();
        tag
    }
}

/// AES-256 of single blocks.
pub struct WideCipher {
    rounds: Rounds,
}

impl WideCipher {
    pub fn new(_: Wide, key: &Key) -> Self {
        let mut rounds = Rounds::EMPTY;
        // SAFETY: needed because the instructions do not exist everywhere; the first argument exists only where they do.
        unsafe { rounds.expand(key) };
        Self { rounds }
    }

    /// One block.
    pub fn encrypt(&self, block: [u8; BLOCK_LEN]) -> [u8; BLOCK_LEN] {
        // SAFETY: needed as in `new`, without which nobody has such a value.
        unsafe { self.rounds.encrypt(block) }
    }
}

/// All that is computed from the key of a message.
struct Keys {
    rounds: Rounds,
    powers: Powers,
}

impl Keys {
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    fn fill(&mut self, key: &Key) {
        self.rounds.expand(key);
        self.powers.fill(self.rounds.encrypt([0; BLOCK_LEN]));
    }

    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    fn apply<const SEALING: bool>(
        &self,
        nonce: &Nonce,
        associated: &[u8],
        bytes: &mut [u8],
    ) -> u128 {
        let lens = [associated, bytes].map(|bytes| bytes.len() as u128 * 8);
        let mask = self.rounds.encrypt(counter_block(nonce, 1u32.to_be_bytes()));
        let mut stream = Stream::new(&self.rounds, nonce);
        let mut hash = self.powers.hash_bytes(_mm_setzero_si128(), associated);
        let (strides, rest) = bytes.split_at_mut(bytes.len() - bytes.len() % STRIDE_LEN);
        for stride in strides.as_chunks_mut().0.as_chunks_mut().0 {
            hash = self.powers.hash(hash, stream.apply::<SEALING>(stride));
        }
        if !rest.is_empty() {
            hash = self.apply_rest::<SEALING>(stream, hash, rest);
        }
        hash = self.powers.hash_bytes(hash, &(lens[0] << 64 | lens[1]).to_be_bytes());
        number(hash) ^ u128::from_be_bytes(mask)
    }

    /// Encrypts or decrypts what is left of a message, less than a stride; GHASH goes on with it from `hash`.
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    fn apply_rest<const SEALING: bool>(
        &self,
        mut stream: Stream<'_>,
        hash: __m128i,
        rest: &mut [u8],
    ) -> __m128i {
        let mut stride = [[0; VECTOR_LEN]; VECTORS];
        stride.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
        stream.apply::<SEALING>(&mut stride);
        let stride = stride.as_flattened();
        if SEALING {
            rest.copy_from_slice(&stride[..rest.len()]);
            return self.powers.hash_bytes(hash, rest);
        }
        let hash = self.powers.hash_bytes(hash, rest);
        rest.copy_from_slice(&stride[..rest.len()]);
        hash
    }
}
