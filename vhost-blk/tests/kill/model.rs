//! What the disk may hold.

use std::ops::Range;

use benches::session::Session;

use super::SECTORS;
use super::common::SECTOR;
use super::disk::{WINDOW_SECTORS, WINDOWS, place, value_of};

/// What each sector may hold.
pub struct Model {
    sectors: Vec<Sector>,
    pub next_stamp: u64,
}

struct Sector {
    /// What it held at the start, and what each request since has made of it or may have.
    values: Vec<u64>,
    /// The oldest value that a kill may bring back.
    durable: usize,
    /// Whether a request is at it.
    busy: bool,
}

impl Sector {
    fn holding(value: u64) -> Self {
        Self { values: vec![value], durable: 0, busy: false }
    }

    fn current(&self) -> usize {
        self.values.len() - 1 - usize::from(self.busy)
    }
}

impl Model {
    pub fn new(initial: fn(usize) -> u64) -> Self {
        let sectors = (0..SECTORS).map(|index| Sector::holding(initial(index))).collect();
        Self { sectors, next_stamp: 1 }
    }

    pub fn is_busy(&self, range: &Range<usize>) -> bool {
        self.sectors[range.clone()].iter().any(|sector| sector.busy)
    }

    pub fn begin(&mut self, range: &Range<usize>, value: impl Fn(usize) -> u64) {
        for index in range.clone() {
            self.sectors[index].values.push(value(index));
            self.sectors[index].busy = true;
        }
    }

    pub fn end(&mut self, range: &Range<usize>) {
        self.sectors[range.clone()].iter_mut().for_each(|sector| sector.busy = false);
    }

    /// A discard either zeroes a sector or leaves it alone; this is which.
    pub fn end_discard(&mut self, range: &Range<usize>, bytes: &[u8]) {
        for (index, bytes) in range.clone().zip(bytes.chunks(SECTOR)) {
            let (value, sector) = (value_of(bytes), &mut self.sectors[index]);
            let before = sector.values[sector.current()];
            assert!(value == 0 || value == before, "{value:#x} where {before:#x} was discarded");
            sector.values.push(value);
        }
        self.end(range);
    }

    pub fn begin_flush(&self) -> Vec<usize> {
        self.sectors.iter().map(Sector::current).collect()
    }

    pub fn end_flush(&mut self, durable: &[usize]) {
        for (sector, durable) in self.sectors.iter_mut().zip(durable) {
            sector.durable = sector.durable.max(*durable);
        }
    }

    /// Compares the disk with what the last request has made of every sector.
    pub fn check(&self, session: &mut Session) {
        for window in 0..WINDOWS {
            let first = window * WINDOW_SECTORS;
            let bytes = session.queue(0).read(place(first), (WINDOW_SECTORS * SECTOR) as u32);
            for (index, bytes) in (first..).zip(bytes.unwrap().chunks(SECTOR)) {
                let (value, sector) = (value_of(bytes), &self.sectors[index]);
                let last = sector.values[sector.current()];
                assert_eq!(value, last, "sector {index}: {value:#x} of {:#x?}", sector.values);
            }
        }
    }

    /// Compares the disk with what a kill may have left, and goes on from there.
    pub fn check_after_kill(&mut self, session: &mut Session) {
        for window in 0..WINDOWS {
            let first = window * WINDOW_SECTORS;
            let bytes = session.queue(0).read(place(first), (WINDOW_SECTORS * SECTOR) as u32);
            for (index, bytes) in (first..).zip(bytes.unwrap().chunks(SECTOR)) {
                let (value, sector) = (value_of(bytes), &mut self.sectors[index]);
                let allowed = &sector.values[sector.durable..];
                assert!(allowed.contains(&value), "sector {index}: {value:#x}, not {allowed:#x?}");
                *sector = Sector::holding(value);
            }
        }
    }
}
