//! XAES-256-GCM (C2SP): AES-256-GCM with nonces of 24 bytes.
//!
//! The first half of the nonce makes a key of its own with two blocks of AES (CMAC in counter mode, NIST SP 800-108r1); the
//! second half is the nonce under that key. Names are the specification's.

use aes::Aes256Enc;
use aes::cipher::array::Array;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use zeroize::Zeroize;

use super::gcm::{GCM_NONCE_LEN, Gcm};
use super::key::KEY_LEN;
use super::{NONCE_LEN, TAG_LEN};
use crate::crypt::cipher::{BLOCK_LEN, Block};
use crate::crypt::locked::{Locked, scrub_stack};

/// What is added when a doubling overflows: x^128 = x^7 + x^2 + x + 1.
const OVERFLOW: u128 = 0x87;

/// A key, in locked memory.
pub(in crate::crypt) struct Xaes(Locked<Keyed>);

struct Keyed {
    /// K.
    key: Aes256Enc,
    /// K1.
    subkey: u128,
}

impl Xaes {
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        let xaes = Self(Locked::new(Keyed::new(key)));
        scrub_stack();
        xaes
    }

    /// Encrypts `bytes`; the tag of them and of `associated`. No nonce may be used twice.
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        associated: &[u8],
        bytes: &mut [u8],
    ) -> [u8; TAG_LEN] {
        let (gcm, nonce) = self.0.derive(nonce);
        gcm.seal(nonce, associated, bytes)
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
        let (gcm, nonce) = self.0.derive(nonce);
        gcm.open(nonce, associated, bytes, tag)
    }
}

impl Keyed {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        let key = Aes256Enc::new(key.into());
        let mut l = Block::default();
        key.encrypt_block(&mut l);
        let l = u128::from_be_bytes(l.0);
        Self { key, subkey: (l << 1) ^ ((l >> 127) * OVERFLOW) }
    }

    /// The key and the nonce of one message: Kx and Nx.
    fn derive<'a>(&self, nonce: &'a [u8; NONCE_LEN]) -> (Gcm, &'a [u8; GCM_NONCE_LEN]) {
        let (context, nonce) = nonce.split_first_chunk::<GCM_NONCE_LEN>().expect("two halves");
        let nonce = nonce.first_chunk().expect("two halves");
        let mut blocks = [self.message(1, context), self.message(2, context)];
        self.key.encrypt_blocks(&mut blocks);
        let mut derived = [0; KEY_LEN];
        derived[..BLOCK_LEN].copy_from_slice(&blocks[0]);
        derived[BLOCK_LEN..].copy_from_slice(&blocks[1]);
        let gcm = Gcm::new(&derived);
        blocks.iter_mut().for_each(|block| block.0.zeroize());
        derived.zeroize();
        (gcm, nonce)
    }

    /// M1 or M2, with K1 added.
    fn message(&self, counter: u8, context: &[u8; GCM_NONCE_LEN]) -> Block {
        let mut message = [0; BLOCK_LEN];
        message[..4].copy_from_slice(&[0, counter, b'X', 0]);
        message[4..].copy_from_slice(context);
        Array((u128::from_be_bytes(message) ^ self.subkey).to_be_bytes())
    }
}
