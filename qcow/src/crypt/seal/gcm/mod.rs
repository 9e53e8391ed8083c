//! AES-256-GCM (NIST SP 800-38D) with nonces of 12 bytes, in place, and a key for each message; AES-256 of single blocks.
//!
//! [`wide`] on processors that have the instructions for it, elsewhere [`narrow`]. Both do the same.

use aes::Aes256Enc;
use aes::cipher::{BlockCipherEncrypt, KeyInit};

use super::TAG_LEN;
use super::key::KEY_LEN;
use crate::crypt::cipher::BLOCK_LEN;

mod narrow;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
#[cfg(target_arch = "x86_64")]
mod wide;

/// Bytes of a nonce.
pub(super) const GCM_NONCE_LEN: usize = 12;

type Key = [u8; KEY_LEN];
type Nonce = [u8; GCM_NONCE_LEN];
type Tag = [u8; TAG_LEN];

/// Encrypts `bytes`, of which there are less than 64 GiB; the tag of them and of `associated`.
pub(super) fn seal(key: &Key, nonce: &Nonce, associated: &[u8], bytes: &mut [u8]) -> Tag {
    #[cfg(target_arch = "x86_64")]
    if let Some(wide) = wide::Wide::detect() {
        return wide.seal(key, nonce, associated, bytes);
    }
    narrow::seal(key, nonce, associated, bytes)
}

/// Decrypts `bytes`; false, and `bytes` are wiped, where they or `associated` are not what `tag` is of.
#[must_use]
pub(super) fn open(
    key: &Key,
    nonce: &Nonce,
    associated: &[u8],
    bytes: &mut [u8],
    tag: &Tag,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Some(wide) = wide::Wide::detect() {
        return wide.open(key, nonce, associated, bytes, tag);
    }
    narrow::open(key, nonce, associated, bytes, tag)
}

/// AES-256 with a key.
pub(super) enum BlockCipher {
    #[cfg(target_arch = "x86_64")]
    Wide(wide::WideCipher),
    Narrow(Aes256Enc),
}

impl BlockCipher {
    pub fn new(key: &Key) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = wide::Wide::detect() {
            return Self::Wide(wide::WideCipher::new(wide, key));
        }
        Self::Narrow(Aes256Enc::new(key.into()))
    }

    pub fn encrypt(&self, block: [u8; BLOCK_LEN]) -> [u8; BLOCK_LEN] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Wide(cipher) => cipher.encrypt(block),
            Self::Narrow(cipher) => {
                let mut block = block.into();
                cipher.encrypt_block(&mut block);
                block.0
            }
        }
    }
}
