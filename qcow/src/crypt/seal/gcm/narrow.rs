//! AES-256-GCM of the crate `aes-gcm`: first all of a message through AES, then all of it through GHASH, with the
//! instructions for one block.

use aes::Aes256Enc;
use aes::cipher::KeyInit;
use aes::cipher::array::Array;
use aes::cipher::array::typenum::U12;
use aes_gcm::AesGcm;
use aes_gcm::aead::AeadInOut;

use super::{Key, Nonce, Tag};
use crate::crypt::locked::scrub_stack_of;

/// Bytes of stack that a message takes, and more.
const STACK_BYTES: usize = 8192;

/// Wiped when it is dropped.
type Gcm = AesGcm<Aes256Enc, U12>;

/// As [`super::seal`].
pub fn seal(key: &Key, nonce: &Nonce, associated: &[u8], bytes: &mut [u8]) -> Tag {
    let gcm = Gcm::new(key.into());
    let tag = gcm.encrypt_inout_detached(nonce.into(), associated, bytes.into());
    drop(gcm);
    scrub_stack_of::<STACK_BYTES>();
    tag.expect("less than 64 GiB").into()
}

/// As [`super::open`].
#[must_use]
pub fn open(key: &Key, nonce: &Nonce, associated: &[u8], bytes: &mut [u8], tag: &Tag) -> bool {
    let (gcm, tag) = (Gcm::new(key.into()), &Array(*tag));
    let opened = gcm.decrypt_inout_detached(nonce.into(), associated, (&mut *bytes).into(), tag);
    drop(gcm);
    scrub_stack_of::<STACK_BYTES>();
    if opened.is_err() {
        bytes.fill(0);
    }
    opened.is_ok()
}
