//! Sealing the parts of an authenticated image: what tells, when a part is read, that it is what was written there.
//!
//! ```text
//! associated   which part of which image it is, as bytes
//!   |
//! sealer       the part's bytes -> its seal, which the entry that names the part keeps; and back
//!   |      \
//! checksum   xaes    CRC-32C | XAES-256-GCM: a key for each message
//!              |
//!             gcm    AES-256-GCM     (wide | narrow: as the processor has it)
//! ```
//!
//! With CRC-32C a part is found out that has changed by accident; who edits the file makes a new checksum. With a key, parts
//! are encrypted as well, and without that key no part can be made, changed, or put in the place of another.
//!
//! **Nonces.** Two messages under one key and nonce would give away what they have in common, and let anybody make more under
//! that nonce. Nonces are therefore 24 random bytes, of which 2^80 can be drawn before two are likely enough to be the same to
//! speak of, and each is drawn from the kernel's generator when it is needed. Nothing is kept in between that a child process
//! or a machine that is put back to a snapshot would draw from a second time; the kernel's own generator starts anew where it
//! is told of such a snapshot (`vmgenid`). Drawing many at once would save a quarter of a microsecond for each, and would be
//! such a state.
//!
//! **Keys in memory.** The image's key lies in locked memory, with all that is computed from it once. The key of one message
//! lies on the stack while the message is sealed or opened, and is wiped there afterwards, with the stack that computing has
//! taken; a child process or a core dump at that moment would have it. What registers hold is not wiped.

mod associated;
pub(super) mod checksum;
mod gcm;
pub(super) mod key;
mod kind;
mod sealer;
#[cfg(test)]
mod tests;
pub(super) mod xaes;

pub use associated::{ImageId, Label};
pub use key::DataKey;
pub use kind::SealKind;
pub use sealer::{Seal, Sealer};

/// Bytes of a nonce.
pub const NONCE_LEN: usize = 24;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;
