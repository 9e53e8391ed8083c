//! What an image says about itself, for people and tools.

use std::path::Path;

use super::load::{probe, read_header, read_snapshots};
use super::options::Format;
use crate::addr::sector_ceil;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::header::Header;
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
        Self::read_unnamed(disk, format).await.map_err(|e| e.in_file(path))
    }

    async fn read_unnamed<D: Disk>(disk: &D, format: Option<Format>) -> Result<Self> {
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
            snapshots: Vec::new(),
            file_len,
            allocated_len,
        };
        if format == Format::Qcow2 {
            let header = read_header(disk).await?;
            info.virtual_size = header.virtual_size();
            (info.snapshots, _) = read_snapshots(disk, &header, file_len).await?;
            info.header = Some(header);
        }
        Ok(info)
    }
}
