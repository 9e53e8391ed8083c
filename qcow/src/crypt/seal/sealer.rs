//! Sealing and opening: what the tree of an authenticated image does with each of its parts.

use std::fmt;

use super::associated::{self, ASSOCIATED_LEN, ImageId, Label};
use super::checksum::crc32c;
use super::key::DataKey;
use super::kind::SealKind;
use super::xaes::Xaes;
use super::{NONCE_LEN, TAG_LEN};
use crate::crypt::fill_random;

/// Nonce and tag: what an entry keeps of sealed bytes.
///
/// With CRC-32C the nonce is zero, and the tag is the checksum in 4 bytes, big-endian, and zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// The nonce.
    pub nonce: [u8; NONCE_LEN],
    /// The tag.
    pub tag: [u8; TAG_LEN],
}

/// Seals and opens the parts of one image.
pub struct Sealer {
    image: ImageId,
    how: How,
}

enum How {
    Crc32c,
    Aes256Gcm(Xaes),
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Sealer");
        shown.field("kind", &self.kind()).field("image", &self.image).finish_non_exhaustive()
    }
}

impl Sealer {
    /// Seals with a checksum.
    pub fn crc32c(image: ImageId) -> Self {
        Self { image, how: How::Crc32c }
    }

    /// Seals with `key`.
    pub fn aes_256_gcm(image: ImageId, key: &DataKey) -> Self {
        Self { image, how: How::Aes256Gcm(Xaes::new(key.bytes())) }
    }

    /// How it seals.
    pub fn kind(&self) -> SealKind {
        match self.how {
            How::Crc32c => SealKind::Crc32c,
            How::Aes256Gcm(_) => SealKind::Aes256Gcm,
        }
    }

    /// The image.
    pub fn image(&self) -> ImageId {
        self.image
    }

    /// Encrypts `bytes` in place if there is a key; what tells that they are those and that part of the image.
    pub fn seal(&self, label: Label, bytes: &mut [u8]) -> Seal {
        let associated = self.associated(label);
        match &self.how {
            How::Crc32c => checksum(&associated, bytes),
            How::Aes256Gcm(xaes) => {
                let mut nonce = [0; NONCE_LEN];
                fill_random(&mut nonce);
                Seal { nonce, tag: xaes.seal(&nonce, &associated, bytes) }
            }
        }
    }

    /// Decrypts `bytes` in place if there is a key. False where they are not what was sealed as that part with this seal:
    /// what `bytes` hold then means nothing, and with a key it is zeros.
    #[must_use]
    pub fn open(&self, label: Label, seal: &Seal, bytes: &mut [u8]) -> bool {
        let associated = self.associated(label);
        match &self.how {
            How::Crc32c => checksum(&associated, bytes) == *seal,
            How::Aes256Gcm(xaes) => xaes.open(&seal.nonce, &associated, bytes, &seal.tag),
        }
    }

    fn associated(&self, label: Label) -> [u8; ASSOCIATED_LEN] {
        associated::encode(self.kind(), self.image, label)
    }
}

/// The seal of `bytes` without a key.
fn checksum(associated: &[u8], bytes: &[u8]) -> Seal {
    let mut tag = [0; TAG_LEN];
    tag[..4].copy_from_slice(&crc32c(&[associated, bytes]).to_be_bytes());
    Seal { nonce: [0; NONCE_LEN], tag }
}
