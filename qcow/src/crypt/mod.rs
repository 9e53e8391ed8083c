//! Encryption of guest data: passphrases, key slots, and sectors of 512 bytes in and out.
//!
//! ```text
//! secret    a passphrase, read from a file or descriptor
//!   |  hash   PBKDF2
//! luks      header, key slots: passphrase -> master key
//!   |
//! payload   whole requests, a page at a time
//!   |
//! cipher    master key + number of a sector -> that sector's bytes     (xts | cbc, a page at a time)
//! locked    where all of these keep what must not get out
//!
//! sealed_slots   key slots: passphrase -> data key
//!   |
//! seal      the parts of an authenticated image: bytes + which part they are -> a seal, or a refusal
//! ```
//!
//! Nothing here does I/O, but for reading a passphrase; who has the header's bytes asks what else to read. No type that
//! holds key material shows it, whatever is asked of it.
//!
//! What LUKS gives and what it does not: who has the file and not the passphrase learns which parts are in use, and at two
//! points in time which sectors have changed, but no content. Nothing tells him from the owner when he *writes*: a sector
//! that is put back to what it was before reads as it did then, and a changed one as noise. That is integrity, and no
//! cipher of sectors has it; [`seal`] has.

mod cbc;
pub mod cipher;
pub mod hash;
pub mod locked;
pub mod luks;
pub mod payload;
mod processor_time;
pub mod seal;
pub mod sealed_slots;
pub mod secret;
mod xts;

pub use cipher::{CipherSpec, SectorCipher};
pub use hash::Hash;
pub use secret::Passphrase;

/// Fills `bytes` with random ones of the kernel's.
fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel has random numbers");
}
