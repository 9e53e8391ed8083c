//! What a queue does next.

use std::ops::Range;

use super::content::{Content, Record};
use super::rng::Rng;
use super::{Job, Limit};

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads one block.
    Read,
    /// Writes one block.
    Write,
    /// Discards one block.
    Discard,
    /// Zeroes one block, and lets the disk free it.
    WriteZeroes,
    /// Flushes.
    Flush,
}

/// Shares of the kinds of requests in percent. They add up to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    /// Reads.
    pub read: u8,
    /// Writes.
    pub write: u8,
    /// Discards.
    pub discard: u8,
    /// Write-zeroes with the unmap flag.
    pub write_zeroes: u8,
    /// Flushes.
    pub flush: u8,
}

impl Mix {
    /// Requests of one kind.
    pub fn only(op: Op) -> Self {
        let mut mix = Self::default();
        *match op {
            Op::Read => &mut mix.read,
            Op::Write => &mut mix.write,
            Op::Discard => &mut mix.discard,
            Op::WriteZeroes => &mut mix.write_zeroes,
            Op::Flush => &mut mix.flush,
        } = 100;
        mix
    }

    /// Reads, discards and write-zeroes in these shares, and writes for the rest. `None` if they
    /// exceed 100 percent.
    pub fn with_writes(read: u8, discard: u8, write_zeroes: u8) -> Option<Self> {
        let others = read.checked_add(discard)?.checked_add(write_zeroes)?;
        let write = 100_u8.checked_sub(others)?;
        Some(Self { read, write, discard, write_zeroes, flush: 0 })
    }

    /// Whether any request changes the disk.
    pub fn modifies(&self) -> bool {
        self.write > 0 || self.discard > 0 || self.write_zeroes > 0
    }

    fn draw(&self, rng: &mut Rng) -> Op {
        let shares = [
            (self.read, Op::Read),
            (self.write, Op::Write),
            (self.discard, Op::Discard),
            (self.write_zeroes, Op::WriteZeroes),
        ];
        let mut draw = rng.below(100) as u8;
        for (share, op) in shares {
            if draw < share {
                return op;
            }
            draw -= share;
        }
        Op::Flush
    }
}

/// Order of the blocks. A range is cut into stretches, of one block each unless the [`Job`] says
/// otherwise, and random and sequential access use the first block of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anywhere in the range.
    Random,
    /// One stretch after the other; each queue has a part of the range for itself, and starts it anew when
    /// it comes to the end.
    Sequential,
    /// Each stretch once, in random order, at a random block inside of it; then all over again. Each
    /// queue has a part of the range for itself. What it takes to write only where nothing was
    /// written before.
    Scattered,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A request, and what its block holds if that is recorded.
    Do(Op, u64, Content),
    /// All blocks tried have a request in flight.
    Busy,
    /// Nothing.
    End,
}

/// Supplies a queue with requests.
pub trait Source {
    /// The next request. Its block is claimed in `record`, if there is one.
    fn next(&mut self, record: Option<&Record>) -> Next;

    /// Requests to complete once the run counts, if that ends it.
    fn quota(&self) -> Option<u64>;
}

/// The load that a [`Job`] describes.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    mix: Mix,
    walk: Walk,
    flush_every: u64,
    unflushed: u64,
    quota: Option<u64>,
}

impl Generator {
    /// The load of queue `index` on `blocks`, the range that all queues share.
    pub fn new(job: &Job, index: u16, blocks: &Range<u64>) -> Self {
        let mut rng = Rng::new(job.seed, index.into());
        let walk = Walk::new(job, index, blocks, &mut rng);
        let quota = match job.limit {
            Limit::Time(_) => None,
            Limit::Requests(sum) => {
                let part = part(&(0..sum), index, job.queues);
                Some(part.end - part.start)
            }
        };
        Self { rng, mix: job.mix, walk, flush_every: job.flush_every, unflushed: 0, quota }
    }
}

/// The way through the blocks of one queue.
#[derive(Debug)]
struct Walk {
    /// First block of the range.
    first: u64,
    /// Blocks in each stretch.
    stretch: u64,
    /// Those of this queue, counted from `first`.
    stretches: Range<u64>,
    order: Order,
}

#[derive(Debug)]
enum Order {
    Random,
    /// The next stretch.
    Sequential(u64),
    /// All stretches, and which of them is next.
    Scattered(Box<[u64]>, usize),
}

impl Walk {
    fn new(job: &Job, index: u16, blocks: &Range<u64>, rng: &mut Rng) -> Self {
        let stretch = job.stretch_blocks();
        let all = 0..(blocks.end - blocks.start) / stretch;
        let own = part(&all, index, job.queues);
        let (stretches, order) = match job.access {
            Access::Random => (all, Order::Random),
            Access::Sequential => (own.clone(), Order::Sequential(own.start)),
            Access::Scattered => (own.clone(), Order::Scattered(shuffled(own, rng), 0)),
        };
        Self { first: blocks.start, stretch, stretches, order }
    }

    fn next(&mut self, rng: &mut Rng) -> u64 {
        let (stretch, inside) = match &mut self.order {
            Order::Random => {
                let count = self.stretches.end - self.stretches.start;
                (self.stretches.start + rng.below(count), 0)
            }
            Order::Sequential(next) => {
                let stretch = *next;
                let following = stretch + 1;
                *next =
                    if following < self.stretches.end { following } else { self.stretches.start };
                (stretch, 0)
            }
            Order::Scattered(order, next) => {
                let stretch = order[*next];
                *next = (*next + 1) % order.len();
                (stretch, rng.below(self.stretch))
            }
        };
        self.first + stretch * self.stretch + inside
    }
}

/// The numbers of a range in random order.
fn shuffled(range: Range<u64>, rng: &mut Rng) -> Box<[u64]> {
    let mut numbers: Box<[u64]> = range.collect();
    for last in (1..numbers.len()).rev() {
        let other = rng.below(last as u64 + 1) as usize;
        numbers.swap(last, other);
    }
    numbers
}

/// Draws before a queue waits for a request of its own to complete.
const TRIES: usize = 16;

impl Source for Generator {
    fn next(&mut self, record: Option<&Record>) -> Next {
        if self.flush_every > 0 && self.unflushed >= self.flush_every {
            self.unflushed = 0;
            return Next::Do(Op::Flush, self.walk.first, Content::Unknown);
        }
        let op = self.mix.draw(&mut self.rng);
        if op == Op::Flush {
            return Next::Do(op, self.walk.first, Content::Unknown);
        }
        for _ in 0..TRIES {
            let block = self.walk.next(&mut self.rng);
            let Some(content) = claim(record, block) else { continue };
            self.unflushed += u64::from(op == Op::Write);
            return Next::Do(op, block, content);
        }
        Next::Busy
    }

    fn quota(&self) -> Option<u64> {
        self.quota
    }
}

/// Reads each block whose contents are known, once.
#[derive(Debug)]
pub struct Sweep(Range<u64>);

impl Sweep {
    /// The part of queue `index`.
    pub fn new(job: &Job, index: u16, blocks: &Range<u64>) -> Self {
        Self(part(blocks, index, job.queues))
    }
}

impl Source for Sweep {
    fn next(&mut self, record: Option<&Record>) -> Next {
        for block in self.0.by_ref() {
            match claim(record, block) {
                Some(Content::Unknown) => {
                    record.inspect(|record| record.release(block, Content::Unknown));
                }
                Some(content) => return Next::Do(Op::Read, block, content),
                // Parts do not overlap, and a part has each block once.
                None => return Next::Busy,
            }
        }
        Next::End
    }

    fn quota(&self) -> Option<u64> {
        None
    }
}

fn claim(record: Option<&Record>, block: u64) -> Option<Content> {
    record.map_or(Some(Content::Unknown), |record| record.claim(block))
}

/// Part `index` of `parts` of a range.
fn part(range: &Range<u64>, index: u16, parts: u16) -> Range<u64> {
    let length = u128::from(range.end - range.start);
    let bound = |index: u16| range.start + (length * u128::from(index) / u128::from(parts)) as u64;
    bound(index)..bound(index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_range_without_overlap() {
        for (length, parts) in [(10, 3), (2, 4), (7, 1), (0, 2)] {
            let range = 5..5 + length;
            let mut at = range.start;
            for index in 0..parts {
                let part = part(&range, index, parts);
                assert_eq!(part.start, at);
                at = part.end;
            }
            assert_eq!(at, range.end);
        }
    }

    /// Blocks of 4 KiB in stretches of 64 KiB, on the blocks 32 to 352.
    fn walk(access: Access, index: u16, steps: usize) -> Vec<u64> {
        let stretch = Some(64 << 10);
        let job = Job { access, queues: 2, stretch, ..Job::new("unused".into()) };
        let mut rng = Rng::new(5, 0);
        let mut walk = Walk::new(&job, index, &(32..352), &mut rng);
        (0..steps).map(|_| walk.next(&mut rng)).collect()
    }

    #[test]
    fn scattered_access_uses_each_stretch_of_a_queue_once_at_any_block_of_it() {
        let mut blocks = walk(Access::Scattered, 1, 10);
        let insides: std::collections::BTreeSet<_> = blocks.iter().map(|b| (b - 32) % 16).collect();
        assert!(insides.len() > 3, "{blocks:?}");
        assert!(!blocks.is_sorted(), "{blocks:?}");
        blocks.sort_unstable();
        let stretches: Vec<_> = blocks.iter().map(|b| (b - 32) / 16).collect();
        assert_eq!(stretches, (10..20).collect::<Vec<_>>());
    }

    #[test]
    fn other_access_uses_the_first_block_of_each_stretch() {
        assert_eq!(walk(Access::Sequential, 0, 11)[8..], [32 + 8 * 16, 32 + 9 * 16, 32]);
        let blocks = walk(Access::Random, 0, 1000);
        assert!(blocks.iter().all(|b| (b - 32) % 16 == 0 && (32..352).contains(b)));
        let places: std::collections::BTreeSet<_> = blocks.into_iter().collect();
        assert_eq!(places.len(), 20);
    }

    #[test]
    fn a_mix_has_the_shares_asked_for() {
        let mix = Mix::with_writes(50, 10, 5).unwrap();
        assert_eq!(mix.write, 35);
        let mut rng = Rng::new(3, 0);
        let draws: Vec<_> = (0..10_000).map(|_| mix.draw(&mut rng)).collect();
        let share = |op| draws.iter().filter(|draw| **draw == op).count();
        for (op, percent) in [(Op::Read, 50), (Op::Write, 35), (Op::Discard, 10)] {
            assert!(share(op).abs_diff(percent * 100) < 300, "{op:?}: {}", share(op));
        }
        assert_eq!(share(Op::Flush), 0);
        assert_eq!(Mix::with_writes(60, 30, 11), None);
        assert_eq!(Mix::only(Op::Flush).draw(&mut rng), Op::Flush);
    }
}
