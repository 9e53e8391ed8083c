//! Sets of blocks: a bit for each, in chunks that take no memory where all bits are alike.

use super::BlockRun;
use crate::addr::HostBlock;
use crate::error::{Error, Result};
use crate::format::bytes::Reader;

/// Words of a chunk: 32,768 blocks, which are 128 MiB of file.
const CHUNK_WORDS: usize = 512;
const CHUNK_BLOCKS: u64 = CHUNK_WORDS as u64 * 64;

/// A set of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    chunks: Vec<Chunk>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Chunk {
    #[default]
    None,
    All,
    Some(Box<[u64; CHUNK_WORDS]>),
}

impl Chunk {
    fn words(&self) -> Box<[u64; CHUNK_WORDS]> {
        match self {
            Self::None => Box::new([0; CHUNK_WORDS]),
            Self::All => Box::new([u64::MAX; CHUNK_WORDS]),
            Self::Some(words) => words.clone(),
        }
    }

    fn of(words: Box<[u64; CHUNK_WORDS]>) -> Self {
        match words[0] {
            first @ (0 | u64::MAX) if words.iter().all(|word| *word == first) => {
                if first == 0 {
                    Self::None
                } else {
                    Self::All
                }
            }
            _ => Self::Some(words),
        }
    }
}

impl Blocks {
    /// Whether `block` is in the set.
    pub fn contains(&self, block: HostBlock) -> bool {
        let (chunk, bit) = place(block);
        match self.chunks.get(chunk) {
            None | Some(Chunk::None) => false,
            Some(Chunk::All) => true,
            Some(Chunk::Some(words)) => words[bit / 64] >> (bit % 64) & 1 == 1,
        }
    }

    /// Puts all blocks of `run` into the set; false, and nothing is done, where one of them is there already.
    #[must_use]
    pub fn insert(&mut self, run: BlockRun) -> bool {
        self.change(run, true)
    }

    /// Takes all blocks of `run` out of the set; false, and nothing is done, where one of them is not there.
    #[must_use]
    pub fn remove(&mut self, run: BlockRun) -> bool {
        self.change(run, false)
    }

    /// Puts all blocks of `run` into the set, whether they are there already or not.
    pub fn add(&mut self, run: BlockRun) {
        let mut at = run.first.get();
        let end = run.end().get();
        while at < end {
            let (chunk, bit) = place(HostBlock::new(at));
            let count = (CHUNK_BLOCKS - bit as u64).min(end - at);
            if count == CHUNK_BLOCKS {
                self.grow_to(chunk);
                self.chunks[chunk] = Chunk::All;
            } else {
                let part = BlockRun { first: HostBlock::new(at), count };
                pieces(part).for_each(|piece| self.set(piece, true));
            }
            at += count;
        }
    }

    /// Puts all blocks of `other` into the set.
    pub fn add_all(&mut self, other: &Self) {
        for (index, chunk) in other.chunks.iter().enumerate() {
            self.combine(index, chunk, |own, other| own | other);
        }
    }

    /// Takes all blocks below `end` out of the set that are not in `other`; how many.
    pub fn retain(&mut self, other: &Self, end: HostBlock) -> u64 {
        let before = self.count();
        let mut kept = other.clone();
        if let Some(count) = self.end().get().checked_sub(end.get()) {
            kept.add(BlockRun { first: end, count });
        }
        kept.grow_to(self.chunks.len().saturating_sub(1));
        for index in 0..self.chunks.len() {
            self.combine(index, &kept.chunks[index], |own, other| own & other);
        }
        before - self.count()
    }

    fn grow_to(&mut self, chunk: usize) {
        if chunk >= self.chunks.len() {
            self.chunks.resize_with(chunk + 1, Chunk::default);
        }
    }

    fn combine(&mut self, index: usize, other: &Chunk, combine: impl Fn(u64, u64) -> u64) {
        self.grow_to(index);
        let mut words = self.chunks[index].words();
        for (own, other) in words.iter_mut().zip(other.words().iter()) {
            *own = combine(*own, *other);
        }
        self.chunks[index] = Chunk::of(words);
    }

    fn change(&mut self, run: BlockRun, value: bool) -> bool {
        let fits = pieces(run).all(|piece| self.is_all(piece, !value));
        if fits {
            pieces(run).for_each(|piece| self.set(piece, value));
        }
        fits
    }

    /// Whether all bits of a piece of one word are `value`.
    fn is_all(&self, (chunk, word, mask): Piece, value: bool) -> bool {
        let bits = match self.chunks.get(chunk) {
            None | Some(Chunk::None) => 0,
            Some(Chunk::All) => u64::MAX,
            Some(Chunk::Some(words)) => words[word],
        };
        (if value { bits } else { !bits }) & mask == mask
    }

    fn set(&mut self, (index, word, mask): Piece, value: bool) {
        self.grow_to(index);
        let chunk = &mut self.chunks[index];
        match chunk {
            Chunk::None if !value => return,
            Chunk::All if value => return,
            Chunk::None | Chunk::All => *chunk = Chunk::Some(chunk.words()),
            Chunk::Some(_) => {}
        }
        let Chunk::Some(words) = chunk else { unreachable!("it has just been made so") };
        words[word] = if value { words[word] | mask } else { words[word] & !mask };
        let alike = if value { u64::MAX } else { 0 };
        if words[word] == alike && words.iter().all(|word| *word == alike) {
            *chunk = if value { Chunk::All } else { Chunk::None };
        }
    }

    /// Blocks in the set.
    pub fn count(&self) -> u64 {
        let count = |chunk: &Chunk| match chunk {
            Chunk::None => 0,
            Chunk::All => CHUNK_BLOCKS,
            Chunk::Some(words) => words.iter().map(|word| u64::from(word.count_ones())).sum(),
        };
        self.chunks.iter().map(count).sum()
    }

    /// The first run from `from` on, below `end`, of blocks that are in the set or, without `inside`, are not.
    pub fn next_run(&self, from: HostBlock, end: HostBlock, inside: bool) -> Option<BlockRun> {
        let start = self.seek(from.get(), end.get(), inside)?;
        let stop = self.seek(start, end.get(), !inside).unwrap_or(end.get());
        Some(BlockRun { first: HostBlock::new(start), count: stop - start })
    }

    /// The first block from `from` on, below `end`, whose bit is `value`.
    fn seek(&self, from: u64, end: u64, value: bool) -> Option<u64> {
        let mut at = from;
        while at < end {
            let (chunk, bit) = place(HostBlock::new(at));
            let next_chunk = (chunk as u64 + 1) * CHUNK_BLOCKS;
            let words = match self.chunks.get(chunk) {
                None if value => return None,
                Some(Chunk::All) if value => return Some(at),
                None | Some(Chunk::None) if !value => return Some(at),
                Some(Chunk::Some(words)) => words,
                _ => {
                    at = next_chunk;
                    continue;
                }
            };
            let word = if value { words[bit / 64] } else { !words[bit / 64] };
            let rest = word >> (bit % 64);
            if rest != 0 {
                let found = at + u64::from(rest.trailing_zeros());
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// The first block behind the last one of the set.
    pub fn end(&self) -> HostBlock {
        for (index, chunk) in self.chunks.iter().enumerate().rev() {
            let start = index as u64 * CHUNK_BLOCKS;
            let len = match chunk {
                Chunk::None => continue,
                Chunk::All => CHUNK_BLOCKS,
                Chunk::Some(words) => {
                    let Some(last) = words.iter().rposition(|word| *word != 0) else { continue };
                    (last as u64 + 1) * 64 - u64::from(words[last].leading_zeros())
                }
            };
            return HostBlock::new(start + len);
        }
        HostBlock::new(0)
    }

    /// The bytes of the set: for each chunk a byte that says whether none, all or some of it is there, then its words.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let count = self.end().get().div_ceil(CHUNK_BLOCKS) as usize;
        for chunk in &self.chunks[..count] {
            match chunk {
                Chunk::None => out.push(0),
                Chunk::All => out.push(1),
                Chunk::Some(words) => {
                    out.push(2);
                    words.iter().for_each(|word| out.extend_from_slice(&word.to_be_bytes()));
                }
            }
        }
        out
    }

    /// The set in `bytes`, of blocks below `end`.
    ///
    /// # Errors
    /// They are cut short, no set, or a set of other blocks.
    pub fn parse(bytes: &[u8], end: HostBlock) -> Result<Self> {
        let broken = || Error::corrupt("the map of blocks is no map of blocks");
        let mut reader = Reader::new(bytes);
        let mut chunks = Vec::new();
        while reader.remaining() > 0 {
            if chunks.len() as u64 == end.get().div_ceil(CHUNK_BLOCKS) {
                return Err(broken());
            }
            chunks.push(match reader.u8().ok_or_else(broken)? {
                0 => Chunk::None,
                1 => Chunk::All,
                2 => {
                    let mut words = Box::new([0; CHUNK_WORDS]);
                    for word in words.iter_mut() {
                        *word = reader.u64().ok_or_else(broken)?;
                    }
                    Chunk::Some(words)
                }
                _ => return Err(broken()),
            });
        }
        let found = Self { chunks };
        if found.end() > end { Err(broken()) } else { Ok(found) }
    }
}

/// Which chunk, which word of it, and which bits of that.
type Piece = (usize, usize, u64);

/// `run`, cut at words.
fn pieces(run: BlockRun) -> impl Iterator<Item = Piece> {
    let end = run.end().get();
    let mut at = run.first.get();
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (chunk, bit) = place(HostBlock::new(at));
        let count = (64 - at % 64).min(end - at);
        at += count;
        let mask = (u64::MAX >> (64 - count)) << (bit % 64);
        Some((chunk, bit / 64, mask))
    })
}

fn place(block: HostBlock) -> (usize, usize) {
    let block = block.get();
    ((block / CHUNK_BLOCKS) as usize, (block % CHUNK_BLOCKS) as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run(first: u64, count: u64) -> BlockRun {
        BlockRun { first: HostBlock::new(first), count }
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((0_u64..70_000, 1_u64..40_000, any::<bool>()), 1..12)) {
            let (mut blocks, mut model) = (Blocks::default(), BTreeSet::new());
            for (first, count, put) in steps {
                let range = first..first + count;
                let fits = range.clone().all(|block| model.contains(&block) != put);
                let done = if put { blocks.insert(run(first, count)) } else { blocks.remove(run(first, count)) };
                prop_assert_eq!(done, fits);
                if fits {
                    range.for_each(|block| { if put { model.insert(block); } else { model.remove(&block); } });
                }
            }
            prop_assert_eq!(blocks.count(), model.len() as u64);
            prop_assert_eq!(blocks.end().get(), model.last().map_or(0, |last| last + 1));
            let (end, mut at) = (120_000, 0);
            while let Some(found) = blocks.next_run(HostBlock::new(at), HostBlock::new(end), true) {
                let first = model.range(at..).next().copied();
                prop_assert_eq!(Some(found.first.get()), first);
                prop_assert!((found.first.get()..found.end().get()).all(|b| model.contains(&b)));
                prop_assert!(!model.contains(&found.end().get()));
                prop_assert!(!blocks.contains(found.end()) && blocks.contains(found.first));
                at = found.end().get();
            }
            prop_assert_eq!(model.range(at..).next(), None);
            let again = Blocks::parse(&blocks.encode(), HostBlock::new(end)).unwrap();
            prop_assert_eq!((again.count(), again.end()), (blocks.count(), blocks.end()));
        }

        #[test]
        fn sets_are_joined_and_held_against_each_other(
            runs in prop::collection::vec((0_u64..70_000, 1_u64..40_000, any::<bool>()), 1..6),
            end in 0_u64..100_000,
        ) {
            let (mut one, mut two) = (Blocks::default(), Blocks::default());
            for (first, count, which) in runs {
                (if which { &mut one } else { &mut two }).add(run(first, count));
            }
            let all = |blocks: &Blocks| (0..115_000).filter(|b| blocks.contains(HostBlock::new(*b))).collect::<BTreeSet<u64>>();
            let (a, b) = (all(&one), all(&two));
            let mut both = one.clone();
            both.add_all(&two);
            prop_assert_eq!(all(&both), &a | &b);
            let kept: BTreeSet<u64> = a.iter().copied().filter(|x| *x >= end || b.contains(x)).collect();
            prop_assert_eq!(one.retain(&two, HostBlock::new(end)), (a.len() - kept.len()) as u64);
            prop_assert_eq!(all(&one), kept);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Blocks::parse(&bytes, HostBlock::new(1 << 20));
        }
    }
}
