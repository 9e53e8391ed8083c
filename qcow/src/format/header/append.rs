//! Appending a header extension to an image in use: which sectors are written, and in which order.
//!
//! The new record takes the place of the end marker. Everything of it that lies in later sectors is written first, where
//! nobody looks yet, and last the marker's own sector: until then the old extensions are there, from then on the new ones.
//! A backing file name that stands in the way moves before that: it is copied behind its old place, and then the header's
//! first sector is pointed to the copy.

use std::ops::Range;

use super::fixed::Fixed;
use super::parse::{checked_fixed, extension_area};
use crate::addr::HostOffset;
use crate::error::Result;
use crate::format::extension::{encode_last, find_places};
use crate::limits::{HEADER_EXTENSION_COUNT_MAX, SECTOR_BYTES};

/// Where the header says at which byte the backing file name starts.
const BACKING_FILE_OFFSET: Range<usize> = 8..16;
const SECTOR: usize = SECTOR_BYTES as usize;

/// Whole sectors of the header cluster that may be written in any order, and have to be durable before the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderStep {
    /// Where each write goes, and its bytes.
    pub writes: Vec<(HostOffset, Vec<u8>)>,
}

/// The steps, in order; `None` where there is no room for the record.
pub(super) fn plan(cluster0: &[u8], kind: u32, data: &[u8]) -> Result<Option<Vec<HeaderStep>>> {
    let fixed = checked_fixed(cluster0)?;
    let area = extension_area(&fixed, cluster0)?;
    let places = find_places(area)?;
    let start = fixed.v3.header_length as usize;
    let Some(marker) = places.end.map(|end| start + end) else { return Ok(None) };
    if places.count >= HEADER_EXTENSION_COUNT_MAX {
        return Ok(None);
    }
    let record = encode_last(kind, data)?;
    let record_end = marker + record.len();
    let mut plan = Plan { bytes: cluster0.to_vec(), steps: Vec::new() };
    let mut area_end = start + area.len();
    if record_end > area_end {
        match new_name_place(&fixed, record_end, cluster0.len()) {
            Some(place) => plan.move_name(&fixed, place),
            None => return Ok(None),
        }
        area_end = plan.name_offset();
    }
    plan.write_record(marker, &record, area_end);
    Ok(Some(plan.steps))
}

/// Where the backing file name can go so that the area reaches to `area_end` at least; not over its old place.
fn new_name_place(fixed: &Fixed, area_end: usize, cluster_size: usize) -> Option<usize> {
    if fixed.backing_file_offset == 0 {
        return None;
    }
    let name = name_of(fixed);
    let place = area_end.max(name.end).next_multiple_of(8);
    (place + name.len() <= cluster_size).then_some(place)
}

/// Where the name lies: in the header cluster, as has been checked when the image was opened.
fn name_of(fixed: &Fixed) -> Range<usize> {
    let start = fixed.backing_file_offset as usize;
    start..start + fixed.backing_file_size as usize
}

struct Plan {
    /// The header cluster after all steps so far.
    bytes: Vec<u8>,
    steps: Vec<HeaderStep>,
}

impl Plan {
    fn name_offset(&self) -> usize {
        let field = &self.bytes[BACKING_FILE_OFFSET];
        field.iter().fold(0, |offset, &byte| offset << 8 | usize::from(byte))
    }

    fn move_name(&mut self, fixed: &Fixed, place: usize) {
        let mut bytes = self.bytes.clone();
        bytes.copy_within(name_of(fixed), place);
        self.step(&bytes, 0..bytes.len());
        bytes[BACKING_FILE_OFFSET].copy_from_slice(&(place as u64).to_be_bytes());
        self.step(&bytes, 0..SECTOR);
    }

    fn write_record(&mut self, marker: usize, record: &[u8], area_end: usize) {
        let mut bytes = self.bytes.clone();
        bytes[marker..marker + record.len()].copy_from_slice(record);
        // An old name, or whatever lay behind the marker.
        bytes[marker + record.len()..area_end].fill(0);
        let marker_sector = marker / SECTOR * SECTOR;
        self.step(&bytes, marker_sector + SECTOR..bytes.len());
        self.step(&bytes, marker_sector..marker_sector + SECTOR);
    }

    /// Adds a step that makes the sectors in `range` what they are in `bytes`.
    fn step(&mut self, bytes: &[u8], range: Range<usize>) {
        let mut writes = Vec::new();
        for at in range.step_by(SECTOR) {
            let sector = at..at + SECTOR;
            if self.bytes[sector.clone()] != bytes[sector.clone()] {
                writes.push((HostOffset::new(at as u64), bytes[sector.clone()].to_vec()));
                self.bytes[sector.clone()].copy_from_slice(&bytes[sector]);
            }
        }
        if !writes.is_empty() {
            self.steps.push(HeaderStep { writes });
        }
    }
}
