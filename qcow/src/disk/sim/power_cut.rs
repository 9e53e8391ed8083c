//! The states in which a power cut may leave a file.
//!
//! Since the last completed sync each block may have been written several times; the medium holds, of each block on its
//! own, any one of these or what was there before, whatever the order of the writes. The same goes for the file's length.
//! Blocks that lie behind the old length and were never written may hold junk once the length has grown over them.

use super::content::{BLOCK_BYTES, Block, Content, mix};
use super::random::Random;

/// Blocks of 512 bytes in one of 4 KiB: disks of that kind write these all at once.
const BLOCKS_PER_PAGE: u64 = 8;

/// All states that one power cut may leave.
#[derive(Clone, Debug)]
pub struct PowerCut {
    durable: Content,
    /// What each block in doubt may hold, the durable block first.
    blocks: Vec<(u64, Vec<Block>)>,
    /// Lengths that the file may have, the durable one first.
    lens: Vec<u64>,
}

/// One state among those of a [`PowerCut`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// For each block in doubt, which of its contents it holds.
    blocks: Vec<u8>,
    len: u8,
}

impl PowerCut {
    pub(super) fn new(durable: Content) -> Self {
        let lens = vec![durable.len()];
        Self { durable, blocks: Vec::new(), lens }
    }

    /// `index` may hold `block`, too.
    pub(super) fn add_block(&mut self, index: u64, block: Block) {
        let at = match self.blocks.binary_search_by_key(&index, |&(index, _)| index) {
            Ok(at) => at,
            Err(at) => {
                let mut known = vec![self.durable.block(index)];
                if index * BLOCK_BYTES >= self.durable.len() {
                    known.push(Block::junk());
                }
                self.blocks.insert(at, (index, known));
                at
            }
        };
        let known = &mut self.blocks[at].1;
        if !known.contains(&block) && known.len() < usize::from(u8::MAX) {
            known.push(block);
        }
    }

    /// The file may be `len` bytes long, too.
    pub(super) fn add_len(&mut self, len: u64) {
        if !self.lens.contains(&len) && self.lens.len() < usize::from(u8::MAX) {
            self.lens.push(len);
        }
    }

    /// How many states there are, as far as a number can tell.
    pub fn count(&self) -> u64 {
        let blocks = self.blocks.iter().map(|(_, known)| known.len() as u64);
        blocks.fold(self.lens.len() as u64, u64::saturating_mul)
    }

    /// The state with number `index` below [`Self::count`].
    pub fn outcome(&self, mut index: u64) -> Outcome {
        let mut digit = |base: usize| {
            let digit = index % base as u64;
            index /= base as u64;
            digit as u8
        };
        let len = digit(self.lens.len());
        Outcome { len, blocks: self.blocks.iter().map(|(_, known)| digit(known.len())).collect() }
    }

    /// Some state. Several ways to choose, because a bug may need nearly everything lost, or nearly nothing.
    pub fn sample(&self, random: &mut Random) -> Outcome {
        let way = random.below(7);
        let special = random.below(self.blocks.len().max(1) as u64) as usize;
        let seed = random.draw();
        let mut choose = |at: usize, index: u64, count: usize| -> u8 {
            let last = count as u64 - 1;
            let choice = match way {
                // One block alone is lost, or alone has made it.
                0 if at == special => random.below(count as u64),
                0 => last,
                1 if at == special => 1 + random.below(last.max(1)),
                1 => 0,
                // Whole pages make it or not.
                2 => [0, last][(mix(seed ^ (index / BLOCKS_PER_PAGE)) >> 7) as usize % 2],
                // The file has grown, but not over what was written to it: there is junk.
                3 => [last, 1][usize::from(index * BLOCK_BYTES >= self.durable.len())],
                // What lies low in the file makes it, what lies high does not, and the other way round.
                4 => [last, 0][usize::from(at > special)],
                5 => [0, last][usize::from(at > special)],
                _ => random.below(count as u64),
            };
            choice.min(last) as u8
        };
        let blocks = self.blocks.iter().enumerate();
        let blocks = blocks.map(|(at, (index, known))| choose(at, *index, known.len())).collect();
        let len = if random.below(2) == 0 {
            self.lens.len() as u64 - 1
        } else {
            random.below(self.lens.len() as u64)
        };
        Outcome { blocks, len: len as u8 }
    }

    /// The file in that state.
    pub fn content(&self, outcome: &Outcome) -> Content {
        let mut content = self.durable.clone();
        content.set_len(self.lens[usize::from(outcome.len)]);
        for ((index, known), &choice) in self.blocks.iter().zip(&outcome.blocks) {
            if index * BLOCK_BYTES < content.len() {
                content.set_block(*index, known[usize::from(choice)].clone());
            }
        }
        content
    }

    /// A way to tell states apart quickly, also those of other power cuts of the same file.
    pub fn fingerprints(&self) -> Fingerprints<'_> {
        let digest = |index: u64, block: &Block| match block.digest() {
            0 => 0,
            digest => mix(digest ^ mix(index)),
        };
        let durable = self.durable.blocks().map(|(index, block)| digest(index, &block));
        let base = durable.fold(0, u64::wrapping_add);
        let blocks = self.blocks.iter().map(|(index, known)| {
            let digests: Vec<u64> = known.iter().map(|block| digest(*index, block)).collect();
            let before = digests[0];
            digests.into_iter().map(|digest| digest.wrapping_sub(before)).collect()
        });
        Fingerprints { cut: self, base, blocks: blocks.collect() }
    }
}

/// Fingerprints of the states of one power cut.
#[derive(Debug)]
pub struct Fingerprints<'c> {
    cut: &'c PowerCut,
    base: u64,
    /// What each choice adds to the base.
    blocks: Vec<Vec<u64>>,
}

impl Fingerprints<'_> {
    /// The same for equal states only, but for rare chance.
    pub fn of(&self, outcome: &Outcome) -> u64 {
        let chosen = self.blocks.iter().zip(&outcome.blocks);
        let sum = chosen.map(|(digests, &choice)| digests[usize::from(choice)]);
        let len = self.cut.lens[usize::from(outcome.len)];
        mix(sum.fold(self.base, u64::wrapping_add) ^ mix(len))
    }
}
