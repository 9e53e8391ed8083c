//! Which blocks of the file are in use, and which one is taken next.
//!
//! After a crash nobody knows which blocks are in use, as no map of them was written. Until that has been found out (see
//! `engine::sealed::sweep`) everything in front of the end of the file counts as used, and new blocks are taken behind it.

use super::BlockRun;
use super::blocks::Blocks;
use crate::addr::HostBlock;
use crate::format::sealed::{BLOCKS_MAX, FIRST_BLOCK};
use crate::seeded_bugs::Bug;

/// The blocks of the file.
#[derive(Debug)]
pub struct Space {
    used: Blocks,
    /// No block from here on has ever been used.
    end: HostBlock,
    /// Where the search goes on.
    next: HostBlock,
    /// Whether `used` says what is in use, and not just that all is.
    is_known: bool,
    /// No room in front of the end for this many blocks in a row or more, as of the last search.
    no_room_for: u64,
    /// What has been taken since somebody began to look, while he does.
    taken: Option<Blocks>,
}

impl Space {
    /// Of a file of which these blocks are in use.
    pub fn known(used: Blocks) -> Self {
        let end = used.end().max(FIRST_BLOCK);
        Self { used, end, next: FIRST_BLOCK, is_known: true, no_room_for: u64::MAX, taken: None }
    }

    /// Of a file of which nobody knows what is used below `end`.
    pub fn unknown(end: HostBlock) -> Self {
        let mut used = Blocks::default();
        let count = end.get().max(FIRST_BLOCK.get()) - FIRST_BLOCK.get();
        used.add(BlockRun { first: FIRST_BLOCK, count });
        Self { is_known: false, ..Self::known(used) }
    }

    /// Whether it is known what is in use.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// No block from here on has ever been used.
    pub fn end(&self) -> HostBlock {
        self.end
    }

    /// The blocks in use.
    pub fn used(&self) -> &Blocks {
        &self.used
    }

    /// Takes up to `count` times `unit` blocks in a row, and at least one `unit` of them. `None` where no file is that large.
    pub fn take(&mut self, unit: u64, count: u64) -> Option<BlockRun> {
        let found = match self.is_known && unit < self.no_room_for {
            true => self.search(unit, count),
            false => None,
        };
        let run = found.unwrap_or(BlockRun { first: self.end, count: unit * count });
        if run.end().get() > BLOCKS_MAX {
            return None;
        }
        let is_new = self.used.insert(run);
        assert!(is_new, "blocks {run:?} are taken that are in use");
        if let Some(taken) = &mut self.taken {
            taken.add(run);
        }
        self.end = self.end.max(run.end());
        self.next = run.end();
        Some(run)
    }

    /// Room in front of the end.
    fn search(&mut self, unit: u64, count: u64) -> Option<BlockRun> {
        let start = self.next;
        for (from, until) in [(start, self.end), (FIRST_BLOCK, start.min(self.end))] {
            let mut at = from;
            while let Some(free) = self.used.next_run(at, until, false) {
                if free.count >= unit {
                    let units = (free.count / unit).min(count);
                    return Some(BlockRun { count: units * unit, ..free });
                }
                at = free.end();
            }
        }
        self.no_room_for = unit;
        None
    }

    /// Makes blocks free; false where one of them is not in use, which a sound image never asks for.
    #[must_use]
    pub fn free(&mut self, run: BlockRun) -> bool {
        self.no_room_for = u64::MAX;
        self.used.remove(run)
    }

    /// Notes from now on which blocks are taken.
    pub fn begin_noting(&mut self) {
        self.taken = Some(Blocks::default());
    }

    /// Ends that.
    pub fn end_noting(&mut self) -> Blocks {
        self.taken.take().unwrap_or_default()
    }

    /// Says that of all blocks in front of `until` only those of `in_use`, and those noted, are in use; how many that makes
    /// free.
    pub fn learn(&mut self, until: HostBlock, mut in_use: Blocks) -> u64 {
        let taken = self.end_noting();
        if !Bug::SweepForgetsNew.is_seeded() {
            in_use.add_all(&taken);
        }
        let freed = self.used.retain(&in_use, until);
        self.is_known = true;
        self.no_room_for = u64::MAX;
        freed
    }

    /// Forgets what lies behind the last block in use: the file may end there.
    pub fn cut(&mut self) -> HostBlock {
        if self.is_known {
            self.end = self.used.end().max(FIRST_BLOCK);
            self.next = self.next.min(self.end);
        }
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> BlockRun {
        BlockRun { first: HostBlock::new(first), count }
    }

    #[test]
    fn room_is_found_in_front_of_the_end_before_the_file_grows() {
        let mut space = Space::known(Blocks::default());
        assert_eq!(space.take(4, 4), Some(run(8, 16)));
        assert_eq!(space.take(1, 1), Some(run(24, 1)));
        assert!(space.free(run(12, 8)));
        assert_eq!(space.take(4, 1), Some(run(12, 4)));
        assert_eq!(space.take(4, 9), Some(run(16, 4)), "less than asked for");
        assert_eq!(space.take(4, 2), Some(run(25, 8)));
        assert!(!space.free(run(12, 100)) && !space.free(run(1000, 1)));
    }

    #[test]
    fn where_nothing_is_known_nothing_is_used_again() {
        let mut space = Space::unknown(HostBlock::new(100));
        assert!(space.free(run(50, 10)));
        assert_eq!(space.take(4, 1), Some(run(100, 4)));
        space.begin_noting();
        assert_eq!(space.take(1, 1), Some(run(104, 1)));
        let mut in_use = Blocks::default();
        in_use.add(run(10, 2));
        in_use.add(run(100, 4));
        let freed = space.learn(HostBlock::new(105), in_use);
        assert_eq!(freed, (100 - 8 - 10) - 2);
        assert_eq!(space.used().count(), 7);
        assert_eq!(space.take(2, 1), Some(run(8, 2)));
        assert_eq!(space.cut(), HostBlock::new(105));
    }
}
