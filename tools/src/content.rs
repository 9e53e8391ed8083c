//! Finding the first place where two disks differ, without reading what neither of them stores.

use std::fmt;
use std::path::Path;

use qcow::disk::{Buffer, Payload};
use qcow::engine::MapExtent;
use qcow::exec::join_all;

use crate::image::HostImage;

/// Bytes that are compared at a time.
const CHUNK_LEN: u64 = 2 << 20;
/// Differences are told in whole sectors.
const SECTOR_LEN: u64 = 512;

/// One of two disks, from byte `start` on.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its file, for messages.
    pub path: &'a Path,
    /// The disk.
    pub image: &'a HostImage,
    /// Byte of the disk that is compared first.
    pub start: u64,
}

/// How two disks differ first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// In the sector at this offset.
    Content(u64),
    /// In what is stored at this offset, whatever it reads as.
    Allocation(u64),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(at) => write!(f, "Content mismatch at offset {at}!"),
            Self::Allocation(at) => {
                write!(f, "Strict mode: Offset {at} block status mismatch!")
            }
        }
    }
}

/// Why a comparison ended early.
#[derive(Debug)]
pub enum Error {
    /// A table cannot be read.
    Map(String),
    /// Data cannot be read.
    Read(String),
}

/// Compares `len` bytes of both disks; offsets in the result count from their starts. `advance` hears how many more bytes
/// have been compared.
pub async fn compare(
    sides: [Side<'_>; 2],
    len: u64,
    strict: bool,
    mut advance: impl FnMut(u64),
) -> Result<Option<Difference>, Error> {
    let [a, b] = sides;
    let buffers = [(); 2].map(|()| Buffer::zeroed(CHUNK_LEN as usize).payload());
    let mut at = 0;
    while at < len {
        let (left, right) = (a.map(at, len - at).await?, b.map(at, len - at).await?);
        let both = left.len.min(right.len);
        if strict && a.status(at, &left) != b.status(at, &right) {
            return Ok(Some(Difference::Allocation(at)));
        }
        if left.zero && right.zero {
            advance(both);
            at += both;
            continue;
        }
        let piece = both.min(CHUNK_LEN);
        let [one, two] = buffers.each_ref().map(|buffer| buffer.slice(0, piece));
        let reads = join_all([a.fill(at, &left, &one), b.fill(at, &right, &two)]).await;
        reads.into_iter().collect::<Result<(), Error>>()?;
        if let Some(offset) = first_difference(&one, &two) {
            return Ok(Some(Difference::Content(at + offset)));
        }
        advance(piece);
        at += piece;
    }
    Ok(None)
}

/// Looks for the first sector of `len` bytes that is not zero; its offset counts from the side's start.
pub async fn find_nonzero(
    side: Side<'_>,
    len: u64,
    mut advance: impl FnMut(u64),
) -> Result<Option<u64>, Error> {
    let buffer = Buffer::zeroed(CHUNK_LEN as usize).payload();
    let zeros = Payload::zeros(CHUNK_LEN);
    let mut at = 0;
    while at < len {
        let extent = side.map(at, len - at).await?;
        let piece = if extent.zero { extent.len } else { extent.len.min(CHUNK_LEN) };
        if !extent.zero {
            let bytes = buffer.slice(0, piece);
            side.fill(at, &extent, &bytes).await?;
            if let Some(offset) = first_difference(&bytes, &zeros.slice(0, piece)) {
                return Ok(Some(at + offset));
            }
        }
        advance(piece);
        at += piece;
    }
    Ok(None)
}

impl Side<'_> {
    async fn map(&self, at: u64, len: u64) -> Result<MapExtent, Error> {
        let extent = self.image.map(self.start + at, len).await;
        let at = self.start + at;
        extent.map_err(|e| Error::Map(format!("Sector allocation test failed at offset {at}: {e}")))
    }

    /// What strict mode compares besides content; whether the disk ends there is part of it.
    fn status(&self, at: u64, extent: &MapExtent) -> [bool; 6] {
        let MapExtent { present, zero, data, compressed, offset, len, .. } = extent;
        let is_last = self.start + at + len == self.image.virtual_size();
        [*present, *zero, *data, *compressed, offset.is_some(), is_last]
    }

    async fn fill(&self, at: u64, extent: &MapExtent, into: &Payload) -> Result<(), Error> {
        if extent.zero {
            into.zero(0, into.len());
            return Ok(());
        }
        let at = self.start + at;
        self.image.read(at, into).await.map_err(|e| {
            let file = self.path.display();
            Error::Read(format!("Error while reading offset {at} of {file}: {}", e.message()))
        })
    }
}

/// Offset of the first sector that differs in two payloads of the same length.
fn first_difference(one: &Payload, two: &Payload) -> Option<u64> {
    one.first_difference(two).map(|at| at / SECTOR_LEN * SECTOR_LEN)
}
