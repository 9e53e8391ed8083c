//! The reference model: for each sector, the writes whose value it may hold.
//!
//! A write that ended before another one began is overwritten by it; writes that overlap in time may win in any order. A
//! read may return any value that was not overwritten before the read began, of any write that began before it ended.
//! After a power cut a sector may hold any value that was not overwritten before the newest flush began that succeeded.
//!
//! Until a resize has succeeded the disk has its old size or the new one; then it has the new one, a
//! power cut changes nothing about that, and what a disk has behind its end is zeros once it grows again.

use std::ops::Range;

/// A moment; each event has its own.
type Time = u64;

/// A change under way.
#[derive(Debug)]
pub struct Write {
    start: Time,
    sectors: Range<u64>,
}

/// A resize under way.
#[derive(Debug)]
pub struct Resize {
    start: Time,
    size: u64,
}

/// The moment a read or a flush began.
#[derive(Clone, Copy, Debug)]
pub struct Began(Time);

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
#[derive(Clone, Debug)]
pub struct History {
    now: Time,
    /// When the newest flush that succeeded began.
    flushed: Time,
    /// When the newest resize ended; never, while it is under way.
    resized: Time,
    /// How many sectors the disk may have.
    sizes: Vec<u64>,
    /// As many as the largest of these sizes.
    sectors: Vec<Vec<Candidate>>,
}

impl History {
    /// A disk of `count` sectors that hold `value(sector)`.
    pub fn new(count: u64, value: impl Fn(u64) -> u64) -> Self {
        let initial = |s| vec![Candidate { value: value(s), start: 0, end: 0, certain: true }];
        Self {
            now: 0,
            flushed: 0,
            resized: 0,
            sizes: vec![count],
            sectors: (0..count).map(initial).collect(),
        }
    }

    /// When the newest flush that succeeded began; until it changes, what a power cut may leave only becomes more.
    pub fn flushed(&self) -> u64 {
        self.flushed
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
        for sector in sectors.clone() {
            let candidate = Candidate { value: value(sector), start, end: Time::MAX, certain };
            self.sectors[sector as usize].push(candidate);
        }
        Write { start, sectors }
    }

    /// The write has ended; one that failed may have happened in part.
    pub fn end_write(&mut self, write: &Write, success: bool) {
        let end = self.tick();
        for sector in write.sectors.clone() {
            let candidates = self.sectors[sector as usize].iter_mut();
            let own = candidates.rev().find(|c| c.start == write.start);
            let own = own.expect("a write that has begun");
            own.end = end;
            own.certain &= success;
        }
    }

    /// A resize to `size` sectors begins: of a disk that shrinks, what lies behind its new end may become zero, or what
    /// `below` says of a sector.
    pub fn begin_resize(&mut self, size: u64, below: impl Fn(u64) -> Option<u64>) -> Resize {
        let start = self.tick();
        let end = self.sectors.len() as u64;
        for sector in size..end {
            for value in [Some(0), below(sector)].into_iter().flatten() {
                let candidate = Candidate { value, start, end: Time::MAX, certain: false };
                self.sectors[sector as usize].push(candidate);
            }
        }
        self.resized = Time::MAX;
        self.sizes.push(size);
        self.extend(size);
        Resize { start, size }
    }

    /// The resize has ended. One that succeeded is a flush, too.
    pub fn end_resize(&mut self, resize: &Resize, success: bool) {
        let end = self.tick();
        let own = self.sectors.iter_mut().flatten().filter(|c| c.start == resize.start);
        own.for_each(|c| c.end = end);
        self.resized = end;
        if success {
            self.flushed = self.flushed.max(resize.start);
            self.settle_size(resize.size);
        }
    }

    /// The disk has `size` sectors, as everybody can see. What lay behind that is gone.
    pub fn settle_size(&mut self, size: u64) {
        self.check_size(size);
        self.tick();
        self.sizes = vec![size];
        self.sectors.truncate(size as usize);
    }

    /// Sectors that a disk of `size` has and that were not there before read as zeros.
    fn extend(&mut self, size: u64) {
        let now = self.now;
        let zeros = vec![Candidate { value: 0, start: now, end: now, certain: true }];
        let count = self.sectors.len().max(size as usize);
        self.sectors.resize(count, zeros);
    }

    /// Everything under way is cut off: it has happened or not, and will not happen later.
    pub fn cut_off(&mut self) {
        let end = self.tick();
        for candidate in self.sectors.iter_mut().flatten().filter(|c| c.end == Time::MAX) {
            candidate.end = end;
            candidate.certain = false;
        }
        self.resized = self.resized.min(end);
    }

    /// What was written since the newest flush that succeeded may be lost, whatever is flushed from now on.
    pub fn lose_unflushed(&mut self) {
        let flushed = self.flushed;
        self.sectors
            .iter_mut()
            .flatten()
            .filter(|c| c.end >= flushed)
            .for_each(|c| c.certain = false);
    }

    /// A read begins, or a flush.
    pub fn begin_now(&mut self) -> Began {
        Began(self.tick())
    }

    /// A flush that began at `start` has succeeded, on a disk of `size` sectors: as many are there to stay, if nobody
    /// was resizing it meanwhile.
    pub fn end_flush(&mut self, start: Began, size: u64) {
        self.tick();
        self.flushed = self.flushed.max(start.0);
        if self.resized < start.0 {
            self.settle_size(size);
        }
    }

    /// A read that began at `start` has ended with `values` for the sectors from `first` on.
    pub fn check_read(&self, start: Began, first: u64, values: &[u64]) {
        self.check(start.0, first, values);
    }

    /// After a power cut the disk holds `values`.
    pub fn check_survivors(&self, values: &[u64]) {
        self.check_whole(Began(self.flushed), values);
    }

    /// A read of the whole disk that began at `start` has ended with `values`.
    pub fn check_whole(&self, start: Began, values: &[u64]) {
        self.check_size(values.len() as u64);
        self.check(start.0, 0, values);
    }

    fn check_size(&self, size: u64) {
        assert!(self.sizes.contains(&size), "{size} sectors, of {:?}", self.sizes);
    }

    fn check(&self, time: Time, first: u64, values: &[u64]) {
        for (sector, &value) in (first..).zip(values) {
            let candidates = &self.sectors[sector as usize];
            let possible =
                candidates.iter().any(|c| c.value == value && !overwritten(candidates, c, time));
            assert!(
                possible,
                "sector {sector} reads {value:#x}, but at {time} may only hold {candidates:x?}"
            );
        }
    }

    fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }
}

/// Whether a write that began after `candidate` had ended was over before `time`.
fn overwritten(candidates: &[Candidate], candidate: &Candidate, time: Time) -> bool {
    candidates.iter().any(|c| c.certain && c.start > candidate.end && c.end < time)
}
