//! What a simulated file holds: its length, and the blocks that are no holes.

use std::collections::BTreeMap;
use std::io;

use super::Effect;
use crate::disk::FileExtent;

/// Granularity of data and holes, in bytes.
const BLOCK: u64 = 512;

/// A sparse file in memory.
#[derive(Clone, Debug)]
pub struct Content {
    len: u64,
    /// Most bytes that may be stored.
    capacity: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK as usize]>>,
}

impl Content {
    /// A file that holds `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Self { len: 0, capacity: u64::MAX, blocks: BTreeMap::new() };
        content.write(0, bytes);
        content
    }

    /// Limits how many bytes may be stored.
    pub(super) fn set_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
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
        self.blocks.len() as u64 * BLOCK
    }

    /// All bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(0, &mut bytes);
        bytes
    }

    /// The stretch of data or hole at `at`.
    pub fn extent_at(&self, at: u64) -> FileExtent {
        let (first, blocks) = (at / BLOCK, self.len.div_ceil(BLOCK));
        let data = self.blocks.contains_key(&first);
        let end = (first..blocks).find(|b| self.blocks.contains_key(b) != data).unwrap_or(blocks);
        FileExtent { len: (end * BLOCK).min(self.len).saturating_sub(at), data }
    }

    pub(super) fn apply(&mut self, effect: &Effect) -> io::Result<()> {
        match effect {
            Effect::Read { at, into } => {
                let mut bytes = vec![0; into.len() as usize];
                self.read(*at, &mut bytes);
                into.copy_from(0, &bytes);
            }
            Effect::Write { at, from } => {
                self.reserve(*at, from.len())?;
                self.write(*at, &from.to_vec());
            }
            Effect::Zero { at, len } => {
                self.reserve(*at, *len)?;
                self.write(*at, &vec![0; *len as usize]);
            }
            Effect::Punch { at, len } => self.punch(*at, *len),
            Effect::Grow { len } => self.len = self.len.max(*len),
            Effect::SetLen { len } => self.set_len(*len),
            Effect::Sync => {}
        }
        Ok(())
    }

    /// Fails where a write would need more space than there is.
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        let blocks = at / BLOCK..(at + len).div_ceil(BLOCK);
        let missing = blocks.filter(|b| !self.blocks.contains_key(b)).count() as u64;
        if missing > 0 && self.allocated_len() + missing * BLOCK > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn read(&self, at: u64, into: &mut [u8]) {
        for_blocks(at, into.len() as u64, |block, inside, range| match self.blocks.get(&block) {
            Some(data) => into[range.clone()].copy_from_slice(&data[inside..inside + range.len()]),
            None => into[range].fill(0),
        });
    }

    fn write(&mut self, at: u64, from: &[u8]) {
        for_blocks(at, from.len() as u64, |block, inside, range| {
            let data = self.blocks.entry(block).or_insert_with(|| Box::new([0; BLOCK as usize]));
            data[inside..inside + range.len()].copy_from_slice(&from[range]);
        });
        self.len = self.len.max(at + from.len() as u64);
    }

    /// Frees whole blocks and fills the rest of the range with junk: nobody may rely on what a punched range reads as.
    fn punch(&mut self, at: u64, len: u64) {
        let len = len.min(self.len.saturating_sub(at));
        for_blocks(at, len, |block, inside, range| {
            if range.len() as u64 == BLOCK {
                self.blocks.remove(&block);
            } else if let Some(data) = self.blocks.get_mut(&block) {
                data[inside..inside + range.len()].fill(0xa5);
            }
        });
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.blocks.split_off(&len.div_ceil(BLOCK));
            if let Some(last) = self.blocks.get_mut(&(len / BLOCK)) {
                last[(len % BLOCK) as usize..].fill(0);
            }
        }
        self.len = len;
    }
}

/// Calls `visit(block, offset in the block, range of the request)` for each block of `len` bytes at `at`.
fn for_blocks(at: u64, len: u64, mut visit: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let (block, inside) = ((at + done) / BLOCK, (at + done) % BLOCK);
        let piece = (BLOCK - inside).min(len - done);
        visit(block, inside as usize, done as usize..(done + piece) as usize);
        done += piece;
    }
}
