//! What the disk must hold: the pattern that verified writes carry, and a record of who wrote what.
//!
//! Each 512-byte sector of a verified write names itself: a tag from the seed, its own number, the
//! block's generation, and a filling made of the three. So data that is misplaced, stale, torn or
//! damaged is told apart from the right data.

use std::sync::atomic::{AtomicU32, Ordering};

use super::rng::{Rng, mix};
use crate::config::SECTOR;

/// The disk returned something else than it must hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte offset {offset}: expected {expected}, found {found}")]
pub struct Mismatch {
    /// Offset on the disk of the first wrong sector, in bytes.
    pub offset: u64,
    /// What must stand there.
    pub expected: String,
    /// What stands there.
    pub found: String,
}

/// What is known of a block's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing written by this run: sectors that carry its seed must still be themselves.
    Unknown,
    /// Zeroes.
    Zeroes,
    /// The pattern of this generation.
    Written(u32),
}

const UNKNOWN: u32 = 0;
const ZEROES: u32 = 1;
const FIRST_GENERATION: u32 = 2;
const BUSY: u32 = 1 << 31;

/// What every block of the disk holds, shared by all queues. A block has at most one request in
/// flight, so that each read has exactly one right answer; its neighbours are free to be written
/// at the same time.
#[derive(Debug)]
pub struct Record {
    pattern: Pattern,
    block_size: u64,
    /// Sectors that nobody has written in this run must carry the pattern.
    expect_written: bool,
    /// Counts all writes, so that no two carry the same data.
    generations: AtomicU32,
    cells: Box<[AtomicU32]>,
}

impl Record {
    /// Knows nothing of a disk of `blocks` blocks of `block_size` bytes.
    pub fn new(seed: u64, blocks: u64, block_size: u64, expect_written: bool) -> Self {
        let cells = (0..blocks).map(|_| AtomicU32::new(UNKNOWN)).collect();
        let generations = AtomicU32::new(0);
        Self { pattern: Pattern::new(seed), block_size, expect_written, generations, cells }
    }

    /// Claims `block` for one request, unless another has it.
    pub fn claim(&self, block: u64) -> Option<Content> {
        let old = self.cell(block).fetch_or(BUSY, Ordering::Acquire);
        match old {
            _ if old & BUSY != 0 => None,
            UNKNOWN => Some(Content::Unknown),
            ZEROES => Some(Content::Zeroes),
            generation => Some(Content::Written(generation)),
        }
    }

    /// Gives `block` back and says what it holds now.
    pub fn release(&self, block: u64, content: Content) {
        let cell = match content {
            Content::Unknown => UNKNOWN,
            Content::Zeroes => ZEROES,
            Content::Written(generation) => generation,
        };
        self.cell(block).store(cell, Ordering::Release);
    }

    /// Fills `data`, one block, with the pattern of a generation of its own.
    pub fn write_next(&self, block: u64, data: &mut [u8]) -> Content {
        let count = self.generations.fetch_add(1, Ordering::Relaxed);
        let generation = FIRST_GENERATION + count % (BUSY - FIRST_GENERATION);
        let sectors = data.chunks_exact_mut(SECTOR as usize);
        for (number, sector) in (self.first_sector(block)..).zip(sectors) {
            self.pattern.fill(number, generation, sector);
        }
        Content::Written(generation)
    }

    /// Compares `data`, one block, with what the block must hold.
    pub fn check(&self, block: u64, content: Content, data: &[u8]) -> Result<(), Mismatch> {
        let sectors = data.chunks_exact(SECTOR as usize);
        for (number, sector) in (self.first_sector(block)..).zip(sectors) {
            let found = self.pattern.recognise(sector);
            let right = match content {
                Content::Written(generation) => found == Found::Sector(number, generation),
                Content::Zeroes => found == Found::Zeroes,
                Content::Unknown if self.expect_written => {
                    matches!(found, Found::Sector(n, _) if n == number)
                }
                Content::Unknown => match found {
                    Found::Sector(n, _) => n == number,
                    Found::Damaged => false,
                    Found::Zeroes | Found::Foreign => true,
                },
            };
            if !right {
                return Err(self.mismatch(number, content, &found));
            }
        }
        Ok(())
    }

    fn mismatch(&self, number: u64, content: Content, found: &Found) -> Mismatch {
        let expected = match content {
            Content::Written(generation) => format!("sector {number} of generation {generation}"),
            Content::Zeroes => "zeroes".to_owned(),
            Content::Unknown => format!("sector {number} of an earlier run with the same seed"),
        };
        let found = match found {
            Found::Sector(n, generation) => format!("sector {n} of generation {generation}"),
            Found::Damaged => "a damaged sector of this seed".to_owned(),
            Found::Zeroes => "zeroes".to_owned(),
            Found::Foreign => "data of no such run".to_owned(),
        };
        Mismatch { offset: number * SECTOR, expected, found }
    }

    fn first_sector(&self, block: u64) -> u64 {
        block * (self.block_size / SECTOR)
    }

    fn cell(&self, block: u64) -> &AtomicU32 {
        &self.cells[block as usize]
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A whole sector of the pattern, with its number and generation.
    Sector(u64, u32),
    /// Begins like the pattern and goes on otherwise.
    Damaged,
    Zeroes,
    Foreign,
}

/// The pattern of one seed.
#[derive(Debug)]
struct Pattern {
    tag: u64,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        // An odd tag is never zero.
        Self { tag: mix(seed) | 1 }
    }

    fn fill(&self, number: u64, generation: u32, sector: &mut [u8]) {
        sector[..8].copy_from_slice(&self.tag.to_le_bytes());
        sector[8..16].copy_from_slice(&number.to_le_bytes());
        sector[16..24].copy_from_slice(&u64::from(generation).to_le_bytes());
        Rng::new(self.tag ^ number, generation.into()).fill(&mut sector[24..]);
    }

    fn recognise(&self, sector: &[u8]) -> Found {
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| sector[8 * i + b]));
        if sector.iter().all(|byte| *byte == 0) {
            return Found::Zeroes;
        }
        if word(0) != self.tag {
            return Found::Foreign;
        }
        let (number, generation) = (word(1), word(2) as u32);
        let mut right = [0; SECTOR as usize];
        self.fill(number, generation, &mut right);
        if right == sector { Found::Sector(number, generation) } else { Found::Damaged }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4096;

    fn record() -> Record {
        Record::new(7, 4, BLOCK as u64, false)
    }

    fn written(record: &Record, block: u64) -> (Content, Vec<u8>) {
        let mut data = vec![0; BLOCK];
        let content = record.write_next(block, &mut data);
        (content, data)
    }

    #[test]
    fn a_block_is_right_only_in_its_place_and_generation() {
        let record = record();
        let (_, old) = written(&record, 2);
        let (second, new) = written(&record, 2);
        record.check(2, second, &new).unwrap();
        assert_eq!(record.check(2, second, &old).unwrap_err().offset, 2 * BLOCK as u64);
        assert!(record.check(1, second, &new).is_err(), "misplaced");
        assert!(record.check(1, Content::Unknown, &new).is_err(), "misplaced, nothing known");
        record.check(2, Content::Unknown, &new).unwrap();
    }

    #[test]
    fn a_torn_or_damaged_block_is_found_at_its_first_wrong_sector() {
        let record = record();
        let (_, old) = written(&record, 0);
        let (second, mut new) = written(&record, 0);
        new[1024..].copy_from_slice(&old[1024..]);
        assert_eq!(record.check(0, second, &new).unwrap_err().offset, 1024);
        new[511] ^= 1;
        assert_eq!(record.check(0, Content::Unknown, &new).unwrap_err().offset, 0);
    }

    #[test]
    fn zeroes_are_neither_data_nor_expected_by_chance() {
        let record = record();
        let (content, data) = written(&record, 0);
        assert!(record.check(0, content, &[0; BLOCK]).is_err());
        assert!(record.check(0, Content::Zeroes, &data).is_err());
        record.check(0, Content::Zeroes, &[0; BLOCK]).unwrap();
        record.check(0, Content::Unknown, &[0; BLOCK]).unwrap();
        let strict = Record::new(7, 4, BLOCK as u64, true);
        assert!(strict.check(0, Content::Unknown, &[0; BLOCK]).is_err());
        strict.check(0, Content::Unknown, &data).unwrap();
    }

    #[test]
    fn a_block_has_one_owner() {
        let record = record();
        assert_eq!(record.claim(3), Some(Content::Unknown));
        assert_eq!(record.claim(3), None);
        record.release(3, Content::Written(9));
        assert_eq!(record.claim(3), Some(Content::Written(9)));
    }
}
