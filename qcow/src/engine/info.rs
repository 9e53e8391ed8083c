//! What an image says about itself, for people and tools.

use std::path::Path;

use super::encryption::luks_volume;
use super::load::{probe, read_header, read_snapshots};
use super::options::Format;
use super::sealed::describe::SealedInfo;
use super::sealed::is_sealed;
use crate::addr::sector_ceil;
use crate::crypt::Passphrase;
use crate::crypt::luks::LuksHeader;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::foreign::luks::read_luks_header;
use crate::foreign::raw::size_of;
use crate::format::header::{CryptMethod, Header};
use crate::format::snapshot::SnapshotEntry;

/// What an image says about itself. Read from the header and the snapshot table alone: features that the engine does not
/// serve yet are told, too.
#[derive(Debug)]
pub struct ImageInfo {
    /// The format.
    pub format: Format,
    /// Bytes of virtual disk.
    pub virtual_size: u64,
    /// The header, of a qcow2 image.
    pub header: Option<Header>,
    /// The LUKS header, of an image that is encrypted so, unless it asks for what is not supported here.
    pub luks: Option<LuksHeader>,
    /// What an authenticated image says; then there is no other header.
    pub sealed: Option<SealedInfo>,
    /// The internal snapshots, in the order of their table.
    pub snapshots: Vec<SnapshotEntry>,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Bytes that the host stores for the file.
    pub allocated_len: u64,
}

impl ImageInfo {
    /// Reads what the image in `disk` says; `format` is found out where it is not given.
    ///
    /// # Errors
    /// The image is damaged or cannot be read.
    pub async fn read<D: Disk>(disk: &D, path: &Path, format: Option<Format>) -> Result<Self> {
        Self::read_with(disk, path, format, None).await
    }

    /// As [`Self::read`], with a key, which opens what an authenticated image says under it.
    ///
    /// # Errors
    /// As [`Self::read`]; or the key is wrong.
    pub async fn read_with<D: Disk>(
        disk: &D,
        path: &Path,
        format: Option<Format>,
        key: Option<&Passphrase>,
    ) -> Result<Self> {
        Self::read_unnamed(disk, format, key).await.map_err(|e| e.in_file(path))
    }

    async fn read_unnamed<D: Disk>(
        disk: &D,
        format: Option<Format>,
        key: Option<&Passphrase>,
    ) -> Result<Self> {
        let format = match format {
            Some(format) => format,
            None => probe(disk).await?,
        };
        let file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
        let allocated_len = disk.allocated_len().map_err(|e| Error::io("find the size", &e))?;
        let raw_size = sector_ceil(file_len).unwrap_or(file_len);
        let mut info = Self {
            format,
            virtual_size: raw_size,
            header: None,
            luks: None,
            sealed: None,
            snapshots: Vec::new(),
            file_len,
            allocated_len,
        };
        if format == Format::Qcow2 && is_sealed(disk).await? {
            let sealed = SealedInfo::read(disk, key).await?;
            info.virtual_size = sealed.state.as_ref().map_or(sealed.header.size, |s| s.size);
            info.snapshots = sealed.snapshots();
            info.sealed = Some(sealed);
            return Ok(info);
        }
        if format == Format::Qcow2 {
            let header = read_header(disk).await?;
            info.virtual_size = header.virtual_size();
            (info.snapshots, _) = read_snapshots(disk, &header, file_len).await?;
            info.luks = read_luks(disk, &header).await?;
            info.header = Some(header);
        }
        if format == Format::Luks {
            let header = read_luks_header(disk).await?;
            info.virtual_size = size_of(file_len, header.payload_offset())?;
            info.luks = Some(header);
        }
        Ok(info)
    }
}

async fn read_luks<D: Disk>(disk: &D, header: &Header) -> Result<Option<LuksHeader>> {
    if header.crypt_method != CryptMethod::Luks {
        return Ok(None);
    }
    match luks_volume(disk, header).await {
        Ok(volume) => Ok(Some(volume.header)),
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(None),
        Err(e) => Err(e),
    }
}
