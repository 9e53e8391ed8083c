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
//!
//! Guest memory never holds anything in encrypted form: reads and writes go through memory of our own, in pieces for which a
//! thread keeps buffers. What is written is one copy, taken once, so a guest that changes its buffer meanwhile changes
//! nothing.

use super::layer::Qcow2;
use super::load::read_bytes;
use super::options::OpenOptions;
use crate::addr::HostOffset;
use crate::crypt::cipher::SECTOR_LEN;
use crate::crypt::locked::LockedBytes;
use crate::crypt::luks::{HEADER_LEN, LuksHeader, MasterKey, Unlock};
use crate::crypt::payload::{self, decrypt_into, encrypted_copy, is_whole};
use crate::crypt::{CipherSpec, Passphrase, SectorCipher};
use crate::disk::{Buffer, Disk, Payload};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::try_join_all;
use crate::format::extension::EncryptionHeader;
use crate::format::header::{CryptMethod, Header};
use crate::limits::{IN_FLIGHT_MAX, LUKS_HEADER_BYTES_MAX};
use crate::sync::Exclusive;

/// Bytes of a request that go through one buffer: as many as a buffer has that is kept for the next one.
const PIECE_LEN: u64 = 64 << 10;
/// Bytes of a sector.
const SECTOR: u64 = SECTOR_LEN as u64;

/// How an open image's data is encrypted.
#[derive(Debug)]
pub(super) enum Encryption {
    /// Not at all.
    None,
    /// Nobody has given the key: data is neither read nor written.
    Locked,
    /// As this says.
    Open(Cryptor),
}

/// What encrypts and decrypts an image's data.
#[derive(Debug)]
pub(super) struct Cryptor {
    cipher: SectorCipher,
    /// Sectors are numbered by their place on the disk, and not in the file.
    by_guest: bool,
    /// Held by whoever changes a part of a sector.
    edges: Exclusive,
}

/// Where data lies: in the file, and on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataPlace {
    pub host: HostOffset,
    pub guest: u64,
}

impl Encryption {
    /// Finds out how the data of the image with `header` is encrypted, and opens it with `key`.
    ///
    /// # Errors
    /// The key is missing or wrong, the LUKS header is damaged, or what it asks for is unsupported or beyond a limit.
    pub async fn open<D: Disk>(
        disk: &D,
        header: &Header,
        key: Option<&Passphrase>,
        options: &OpenOptions,
    ) -> Result<Self> {
        match header.crypt_method {
            CryptMethod::None => Ok(Self::None),
            CryptMethod::Aes if !options.legacy_aes => Err(Error::unsupported(
                "Use of AES-CBC encrypted qcow2 images is no longer supported: it is weak by design. \
                 'qcow convert' makes another image of it",
            )),
            CryptMethod::Aes => match key {
                Some(key) => Ok(Self::Open(Cryptor::new(legacy_cipher(key), true))),
                None => locked_or_not(options),
            },
            CryptMethod::Luks => {
                let volume = LuksVolume::of_image(disk, header).await?;
                match key {
                    Some(key) => {
                        let (_, master) = volume.unlock(key).await?;
                        Ok(Self::Open(Cryptor::new(master.cipher(&volume.header), false)))
                    }
                    None => locked_or_not(options),
                }
            }
        }
    }
}

fn locked_or_not(options: &OpenOptions) -> Result<Encryption> {
    match options.without_keys {
        true => Ok(Encryption::Locked),
        false => Err(key_missing()),
    }
}

/// As QEMU puts it.
fn key_missing() -> Error {
    Error::new(ErrorKind::Denied, "Parameter 'encrypt.key-secret' is required for cipher")
}

/// The cipher of the legacy format: the first 16 bytes of the password are the key.
pub(super) fn legacy_cipher(passphrase: &Passphrase) -> SectorCipher {
    let mut key = LockedBytes::zeroed(CipherSpec::LEGACY.key_len());
    passphrase.copy_start(&mut key);
    SectorCipher::new(CipherSpec::LEGACY, &key)
}

/// A LUKS header in a file, and where.
#[derive(Debug)]
pub(super) struct LuksVolume<'d, D> {
    disk: &'d D,
    start: HostOffset,
    pub header: LuksHeader,
}

impl<'d, D: Disk> LuksVolume<'d, D> {
    /// The LUKS header of a qcow2 image.
    ///
    /// # Errors
    /// It is damaged, or asks for what is unsupported or beyond a limit; or the host failed.
    pub async fn of_image(disk: &'d D, header: &Header) -> Result<Self> {
        let place = header.extensions.encryption_header;
        let Some(EncryptionHeader { offset, length }) = place else {
            return Err(Error::corrupt("Missing CRYPTO header for crypt method 2"));
        };
        if length > LUKS_HEADER_BYTES_MAX {
            return Err(Error::limit(format!(
                "a LUKS header of {length} bytes, of at most {LUKS_HEADER_BYTES_MAX}"
            )));
        }
        Self::read(disk, offset, length).await
    }

    /// The LUKS header at `start`, which has at most `length` bytes with its key material.
    pub async fn read(disk: &'d D, start: HostOffset, length: u64) -> Result<Self> {
        let len = length.min(HEADER_LEN as u64);
        let bytes = read_bytes(disk, start, len, "encryption header").await?;
        let header = LuksHeader::parse(&bytes, length.min(LUKS_HEADER_BYTES_MAX))?;
        Ok(Self { disk, start, header })
    }

    /// The slot that `passphrase` opens, and the master key.
    ///
    /// # Errors
    /// It opens none, or the host failed.
    pub async fn unlock(&self, passphrase: &Passphrase) -> Result<(usize, MasterKey)> {
        let found = self.attempt(Unlock::any(&self.header, passphrase)).await?;
        // As QEMU puts it; a damaged header looks no different.
        let wrong = || Error::new(ErrorKind::Denied, "Invalid password, cannot unlock any keyslot");
        found.ok_or_else(wrong)
    }

    /// The slot that opens, and the master key, if any does.
    pub async fn attempt(&self, mut unlock: Unlock<'_>) -> Result<Option<(usize, MasterKey)>> {
        while let Some((slot, wanted)) = unlock.wanted()? {
            let (at, len) = (self.start.plus(wanted.start), wanted.end - wanted.start);
            let material = read_bytes(self.disk, at, len, "encryption header").await?;
            if let Some(key) = unlock.attempt(&material) {
                return Ok(Some((slot, key)));
            }
        }
        Ok(None)
    }
}

impl Cryptor {
    pub fn new(cipher: SectorCipher, by_guest: bool) -> Self {
        Self { cipher, by_guest, edges: Exclusive::default() }
    }

    /// The number of the sector at `place`.
    fn sector(&self, place: DataPlace) -> u64 {
        match self.by_guest {
            true => place.guest / SECTOR,
            false => place.host.get() / SECTOR,
        }
    }
}

/// The pieces of `payload`, which is data at `place`.
fn pieces(place: DataPlace, payload: &Payload) -> impl Iterator<Item = (DataPlace, Payload)> {
    let starts = (0..payload.len()).step_by(PIECE_LEN as usize);
    starts.map(move |at| {
        let place = DataPlace { host: place.host.plus(at), guest: place.guest + at };
        (place, payload.slice(at, PIECE_LEN.min(payload.len() - at)))
    })
}

impl<D: Disk> Qcow2<D> {
    /// Whether its data is encrypted, with a key at hand or without.
    pub(super) fn is_encrypted(&self) -> bool {
        !matches!(self.encryption, Encryption::None)
    }

    /// Fills `into` with the data at `place`.
    pub(super) async fn read_data(&self, place: DataPlace, into: &Payload) -> Result<()> {
        match &self.encryption {
            Encryption::None => self.read_stored(place.host, into).await,
            Encryption::Open(cryptor) if is_whole(place.host.get(), into.len()) => {
                if into.len() <= PIECE_LEN {
                    return self.read_piece(cryptor, place, into).await;
                }
                let reads = pieces(place, into).map(|(place, into)| async move {
                    self.read_piece(cryptor, place, &into).await
                });
                Box::pin(try_join_all(IN_FLIGHT_MAX, reads)).await
            }
            Encryption::Open(_) => {
                let (start, skip, len) = around(place, into.len());
                let whole = Buffer::scratch(len as usize).payload();
                Box::pin(self.read_data(start, &whole)).await?;
                into.copy_from_payload(&whole.slice(skip, into.len()));
                Ok(())
            }
            Encryption::Locked => Err(self.named(key_missing())),
        }
    }

    async fn read_piece(&self, cryptor: &Cryptor, place: DataPlace, into: &Payload) -> Result<()> {
        let mut buffer = Buffer::scratch(into.len() as usize);
        self.read_stored(place.host, &buffer.payload()).await?;
        decrypt_into(&cryptor.cipher, cryptor.sector(place), buffer.make_mut(), into);
        Ok(())
    }

    /// Writes `from` as the data at `place`, which has been judged.
    pub(super) async fn write_judged(&self, place: DataPlace, from: &Payload) -> Result<()> {
        match &self.encryption {
            Encryption::None => self.write_stored(place.host, from).await,
            Encryption::Open(cryptor) if is_whole(place.host.get(), from.len()) => {
                if from.len() <= PIECE_LEN {
                    return self.write_piece(cryptor, place, from).await;
                }
                let writes = pieces(place, from).map(|(place, from)| async move {
                    self.write_piece(cryptor, place, &from).await
                });
                Box::pin(try_join_all(IN_FLIGHT_MAX, writes)).await
            }
            Encryption::Open(cryptor) => Box::pin(self.write_parts(cryptor, place, from)).await,
            Encryption::Locked => Err(self.named(key_missing())),
        }
    }

    async fn write_piece(&self, cryptor: &Cryptor, place: DataPlace, from: &Payload) -> Result<()> {
        let encrypted = encrypted_copy(&cryptor.cipher, cryptor.sector(place), from);
        self.write_stored(place.host, &encrypted).await
    }

    /// Writes data that is not whole sectors: what lies in them beside it is read and written again. Programs do that, guests
    /// never; two that change parts of one sector at the same time both succeed.
    async fn write_parts(&self, cryptor: &Cryptor, place: DataPlace, from: &Payload) -> Result<()> {
        let _alone = cryptor.edges.acquire().await;
        let (start, skip, len) = around(place, from.len());
        let whole = Buffer::scratch(len as usize).payload();
        self.read_data(start, &whole).await?;
        whole.slice(skip, from.len()).copy_from_payload(from);
        self.write_judged(start, &whole).await
    }
}

/// The whole sectors that `len` bytes at `place` touch: where they start, how far in front of `place` that is, and their length.
fn around(place: DataPlace, len: u64) -> (DataPlace, u64, u64) {
    let (skip, len) = payload::around(place.host.get(), len);
    let host = HostOffset::new(place.host.get() - skip);
    (DataPlace { host, guest: place.guest - skip }, skip, len)
}
