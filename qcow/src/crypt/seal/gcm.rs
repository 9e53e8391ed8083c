//! AES-256-GCM (NIST SP 800-38D) with nonces of 12 bytes, in place.

use aes::Aes256Enc;
use aes::cipher::KeyInit;
use aes::cipher::array::Array;
use aes::cipher::array::typenum::U12;
use aes_gcm::AesGcm;
use aes_gcm::aead::AeadInOut;

use super::TAG_LEN;
use super::key::KEY_LEN;

/// Bytes of a nonce.
pub(super) const GCM_NONCE_LEN: usize = 12;

/// A key, put in order; wiped when it is dropped.
pub(super) struct Gcm(AesGcm<Aes256Enc, U12>);

impl Gcm {
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(AesGcm::new(key.into()))
    }

    /// Encrypts `bytes`, of which there are less than 64 GiB; the tag of them and of `associated`.
    pub fn seal(
        &self,
        nonce: &[u8; GCM_NONCE_LEN],
        associated: &[u8],
        bytes: &mut [u8],
    ) -> [u8; TAG_LEN] {
        let tag = self.0.encrypt_inout_detached(nonce.into(), associated, bytes.into());
        tag.expect("less than 64 GiB").into()
    }

    /// Decrypts `bytes`; false, and `bytes` are wiped, where they or `associated` are not what `tag` is of.
    #[must_use]
    pub fn open(
        &self,
        nonce: &[u8; GCM_NONCE_LEN],
        associated: &[u8],
        bytes: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        let (nonce, tag) = (nonce.into(), &Array(*tag));
        let opened = self.0.decrypt_inout_detached(nonce, associated, (&mut *bytes).into(), tag);
        if opened.is_err() {
            bytes.fill(0);
        }
        opened.is_ok()
    }
}
