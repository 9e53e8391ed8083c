//! What a block holds: its own number, a generation, and a checksum, so that a wrong block tells
//! where it came from.

use std::fmt;

/// Bytes in a block; also the alignment `O_DIRECT` asks of the buffer.
pub const BLOCK_LEN: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"qcowveri");
const CHECKSUM_AT: usize = BLOCK_LEN - 4;

/// An aligned buffer of one block.
#[derive(Debug)]
#[repr(align(4096))]
pub struct Block(pub [u8; BLOCK_LEN]);

impl Block {
    /// A block of zeroes.
    pub fn zeroed() -> Box<Self> {
        Box::new(Self([0; BLOCK_LEN]))
    }

    fn word(&self, index: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.0[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    }

    fn checksum_holds(&self) -> bool {
        let (body, checksum) = self.0.split_at(CHECKSUM_AT);
        checksum == crc32c::crc32c(body).to_le_bytes()
    }
}

/// The identity of a block's content. Generation 0 is a block never written: all zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Tells runs on one device apart.
    pub seed: u64,
    /// Block number, counted from the start of the device.
    pub block: u64,
    /// How many times the block has been written.
    pub generation: u64,
}

impl Stamp {
    /// Fills `block` with the content that belongs to this stamp.
    pub fn fill(self, block: &mut Block) {
        if self.generation == 0 {
            block.0.fill(0);
            return;
        }
        let mut noise = Noise(self.seed ^ self.block.rotate_left(32) ^ self.generation);
        for word in block.0.chunks_exact_mut(8) {
            word.copy_from_slice(&noise.next().to_le_bytes());
        }
        let header = [MAGIC, self.seed, self.block, self.generation];
        for (word, value) in block.0.chunks_exact_mut(8).zip(header) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&block.0[..CHECKSUM_AT]);
        block.0[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Compares `found` with the content that belongs to this stamp.
    ///
    /// # Errors
    /// Says what the block holds instead.
    pub fn check(self, found: &Block, scratch: &mut Block) -> Result<(), Mismatch> {
        self.fill(scratch);
        if found.0 == scratch.0 {
            return Ok(());
        }
        let first = found.0.iter().zip(&scratch.0).position(|(a, b)| a != b);
        Err(Mismatch { expected: self, found: Content::of(found), first: first.unwrap_or(0) })
    }
}

/// A block that does not hold what was written last.
#[derive(Debug)]
pub struct Mismatch {
    expected: Stamp,
    found: Content,
    first: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stamp { seed, block, generation } = self.expected;
        let offset = block * BLOCK_LEN as u64;
        write!(f, "block {block} (offset {offset}): expected generation {generation}, found ")?;
        match self.found {
            Content::Zeroes => write!(f, "zeroes"),
            Content::Whole(stamp) if stamp.seed == seed => {
                write!(f, "generation {} of block {}", stamp.generation, stamp.block)
            }
            Content::Whole(stamp) => write!(f, "a block of another run, seed {}", stamp.seed),
            Content::Broken => write!(f, "torn or foreign data, from byte {}", self.first),
        }
    }
}

impl std::error::Error for Mismatch {}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Zeroes,
    Whole(Stamp),
    Broken,
}

impl Content {
    fn of(block: &Block) -> Self {
        if block.0.iter().all(|&byte| byte == 0) {
            Self::Zeroes
        } else if block.word(0) == MAGIC && block.checksum_holds() {
            let (seed, number, generation) = (block.word(1), block.word(2), block.word(3));
            Self::Whole(Stamp { seed, block: number, generation })
        } else {
            Self::Broken
        }
    }
}

/// SplitMix64: a stream of numbers that a seed repeats.
#[derive(Debug)]
pub struct Noise(pub u64);

impl Noise {
    /// The next number of the stream.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { seed: 7, block: 9, generation: 3 };

    fn filled(stamp: Stamp) -> Box<Block> {
        let mut block = Block::zeroed();
        stamp.fill(&mut block);
        block
    }

    fn complaint(found: &Block) -> String {
        STAMP.check(found, &mut Block::zeroed()).unwrap_err().to_string()
    }

    #[test]
    fn the_own_content_is_accepted() {
        STAMP.check(&filled(STAMP), &mut Block::zeroed()).unwrap();
    }

    #[test]
    fn a_wrong_block_is_named() {
        let stale = filled(Stamp { generation: 2, ..STAMP });
        assert!(complaint(&stale).ends_with("found generation 2 of block 9"));
        let misplaced = filled(Stamp { block: 4, ..STAMP });
        assert!(complaint(&misplaced).ends_with("found generation 3 of block 4"));
        let older_run = filled(Stamp { seed: 6, ..STAMP });
        assert!(complaint(&older_run).ends_with("another run, seed 6"));
        assert!(complaint(&Block::zeroed()).ends_with("found zeroes"));
    }

    #[test]
    fn a_torn_block_is_named_with_its_first_wrong_byte() {
        let mut torn = filled(STAMP);
        torn.0[2048] ^= 1;
        assert!(complaint(&torn).ends_with("torn or foreign data, from byte 2048"));
    }
}
