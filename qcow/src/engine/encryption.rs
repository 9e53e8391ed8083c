//! The encryption of a qcow2 image's data: which data, under which number of a sector, and how it is opened.
//!
//! What the guest has written is encrypted where it lies as it is in a file: in clusters of the image or of its external
//! data file, the VM state of snapshots with it. All else is clear: tables, names, and, in images that others made, compressed
//! clusters, of which this engine writes none into an encrypted image. Zero clusters and what nobody has written have no
//! bytes to decrypt; they read as zeros.
//!
//! With LUKS, the number of a sector is that of its place in the file, so a cluster is never moved or shared by copying its
//! bytes; in the legacy format it is that of its place on the disk. A new place never reads as zeros: what surrounds a first
//! write is written with it, encrypted zeros where there is nothing ([`super::surround`]), and preallocated clusters are zero
//! clusters that have a place.

use super::layer::Qcow2;
use super::options::OpenOptions;
use crate::addr::HostOffset;
use crate::crypt::locked::LockedBytes;
use crate::crypt::{CipherSpec, Passphrase, SectorCipher};
use crate::disk::{Disk, Payload};
use crate::encrypted::{
    Cryptor, DataPlace, Encryption, LuksPlace, LuksVolume, Stored, key_missing,
};
use crate::error::{Error, Result};
use crate::format::extension::EncryptionHeader;
use crate::format::header::{CryptMethod, Header};
use crate::limits::LUKS_HEADER_BYTES_MAX;

/// Finds out how the data of the image with `header` is encrypted, and opens it with `key`.
///
/// # Errors
/// The key is missing or wrong, the LUKS header is damaged, or what it asks for is unsupported or beyond a limit.
pub(super) async fn open_encryption<D: Disk>(
    disk: &D,
    header: &Header,
    key: Option<&Passphrase>,
    options: &OpenOptions,
) -> Result<Encryption> {
    match header.crypt_method {
        CryptMethod::None => Ok(Encryption::None),
        CryptMethod::Aes if !options.legacy_aes => Err(Error::unsupported(
            "Use of AES-CBC encrypted qcow2 images is no longer supported: it is weak by design. \
             'qcow convert' makes another image of it",
        )),
        CryptMethod::Aes => match key {
            Some(key) => Ok(Encryption::Open(Cryptor::by_guest(legacy_cipher(key)))),
            None => locked_or_not(options),
        },
        CryptMethod::Luks => {
            let volume = luks_volume(disk, header).await?;
            match key {
                Some(key) => {
                    let (_, master) = volume.unlock(key).await?;
                    Ok(Encryption::Open(Cryptor::by_host(master.cipher(&volume.header))))
                }
                None => locked_or_not(options),
            }
        }
    }
}

fn locked_or_not(options: &OpenOptions) -> Result<Encryption> {
    match options.without_keys {
        true => Ok(Encryption::Locked),
        false => Err(key_missing("encrypt.key-secret")),
    }
}

/// The cipher of the legacy format: the first 16 bytes of the password are the key.
fn legacy_cipher(passphrase: &Passphrase) -> SectorCipher {
    let mut key = LockedBytes::zeroed(CipherSpec::LEGACY.key_len());
    passphrase.copy_start(&mut key);
    SectorCipher::new(CipherSpec::LEGACY, &key)
}

/// The LUKS header of a qcow2 image.
///
/// # Errors
/// It is damaged, or asks for what is unsupported or beyond a limit; or the host failed.
pub(super) async fn luks_volume<'d, D: Disk>(
    disk: &'d D,
    header: &Header,
) -> Result<LuksVolume<'d, D>> {
    let place = header.extensions.encryption_header;
    let Some(EncryptionHeader { offset, length }) = place else {
        return Err(Error::corrupt("Missing CRYPTO header for crypt method 2"));
    };
    if length > LUKS_HEADER_BYTES_MAX {
        return Err(Error::limit(format!(
            "a LUKS header of {length} bytes, of at most {LUKS_HEADER_BYTES_MAX}"
        )));
    }
    LuksVolume::read(disk, LuksPlace { start: offset, len: length }).await
}

impl<D: Disk> Qcow2<D> {
    /// Whether its data is encrypted, with a key at hand or without.
    pub(super) fn is_encrypted(&self) -> bool {
        !matches!(self.encryption, Encryption::None)
    }

    /// Fills `into` with the data at `place`.
    pub(super) async fn read_data(&self, place: DataPlace, into: &Payload) -> Result<()> {
        self.encryption.read(self, place, into).await.map_err(|e| self.named(e))
    }

    /// Writes `from` as the data at `place`, which has been judged.
    pub(super) async fn write_judged(&self, place: DataPlace, from: &Payload) -> Result<()> {
        self.encryption.write(self, place, from).await.map_err(|e| self.named(e))
    }
}

impl<D: Disk> Stored for Qcow2<D> {
    async fn read_stored(&self, at: HostOffset, into: &Payload) -> Result<()> {
        let read = self.data_disk().read(at, into).await;
        read.map_err(|e| Error::io(format!("read at {at}"), &e).in_file(self.data_path()))
    }

    async fn write_stored(&self, at: HostOffset, from: &Payload) -> Result<()> {
        let written = self.data_disk().write(at, from).await;
        written.map_err(|e| Error::io(format!("write at {at}"), &e).in_file(self.data_path()))
    }
}
