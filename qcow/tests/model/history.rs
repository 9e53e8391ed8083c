//! The reference model: for each sector, the writes whose value it may hold.
//!
//! A write that ended before another one began is overwritten by it; writes that overlap in time may win in any order. A
//! read may return any value that was not overwritten before the read began, of any write that began before it ended.

use std::ops::Range;

/// A moment; each event has its own.
type Time = u64;

/// A change under way.
#[derive(Debug)]
pub struct Write {
    start: Time,
    sectors: Range<u64>,
    values: Vec<u64>,
}

/// The moment a read began.
#[derive(Clone, Copy, Debug)]
pub struct ReadStart(Time);

#[derive(Clone, Copy, Debug)]
struct Candidate {
    value: u64,
    start: Time,
    /// When it ended; never, while it is under way.
    end: Time,
    /// Whether the sector surely holds the new value afterwards; a discard may do nothing.
    certain: bool,
}

/// All sectors of a disk.
#[derive(Debug)]
pub struct History {
    now: Time,
    sectors: Vec<Vec<Candidate>>,
}

impl History {
    /// A disk of `count` sectors that hold `value(sector)`.
    pub fn new(count: u64, value: impl Fn(u64) -> u64) -> Self {
        let initial = |s| vec![Candidate { value: value(s), start: 0, end: 0, certain: true }];
        Self { now: 0, sectors: (0..count).map(initial).collect() }
    }

    /// A write of `value(sector)` begins.
    pub fn begin_write(&mut self, sectors: Range<u64>, value: impl Fn(u64) -> u64) -> Write {
        self.begin(sectors, value, true)
    }

    /// A discard begins: the sectors may become zero, or stay.
    pub fn begin_discard(&mut self, sectors: Range<u64>) -> Write {
        self.begin(sectors, |_| 0, false)
    }

    fn begin(&mut self, sectors: Range<u64>, value: impl Fn(u64) -> u64, certain: bool) -> Write {
        let start = self.tick();
        let values: Vec<u64> = sectors.clone().map(value).collect();
        for (sector, &value) in sectors.clone().zip(&values) {
            let candidate = Candidate { value, start, end: Time::MAX, certain };
            self.sectors[sector as usize].push(candidate);
        }
        Write { start, sectors, values }
    }

    /// The write has ended.
    pub fn end_write(&mut self, write: Write) {
        let end = self.tick();
        for (sector, value) in write.sectors.zip(write.values) {
            let candidates = self.sectors[sector as usize].iter_mut();
            let own = candidates.rev().find(|c| c.start == write.start && c.value == value);
            own.expect("a write that has begun").end = end;
        }
    }

    /// A read begins.
    pub fn begin_read(&mut self) -> ReadStart {
        ReadStart(self.tick())
    }

    /// A read that began at `start` has ended with `values` for the sectors from `first` on.
    pub fn check_read(&self, start: ReadStart, first: u64, values: &[u64]) {
        for (sector, &value) in (first..).zip(values) {
            let candidates = &self.sectors[sector as usize];
            let possible =
                candidates.iter().any(|c| c.value == value && !overwritten(candidates, c, start.0));
            assert!(
                possible,
                "sector {sector} reads {value:#x}, but may only hold {candidates:x?}"
            );
        }
    }

    fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }
}

/// Whether a write that began after `candidate` had ended was over before `read` began.
fn overwritten(candidates: &[Candidate], candidate: &Candidate, read: Time) -> bool {
    candidates.iter().any(|c| c.certain && c.start > candidate.end && c.end < read)
}
