//! Encrypted data in files: what [`crate::crypt`] computes, with the I/O around it. Both qcow2 images and files that are LUKS
//! and nothing else have it.
//!
//! Guest memory never holds anything in encrypted form: reads and writes go through memory of our own, in pieces for which a
//! thread keeps buffers. What is written is one copy, taken once, so a guest that changes its buffer meanwhile changes
//! nothing.

mod cryptor;
mod volume;

pub use cryptor::{Cryptor, DataPlace, Stored};
pub use volume::{LuksPlace, LuksVolume};

use crate::disk::Payload;
use crate::error::{Error, ErrorKind, Result};

/// How an open image's data is encrypted.
#[derive(Debug)]
pub enum Encryption {
    /// Not at all.
    None,
    /// Nobody has given the key: data is neither read nor written.
    Locked,
    /// As this says.
    Open(Cryptor),
}

impl Encryption {
    /// Fills `into` with the data at `place`.
    ///
    /// # Errors
    /// The key is missing, or the host failed.
    pub async fn read<S: Stored>(
        &self,
        stored: &S,
        place: DataPlace,
        into: &Payload,
    ) -> Result<()> {
        match self {
            Self::None => stored.read_stored(place.host, into).await,
            Self::Open(cryptor) => cryptor.read(stored, place, into).await,
            Self::Locked => Err(locked()),
        }
    }

    /// Writes `from` as the data at `place`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn write<S: Stored>(
        &self,
        stored: &S,
        place: DataPlace,
        from: &Payload,
    ) -> Result<()> {
        match self {
            Self::None => stored.write_stored(place.host, from).await,
            Self::Open(cryptor) => cryptor.write(stored, place, from).await,
            Self::Locked => Err(locked()),
        }
    }
}

fn locked() -> Error {
    Error::new(ErrorKind::Denied, "the image is encrypted and was opened without its key")
}

/// The error that a key is missing, as QEMU puts it; `parameter` names it.
pub fn key_missing(parameter: &str) -> Error {
    Error::new(ErrorKind::Denied, format!("Parameter '{parameter}' is required for cipher"))
}
