//! A LUKS header in a file: reading it, and opening it with a passphrase.

use crate::addr::HostOffset;
use crate::crypt::Passphrase;
use crate::crypt::luks::{HEADER_LEN, LuksHeader, MasterKey, Unlock};
use crate::disk::{Buffer, Disk};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::LUKS_HEADER_BYTES_MAX;

/// Where a LUKS header lies in a file, and how many bytes it has at most with its key material.
#[derive(Clone, Copy, Debug)]
pub struct LuksPlace {
    /// Where it starts.
    pub start: HostOffset,
    /// Bytes up to its end, or to the end of the file.
    pub len: u64,
}

/// A LUKS header in a file, and where.
#[derive(Debug)]
pub struct LuksVolume<'d, D> {
    disk: &'d D,
    start: HostOffset,
    /// The header.
    pub header: LuksHeader,
}

impl<'d, D: Disk> LuksVolume<'d, D> {
    /// Reads the LUKS header at `place`.
    ///
    /// # Errors
    /// It is damaged, or asks for what is unsupported or beyond a limit; or the host failed.
    pub async fn read(disk: &'d D, place: LuksPlace) -> Result<Self> {
        let LuksPlace { start, len } = place;
        let bytes = read(disk, start, len.min(HEADER_LEN as u64)).await?;
        let header = LuksHeader::parse(&bytes, len.min(LUKS_HEADER_BYTES_MAX))?;
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
    ///
    /// # Errors
    /// The slots ask for too much work, or the host failed.
    pub async fn attempt(&self, mut unlock: Unlock<'_>) -> Result<Option<(usize, MasterKey)>> {
        while let Some((slot, wanted)) = unlock.wanted()? {
            let (at, len) = (self.start.plus(wanted.start), wanted.end - wanted.start);
            let material = read(self.disk, at, len).await?;
            if let Some(key) = unlock.attempt(&material) {
                return Ok(Some((slot, key)));
            }
        }
        Ok(None)
    }
}

async fn read<D: Disk>(disk: &D, at: HostOffset, len: u64) -> Result<Vec<u8>> {
    let buffer = Buffer::zeroed(len as usize);
    let read = disk.read(at, &buffer.payload()).await;
    read.map_err(|e| Error::io("Could not read encryption header", &e))?;
    Ok(buffer.to_vec())
}
