//! Files that are LUKS and nothing else: a header with key slots, and behind it a raw disk, encrypted.
//!
//! The sectors of the disk are numbered from its own start. Every byte of it decrypts to something: what nobody has written,
//! a hole of the file too, reads as noise, so zeros are always written.

use std::path::Path;

use super::raw::{NewPart, Raw};
use crate::addr::HostOffset;
use crate::crypt::Passphrase;
use crate::crypt::luks::{self, LuksHeader, NewLuks};
use crate::disk::{Buffer, Disk, Payload};
use crate::encrypted::{
    Cryptor, DataPlace, Encryption, LuksPlace, LuksVolume, Stored, key_missing,
};
use crate::error::{Error, Result};

/// Zeros that one write carries.
const ZERO_WRITE_LEN: u64 = 1 << 20;

/// An open LUKS file.
#[derive(Debug)]
pub struct Luks<D: Disk> {
    raw: Raw<D>,
    encryption: Encryption,
}

impl<D: Disk> Luks<D> {
    /// Opens the LUKS file in `disk` with the passphrase `key`; without one, if that is allowed, nothing of the disk is read or
    /// written.
    ///
    /// # Errors
    /// The key is missing or wrong, the header is damaged, or what it asks for is unsupported or beyond a limit.
    pub async fn open(
        disk: D,
        path: &Path,
        key: Option<&Passphrase>,
        without_key: bool,
        flushes: bool,
    ) -> Result<Self> {
        let volume = read_volume(&disk).await?;
        let encryption = match key {
            Some(key) => {
                let (_, master) = volume.unlock(key).await?;
                Encryption::Open(Cryptor::by_guest(master.cipher(&volume.header)))
            }
            None if without_key => Encryption::Locked,
            None => return Err(key_missing("key-secret")),
        };
        let start = volume.header.payload_offset();
        let raw = Raw::behind(disk, path, start, flushes)?;
        Ok(Self { raw, encryption })
    }

    /// The disk as it is stored.
    pub fn raw(&self) -> &Raw<D> {
        &self.raw
    }

    /// The header.
    ///
    /// # Errors
    /// As [`read_luks_header`].
    pub(crate) async fn volume(&self) -> Result<LuksVolume<'_, D>> {
        read_volume(self.raw.disk()).await
    }

    /// Writes `bytes`, which are part of the header or of key material, at byte `at` of the file.
    pub(crate) async fn write_header(&self, at: u64, bytes: &[u8]) -> Result<()> {
        write(self.raw.disk(), at, bytes).await
    }

    /// Reads from `at`.
    ///
    /// # Errors
    /// The host failed.
    pub async fn read(&self, at: u64, into: &Payload) -> Result<()> {
        self.encryption.read(&self.raw, place(at), into).await
    }

    /// Writes at `at`.
    ///
    /// # Errors
    /// The host failed.
    pub async fn write(&self, at: u64, from: &Payload) -> Result<()> {
        self.encryption.write(&self.raw, place(at), from).await
    }

    /// Writes zeros.
    ///
    /// # Errors
    /// The host failed.
    pub async fn write_zeroes(&self, at: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let zeros = Payload::zeros(ZERO_WRITE_LEN.min(len - done));
            self.write(at + done, &zeros).await?;
            done += zeros.len();
        }
        Ok(())
    }
}

/// Where the byte `at` of the disk lies, for a cipher to which the disk is all there is.
fn place(at: u64) -> DataPlace {
    DataPlace { host: HostOffset::new(at), guest: at }
}

impl<D: Disk> Stored for Raw<D> {
    async fn read_stored(&self, at: HostOffset, into: &Payload) -> Result<()> {
        self.read(at.get(), into).await
    }

    async fn write_stored(&self, at: HostOffset, from: &Payload) -> Result<()> {
        self.write(at.get(), from).await
    }
}

/// The LUKS header at the start of a file.
///
/// # Errors
/// It is damaged, or asks for what is unsupported or beyond a limit; or the host failed.
pub async fn read_luks_header<D: Disk>(disk: &D) -> Result<LuksHeader> {
    Ok(read_volume(disk).await?.header)
}

async fn read_volume<D: Disk>(disk: &D) -> Result<LuksVolume<'_, D>> {
    let len = disk.len().map_err(|e| Error::io("find the length", &e))?;
    LuksVolume::read(disk, LuksPlace { start: HostOffset::new(0), len }).await
}

/// Makes `disk`, which is empty, a LUKS file with a disk of `size` bytes, which reads as noise.
///
/// # Errors
/// Programs could not open such a header, or the host failed.
pub async fn create<D: Disk>(
    disk: &D,
    new: &NewLuks,
    passphrase: &Passphrase,
    size: u64,
    space: NewPart,
) -> Result<()> {
    new.check()?;
    let too_long = || Error::limit("the file would be too long");
    let len = new.payload_offset().checked_add(size).ok_or_else(too_long)?;
    let flushed = |e| Error::io("flush the new file", &e);
    super::raw::set_len(disk, 0, len, space).await?;
    let (change, _) = luks::create(new, passphrase);
    write(disk, change.material_at, &change.material).await?;
    disk.sync().await.map_err(flushed)?;
    // Last: until then nobody can take it for a whole one.
    write(disk, 0, &change.header.encode()).await?;
    disk.sync().await.map_err(flushed)
}

async fn write<D: Disk>(disk: &D, at: u64, bytes: &[u8]) -> Result<()> {
    let written = disk.write(HostOffset::new(at), &Buffer::from_bytes(bytes).payload()).await;
    written.map_err(|e| Error::io("Could not write encryption header", &e))
}
