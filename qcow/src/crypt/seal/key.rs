//! The key that an image's parts are sealed with.

use std::sync::Arc;

use crate::crypt::locked::LockedBytes;

/// Bytes of a key.
pub(in crate::crypt) const KEY_LEN: usize = 32;

/// The key that all parts of an image are sealed with.
#[derive(Debug)]
pub struct DataKey(Arc<LockedBytes>);

impl DataKey {
    /// A new one, of the kernel's random numbers.
    pub fn random() -> Self {
        Self(Arc::new(LockedBytes::random(KEY_LEN)))
    }

    /// The one that is `bytes`, of which there are as many as a key has.
    pub(in crate::crypt) fn from_bytes(bytes: Arc<LockedBytes>) -> Self {
        assert_eq!(bytes.len(), KEY_LEN, "a key's length");
        Self(bytes)
    }

    /// What it is.
    pub(in crate::crypt) fn bytes(&self) -> &[u8; KEY_LEN] {
        self.0.first_chunk().expect("a key of that length")
    }

    /// The same bytes, for who remembers them.
    pub(in crate::crypt) fn share(&self) -> Arc<LockedBytes> {
        Arc::clone(&self.0)
    }
}
