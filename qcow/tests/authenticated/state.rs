//! What an image holds: its disk and its snapshots, sector by sector.

use std::collections::BTreeMap;
use std::ops::Range;

pub const SECTOR: u64 = 512;

/// Sectors of a disk. Each has one number on all of its words, zero for zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    stamps: BTreeMap<u64, u64>,
    /// Sectors that a backing file has.
    below: u64,
}

impl Disk {
    /// An empty disk above a backing file of so many sectors.
    pub fn above(below: u64) -> Self {
        Self { stamps: BTreeMap::new(), below }
    }

    /// What the sector has.
    pub fn get(&self, sector: u64) -> u64 {
        let below = || if sector < self.below { backing_stamp(sector) } else { 0 };
        self.stamps.get(&sector).copied().unwrap_or_else(below)
    }

    /// Gives sectors something else.
    pub fn set(&mut self, sectors: Range<u64>, stamp: impl Fn(u64) -> u64) {
        self.stamps.extend(sectors.map(|sector| (sector, stamp(sector))));
    }

    /// The bytes of sectors.
    pub fn bytes(&self, sectors: Range<u64>) -> Vec<u8> {
        bytes(sectors.map(|sector| self.get(sector)))
    }
}

/// All that an image holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub disk: Disk,
    /// By name.
    pub snapshots: BTreeMap<String, Disk>,
}

/// What the backing file has in a sector.
pub fn backing_stamp(sector: u64) -> u64 {
    0xbac0_0000_0000_0000 | sector
}

/// The bytes of sectors that have these numbers.
pub fn bytes(stamps: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let sector = |stamp: u64| stamp.to_le_bytes().repeat(SECTOR as usize / 8);
    stamps.into_iter().flat_map(sector).collect()
}
