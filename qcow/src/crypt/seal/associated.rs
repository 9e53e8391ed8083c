//! Associated data: what a seal covers beside the bytes.
//!
//! All of it has a fixed place and length, so that no two labels look alike:
//!
//! ```text
//! 0    "qcow sealed part"
//! 16   the image's identity
//! 32   index                      big-endian, as all of it
//! 40   length
//! 44   level | kind | 0 0
//! ```

use super::kind::SealKind;
use crate::crypt::fill_random;

/// What tells these from all else that could ever be sealed with the same key.
const DOMAIN: [u8; 16] = *b"qcow sealed part";
/// Bytes of associated data.
pub(super) const ASSOCIATED_LEN: usize = 48;

/// The image's random identity: what keeps a part of one image from passing for a part of another with the same key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ImageId(pub [u8; 16]);

impl ImageId {
    /// A new one.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        fill_random(&mut bytes);
        Self(bytes)
    }
}

/// Which part of an image sealed bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Data, or which level of tables.
    pub level: u8,
    /// Which one of its level, from the start of the disk on.
    pub index: u64,
    /// Bytes that it stands for; it may be sealed in fewer.
    pub len: u32,
}

/// The associated data of a part with that label.
pub(super) fn encode(kind: SealKind, image: ImageId, label: Label) -> [u8; ASSOCIATED_LEN] {
    let mut bytes = [0; ASSOCIATED_LEN];
    bytes[..16].copy_from_slice(&DOMAIN);
    bytes[16..32].copy_from_slice(&image.0);
    bytes[32..40].copy_from_slice(&label.index.to_be_bytes());
    bytes[40..44].copy_from_slice(&label.len.to_be_bytes());
    bytes[44] = label.level;
    bytes[45] = kind.to_byte();
    bytes
}
