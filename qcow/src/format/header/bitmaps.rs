//! Pointing the bitmaps extension of an image in use to another directory, by the write of one sector.

use super::parse::{checked_fixed, extension_area};
use crate::addr::HostOffset;
use crate::error::Result;
use crate::format::extension::{BitmapsExtension, find_places};
use crate::limits::SECTOR_BYTES;

const SECTOR: usize = SECTOR_BYTES as usize;

/// The write; `None` where there is no extension to change, or it lies in two sectors that would both change.
pub(super) fn plan(
    cluster0: &[u8],
    to: &BitmapsExtension,
) -> Result<Option<(HostOffset, Vec<u8>)>> {
    let fixed = checked_fixed(cluster0)?;
    let places = find_places(extension_area(&fixed, cluster0)?)?;
    let Some(place) = places.bitmaps else { return Ok(None) };
    let (start, data) = (fixed.v3.header_length as usize + place, to.encode());
    let mut bytes = cluster0.to_vec();
    let Some(old) = bytes.get_mut(start..start + data.len()) else { return Ok(None) };
    old.copy_from_slice(&data);
    let sectors = [start, start + data.len() - 1].map(|at| at / SECTOR * SECTOR);
    let write = |at: usize| Some((HostOffset::new(at as u64), bytes[at..at + SECTOR].to_vec()));
    let changes = |at: usize| bytes[at..at + SECTOR] != cluster0[at..at + SECTOR];
    Ok(match sectors.map(changes) {
        [true, true] if sectors[0] != sectors[1] => None,
        [_, false] => write(sectors[0]),
        [_, true] => write(sectors[1]),
    })
}
