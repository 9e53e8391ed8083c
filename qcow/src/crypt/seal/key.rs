//! The key that an image's parts are sealed with.

use crate::crypt::locked::LockedBytes;

/// Bytes of a key.
pub(in crate::crypt) const KEY_LEN: usize = 32;

/// The key that all parts of an image are sealed with.
#[derive(Debug)]
pub struct DataKey(LockedBytes);

impl DataKey {
    /// A new one, of the kernel's random numbers.
    pub fn random() -> Self {
        Self(LockedBytes::random(KEY_LEN))
    }

    /// What it is.
    pub(in crate::crypt) fn bytes(&self) -> &[u8; KEY_LEN] {
        self.0.first_chunk().expect("a key of that length")
    }
}
