//! LUKS, version 1: a header with eight key slots, each of which may have the master key under a passphrase of its own.
//!
//! ```text
//! 0       magic, cipher, hash, digest of the master key, eight descriptions of slots      592 bytes
//! 4096    key material of slot 0, a multiple of 4096 bytes | of slot 1 | ... | of slot 7
//!         payload: where the encrypted disk begins, in a file that is LUKS and nothing else
//! ```
//!
//! Key material is the master key, split into 4000 stripes of which all are needed ([`af`]), and encrypted with a key that
//! PBKDF2 makes of the passphrase. Whether what comes out is the master key, its digest tells.
//!
//! Everything is checked before anything is computed or allocated: a header cannot ask for more memory than
//! [`LUKS_HEADER_BYTES_MAX`](crate::limits::LUKS_HEADER_BYTES_MAX) or more work than
//! [`UNLOCK_WORK_MAX`](crate::limits::UNLOCK_WORK_MAX).

mod af;
mod cost;
mod create;
mod header;
mod material;
mod slots;
#[cfg(test)]
mod tests;
mod unlock;

pub use cost::Cost;
pub use create::{NewLuks, create};
pub use header::{HEADER_LEN, KeySlot, LuksHeader, SLOT_COUNT};
pub use slots::SlotChange;
pub use unlock::{MasterKey, Unlock};
