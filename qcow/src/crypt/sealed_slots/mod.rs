//! Key slots of an authenticated image: the key that its parts are sealed with, under up to eight passphrases.
//!
//! One block of 4096 bytes, a sector for each slot, so that a slot changes by the write of one sector, which no power cut
//! tears. Numbers are big-endian:
//!
//! ```text
//! 0     "qcowslot"
//! 8     version 1         u16
//! 10    1 if active       u16      what follows is zero where it is not
//! 12    memory in KiB     u32      of Argon2id (RFC 9106), as the two that follow
//! 16    passes            u32
//! 20    lanes             u32
//! 24    salt              32
//! 56    nonce             24
//! 80    the data key      32       sealed with XAES-256-GCM
//! 112   tag               16
//! 128   zero
//! 508   CRC-32C of all of this
//! ```
//!
//! Argon2id makes a key of passphrase and salt, and with it the data key is sealed; the associated data is
//! `"qcow sealed slot"`, the image's identity, the slot's number (1 byte), and the slot's first 56 bytes. So no slot works in
//! another's place, in another image, or with other parameters. The checksum tells damage from a passphrase that is wrong;
//! somebody who edits the file makes a new one, and then both look alike.
//!
//! Parameters are checked before anything is allocated or computed ([`limits`](crate::limits)); beyond them a slot counts as
//! damaged. GCM does not bind a message to one key, so that whoever writes a slot can make it open with several passphrases,
//! but with no more than he has blocks to choose: three. Whether a slot of his opens tells him hardly more than a slot for one
//! passphrase does.

mod argon;
mod cost;
mod sector;
mod slots;
#[cfg(test)]
mod tests;

pub use argon::Argon;
pub use cost::SlotCost;
pub use sector::SlotState;
pub use slots::{KeySlots, SLOT_COUNT, SLOTS_LEN};
