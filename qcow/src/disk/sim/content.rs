//! What a simulated file holds: its length, and the blocks that are no holes.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use crate::disk::FileExtent;

/// Granularity of data and holes, in bytes; a power cut tears no block.
pub const BLOCK_BYTES: u64 = 512;

/// What a punched block may read as: nobody may rely on it.
const JUNK: u8 = 0xa5;

/// One block of a file: bytes that it stores, or a hole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block(Option<Arc<[u8; BLOCK_BYTES as usize]>>);

impl Block {
    /// A block that stores nothing and reads as zeros.
    pub const HOLE: Self = Self(None);

    /// A block that stores zeros.
    pub(super) fn zeros() -> Self {
        static ZEROS: LazyLock<Block> = LazyLock::new(|| Block::filled(0));
        ZEROS.clone()
    }

    /// A block whose content nobody wrote.
    pub(super) fn junk() -> Self {
        static BLOCK: LazyLock<Block> = LazyLock::new(|| Block::filled(JUNK));
        BLOCK.clone()
    }

    /// This block with `bytes` at `offset`.
    pub(super) fn patched(&self, offset: usize, bytes: &[u8]) -> Self {
        let mut block = self.0.as_deref().copied().unwrap_or([0; BLOCK_BYTES as usize]);
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
        Self(Some(Arc::new(block)))
    }

    pub(super) fn is_hole(&self) -> bool {
        self.0.is_none()
    }

    /// A number that differs where the bytes differ, as far as a number can; zero for a hole.
    pub(super) fn digest(&self) -> u64 {
        let Some(bytes) = &self.0 else { return 0 };
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().fold(1, |digest, word| mix(digest ^ u64::from_le_bytes(*word)))
    }

    fn filled(byte: u8) -> Self {
        Self(Some(Arc::new([byte; BLOCK_BYTES as usize])))
    }
}

/// Spreads every bit of `x` over the result.
pub(super) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 29)
}

/// A sparse file in memory. Copies share their blocks.
#[derive(Clone, Debug, Default)]
pub struct Content {
    len: u64,
    blocks: BTreeMap<u64, Arc<[u8; BLOCK_BYTES as usize]>>,
}

impl Content {
    /// A file that holds `bytes`; blocks of nothing but zeros become holes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Self { len: bytes.len() as u64, blocks: BTreeMap::new() };
        for (index, chunk) in (0..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
            if chunk.iter().any(|&byte| byte != 0) {
                content.set_block(index, Block::HOLE.patched(0, chunk));
            }
        }
        content
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that are no holes.
    pub fn allocated_len(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_BYTES
    }

    /// All bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(0, &mut bytes);
        bytes
    }

    /// The stretch of data or hole at `at`.
    pub fn extent_at(&self, at: u64) -> FileExtent {
        let (first, blocks) = (at / BLOCK_BYTES, self.len.div_ceil(BLOCK_BYTES));
        let data = self.blocks.contains_key(&first);
        let end = (first..blocks).find(|b| self.blocks.contains_key(b) != data).unwrap_or(blocks);
        FileExtent { len: (end * BLOCK_BYTES).min(self.len).saturating_sub(at), data }
    }

    /// Fills `into` from `at`; past the end of the file there are zeros.
    pub fn read(&self, at: u64, into: &mut [u8]) {
        for piece in pieces(at, into.len() as u64) {
            let range = piece.range();
            match self.blocks.get(&piece.block) {
                Some(data) => into[range].copy_from_slice(&data[piece.inside()]),
                None => into[range].fill(0),
            }
        }
    }

    /// The block at `index`.
    pub(super) fn block(&self, index: u64) -> Block {
        Block(self.blocks.get(&index).cloned())
    }

    /// All blocks that are no holes.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, Block)> + '_ {
        self.blocks.iter().map(|(&index, data)| (index, Block(Some(Arc::clone(data)))))
    }

    pub(super) fn set_block(&mut self, index: u64, block: Block) {
        match block.0 {
            Some(data) => drop(self.blocks.insert(index, data)),
            None => drop(self.blocks.remove(&index)),
        }
    }

    /// Sets the length; blocks behind it are gone.
    pub(super) fn set_len(&mut self, len: u64) {
        self.len = len;
        self.blocks.split_off(&len.div_ceil(BLOCK_BYTES));
    }
}

/// The part of a request that lies in one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub block: u64,
    /// Offset in the block.
    pub offset: usize,
    /// Offset in the request.
    pub done: usize,
    pub len: usize,
}

impl Piece {
    pub fn is_whole(&self) -> bool {
        self.len as u64 == BLOCK_BYTES
    }

    /// Its bytes of the request.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.done..self.done + self.len
    }

    /// Its bytes of the block.
    pub fn inside(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// The blocks of a request for `len` bytes at `at`.
pub(super) fn pieces(at: u64, len: u64) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let (block, offset) = ((at + done) / BLOCK_BYTES, (at + done) % BLOCK_BYTES);
        let piece_len = (BLOCK_BYTES - offset).min(len - done);
        let piece =
            Piece { block, offset: offset as usize, done: done as usize, len: piece_len as usize };
        done += piece_len;
        (piece_len > 0).then_some(piece)
    })
}
