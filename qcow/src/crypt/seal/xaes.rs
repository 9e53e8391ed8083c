//! XAES-256-GCM (C2SP): AES-256-GCM with nonces of 24 bytes.
//!
//! The first half of the nonce makes a key of its own with two blocks of AES (CMAC in counter mode, NIST SP 800-108r1); the
//! second half is the nonce under that key. Names are the specification's.

use zeroize::Zeroize;

use super::gcm::{self, BlockCipher, GCM_NONCE_LEN};
use super::key::KEY_LEN;
use super::{NONCE_LEN, TAG_LEN};
use crate::crypt::cipher::BLOCK_LEN;
use crate::crypt::locked::{Locked, scrubbing};

/// What is added when a doubling overflows: x^128 = x^7 + x^2 + x + 1.
const OVERFLOW: u128 = 0x87;

/// A key, in locked memory.
pub(in crate::crypt) struct Xaes(Locked<Keyed>);

struct Keyed {
    /// K.
    key: BlockCipher,
    /// K1.
    subkey: u128,
}

impl Xaes {
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        scrubbing(|| Self(Locked::new(Keyed::new(key))))
    }

    /// Encrypts `bytes`; the tag of them and of `associated`. No nonce may be used twice.
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        associated: &[u8],
        bytes: &mut [u8],
    ) -> [u8; TAG_LEN] {
        let (context, nonce) = halves(nonce);
        let mut key = [0; KEY_LEN];
        self.0.derive(context, &mut key);
        let tag = gcm::seal(&key, nonce, associated, bytes);
        key.zeroize();
        tag
    }

    /// Decrypts `bytes`; false, and `bytes` are wiped, where they or `associated` are not what `tag` is of.
    #[must_use]
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        associated: &[u8],
        bytes: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        let (context, nonce) = halves(nonce);
        let mut key = [0; KEY_LEN];
        self.0.derive(context, &mut key);
        let opened = gcm::open(&key, nonce, associated, bytes, tag);
        key.zeroize();
        opened
    }
}

impl Keyed {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        let key = BlockCipher::new(key);
        let l = u128::from_be_bytes(key.encrypt([0; BLOCK_LEN]));
        Self { key, subkey: (l << 1) ^ ((l >> 127) * OVERFLOW) }
    }

    /// The key of one message: Kx.
    fn derive(&self, context: &[u8; GCM_NONCE_LEN], key: &mut [u8; KEY_LEN]) {
        let (blocks, _) = key.as_chunks_mut();
        for (block, counter) in blocks.iter_mut().zip(1..) {
            *block = self.key.encrypt(self.message(counter, context));
        }
    }

    /// M1 or M2, with K1 added.
    fn message(&self, counter: u8, context: &[u8; GCM_NONCE_LEN]) -> [u8; BLOCK_LEN] {
        let mut message = [0; BLOCK_LEN];
        message[..4].copy_from_slice(&[0, counter, b'X', 0]);
        message[4..].copy_from_slice(context);
        (u128::from_be_bytes(message) ^ self.subkey).to_be_bytes()
    }
}

/// What the key is derived with, and the nonce under that key: `N[:12]` and Nx.
fn halves(nonce: &[u8; NONCE_LEN]) -> (&[u8; GCM_NONCE_LEN], &[u8; GCM_NONCE_LEN]) {
    let halves = (nonce.first_chunk(), nonce.last_chunk());
    halves.0.zip(halves.1).expect("two halves")
}
