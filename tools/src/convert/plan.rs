//! What happens to which part of the sources.
//!
//! A [`Cursor`] walks over the sources' maps. What needs nothing is passed over, however large; the rest comes in parts
//! that one worker reads and writes in one go.

use super::{reading, writing};
use crate::failure::Outcome;
use crate::image::HostImage;

/// Bytes of the largest part that is read and written at once.
pub const PART_LEN: u64 = 2 << 20;

/// One source.
#[derive(Debug)]
pub struct Source {
    /// Its disk.
    pub image: HostImage,
    /// Where its first byte comes to lie in the target.
    pub start: u64,
}

/// What becomes of parts that read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroRule {
    /// The target reads as zeros there already.
    Skip,
    /// The target may hold anything there: they are zeroed.
    Write,
    /// They are written like data.
    Store,
    /// The target is made for a backing image: zeros of the source's own are zeroed, and what it inherits is left alone.
    Overlay,
}

/// What a piece of a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes to read.
    Data,
    /// Zeros.
    Zeros,
    /// What the target holds there already.
    Inherited,
}

/// A stretch of a part.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Bytes from the part's start.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What it holds.
    pub content: Content,
}

/// Something to do.
#[derive(Debug)]
pub enum Part {
    /// Read the pieces of `len` bytes at `at` of source number `source`, and write what they hold.
    Copy { source: usize, at: u64, len: u64, pieces: Vec<Piece> },
    /// Zero `len` bytes at `at` of the target.
    Zero { at: u64, len: u64 },
}

/// Walks over the sources.
#[derive(Debug)]
pub struct Cursor<'a> {
    sources: &'a [Source],
    target: &'a HostImage,
    rule: ZeroRule,
    /// Parts begin and end at multiples of this, in bytes of the target, wherever they can.
    block_len: u64,
    source: usize,
    /// The next byte of the source.
    at: u64,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte of the first source.
    pub fn new(
        sources: &'a [Source],
        target: &'a HostImage,
        rule: ZeroRule,
        block_len: u64,
    ) -> Self {
        Self { sources, target, rule, block_len, source: 0, at: 0 }
    }

    /// The next thing to do; `None` at the end. `advance` hears of bytes that need nothing.
    pub async fn next(&mut self, advance: &mut impl FnMut(u64)) -> Outcome<Option<Part>> {
        while let Some(source) = self.sources.get(self.source) {
            let left = source.image.virtual_size() - self.at;
            if left == 0 {
                self.source += 1;
                self.at = 0;
                continue;
            }
            let (content, len) = self.content_at(source, self.at, left).await?;
            let whole = self.whole_blocks(source, len);
            match (content, self.rule) {
                (Content::Inherited, _) | (Content::Zeros, ZeroRule::Skip) if whole > 0 => {
                    advance(whole);
                    self.at += whole;
                }
                (Content::Zeros, ZeroRule::Write | ZeroRule::Overlay) if whole > 0 => {
                    let at = source.start + self.at;
                    self.at += whole;
                    return Ok(Some(Part::Zero { at, len: whole }));
                }
                _ => return self.take_part(source).await.map(Some),
            }
        }
        Ok(None)
    }

    /// The part that starts here.
    async fn take_part(&mut self, source: &Source) -> Outcome<Part> {
        let start = self.at;
        let target_at = source.start + start;
        let to_boundary = PART_LEN - target_at % PART_LEN;
        let len = to_boundary.min(source.image.virtual_size() - start);
        let mut pieces = Vec::new();
        let mut offset = 0;
        while offset < len {
            let (content, len) = self.content_at(source, start + offset, len - offset).await?;
            pieces.push(Piece { offset, len, content });
            offset += len;
        }
        self.at += len;
        Ok(Part::Copy { source: self.source, at: start, len, pieces })
    }

    /// How many of `len` bytes that follow fill whole blocks of the target, or reach the source's end.
    fn whole_blocks(&self, source: &Source, len: u64) -> u64 {
        let (start, end) = (source.start + self.at, source.start + self.at + len);
        if self.at + len == source.image.virtual_size() {
            return len;
        }
        (end - end % self.block_len).saturating_sub(start)
    }

    /// What the source holds at `at`, and for how many of `len` bytes.
    async fn content_at(&self, source: &Source, at: u64, len: u64) -> Outcome<(Content, u64)> {
        let target_at = source.start + at;
        let extent = source.image.map(at, len).await.map_err(|e| reading(target_at, &e))?;
        // What no image of the chain has is the source's own, too, unless its backing image reaches that far.
        let own = extent.depth == 0;
        match self.rule {
            ZeroRule::Overlay if !own => Ok((Content::Inherited, extent.len)),
            ZeroRule::Overlay if extent.zero => {
                // Mostly zeros behind the end of the backing image, which may go on for terabytes.
                let there = self.target.map(target_at, extent.len).await;
                let there = there.map_err(|e| writing(target_at, &e))?;
                let content = if there.zero { Content::Inherited } else { Content::Zeros };
                Ok((content, there.len))
            }
            _ if extent.zero => Ok((Content::Zeros, extent.len)),
            _ => Ok((Content::Data, extent.len)),
        }
    }
}
