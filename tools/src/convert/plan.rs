//! What happens to which part of the target.
//!
//! A [`Cursor`] walks over the sources' maps, one behind the other. What needs nothing is passed over, however large; the
//! rest comes in parts that one worker reads and writes in one go.

use qcow::engine::MapExtent;

use super::reading;
use super::salvage::Salvage;
use super::sources::{Source, Sources};
use crate::failure::Outcome;
use crate::image::HostImage;

/// Bytes of the largest part that is read and written at once.
pub const PART_LEN: u64 = 2 << 20;

/// What becomes of parts that read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroRule {
    /// The target reads as zeros there already.
    Skip,
    /// The target may hold anything there: they are zeroed.
    Write,
    /// They are written like data.
    Store,
    /// The target is made for a backing image: zeros of the source's own are zeroed, or stored where that is wanted, and what
    /// it inherits is left alone.
    Overlay,
    /// The target shows an earlier state of the source: only what has changed since is written.
    Changed,
}

/// How the target is written.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What becomes of zeros.
    pub zeros: ZeroRule,
    /// Whether zeros are told from data at all.
    pub finds_zeros: bool,
    /// What the target has as a whole or not at all, in bytes: parts begin and end at multiples of this wherever they can.
    pub unit: u64,
    /// Zeros among data are looked for in blocks of so many bytes.
    pub block_len: u64,
    /// Only whole clusters of so many bytes can be written.
    pub whole_clusters: Option<u64>,
    /// How to go on after failed reads, if that is wanted.
    pub salvage: Option<Salvage>,
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

/// A stretch of a part, out of one source.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The source's number.
    pub source: usize,
    /// Byte of the target where it starts.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// What it holds.
    pub content: Content,
}

/// Something to do.
#[derive(Debug)]
pub enum Part {
    /// Read the pieces, which follow each other, and write what they hold.
    Copy { at: u64, pieces: Vec<Piece> },
    /// Zero `len` bytes at `at` of the target.
    Zero { at: u64, len: u64 },
}

impl Part {
    /// Bytes that progress counts, as QEMU's does: data, and zeros that are stored like data.
    pub fn work(&self, zeros: ZeroRule) -> u64 {
        let Self::Copy { pieces, .. } = self else { return 0 };
        let counts = |piece: &&Piece| match piece.content {
            Content::Data => true,
            Content::Zeros => zeros == ZeroRule::Store,
            Content::Inherited => false,
        };
        pieces.iter().filter(counts).map(|piece| piece.len).sum()
    }
}

/// Walks over the sources.
#[derive(Debug)]
pub struct Cursor<'a> {
    sources: &'a Sources,
    target: &'a HostImage,
    rules: Rules,
    /// The state of the source that the target shows so far.
    before: Option<&'a HostImage>,
    /// The next byte of the target.
    at: u64,
    /// Number of the source that it comes from.
    source: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte of the first source.
    pub fn new(
        sources: &'a Sources,
        target: &'a HostImage,
        rules: Rules,
        before: Option<&'a HostImage>,
    ) -> Self {
        Self { sources, target, rules, before, at: 0, source: 0 }
    }

    /// Bytes of work from here to the end.
    pub async fn work(mut self) -> Outcome<u64> {
        let mut work = 0;
        while let Some(part) = self.next().await? {
            work += part.work(self.rules.zeros);
        }
        Ok(work)
    }

    /// The next thing to do; `None` at the end.
    pub async fn next(&mut self) -> Outcome<Option<Part>> {
        while let Some(piece) = self.piece_at(self.at, self.sources.total - self.at).await? {
            let whole = self.whole_units(piece.len);
            match (piece.content, self.rules.zeros) {
                (Content::Inherited, _) | (Content::Zeros, ZeroRule::Skip) if whole > 0 => {
                    self.at += whole;
                }
                (Content::Zeros, ZeroRule::Write | ZeroRule::Overlay | ZeroRule::Changed)
                    if whole > 0 =>
                {
                    let at = self.at;
                    self.at += whole;
                    return Ok(Some(Part::Zero { at, len: whole }));
                }
                _ => return self.take_part().await.map(Some),
            }
        }
        Ok(None)
    }

    /// The part that starts here.
    async fn take_part(&mut self) -> Outcome<Part> {
        let at = self.at;
        let len = (PART_LEN - at % PART_LEN).min(self.sources.total - at);
        let mut pieces = Vec::new();
        while self.at < at + len {
            let Some(piece) = self.piece_at(self.at, at + len - self.at).await? else { break };
            self.at += piece.len;
            pieces.push(piece);
        }
        if let (Some(cluster), ZeroRule::Overlay) = (self.rules.whole_clusters, self.rules.zeros) {
            pieces = inherited_whole(&pieces, cluster);
        }
        Ok(Part::Copy { at, pieces })
    }

    /// How many of `len` bytes from here on fill whole units of the target, or reach its end where that may be.
    fn whole_units(&self, len: u64) -> u64 {
        let end = self.at + len;
        match self.rules.whole_clusters {
            // As QEMU: a compressed cluster that the disk's end cuts off is no whole one.
            None if end == self.sources.total => len,
            _ => (end - end % self.rules.unit).saturating_sub(self.at),
        }
    }

    /// What comes to lie at `at`, for at most `left` bytes; `None` at the end.
    async fn piece_at(&mut self, at: u64, left: u64) -> Outcome<Option<Piece>> {
        while let Some(source) = self.sources.list.get(self.source) {
            let left = left.min((source.start + source.image.virtual_size()).saturating_sub(at));
            if left == 0 {
                self.source += 1;
                continue;
            }
            let (content, len) = self.content_at(source, at, left).await?;
            return Ok(Some(Piece { source: self.source, at, len, content }));
        }
        Ok(None)
    }

    /// Bytes of the target's backing image.
    fn backing_len(&self) -> u64 {
        match self.target.layer_count() {
            1 => 0,
            _ => self.target.layer_virtual_size(1),
        }
    }

    /// What the source holds for byte `at` of the target, and for how many of `len` bytes.
    async fn content_at(&self, source: &Source, at: u64, len: u64) -> Outcome<(Content, u64)> {
        let extent = match self.rules.salvage {
            None => source.image.map(at - source.start, len).await.map_err(|e| reading(at, &e))?,
            Some(salvage) => match salvage.map(&source.image, at - source.start, len).await {
                Ok(extent) => extent,
                Err(len) => return Ok((Content::Data, len)),
            },
        };
        // What no image of the chain has is the source's own, too, unless its backing image reaches that far.
        let own = extent.depth == 0;
        match self.rules.zeros {
            ZeroRule::Overlay if !own => Ok((Content::Inherited, extent.len)),
            ZeroRule::Overlay if extent.zero => {
                // Behind the end of the backing image nothing has to be covered, and that may go on for terabytes.
                let left = self.backing_len().saturating_sub(at);
                let covering = if self.rules.finds_zeros { Content::Zeros } else { Content::Data };
                Ok(match left {
                    0 => (Content::Inherited, extent.len),
                    _ => (covering, extent.len.min(left)),
                })
            }
            ZeroRule::Changed => self.change(at, &extent).await,
            _ => Ok((own_content(&extent), extent.len)),
        }
    }

    /// What `extent`, which lies at byte `at`, means for a target that shows the earlier state.
    async fn change(&self, at: u64, extent: &MapExtent) -> Outcome<(Content, u64)> {
        // The target has been cut to the length that both states have, and is zeros behind.
        let reach = self.before.map_or(0, |before| before.virtual_size().saturating_sub(at));
        let Some(before) = self.before.filter(|_| reach > 0) else {
            let same = if extent.zero { Content::Inherited } else { Content::Data };
            return Ok((same, extent.len));
        };
        let then = before.map(at, extent.len.min(reach)).await.map_err(|e| reading(at, &e))?;
        let place = |extent: &MapExtent| (extent.depth, extent.stored_at);
        let is_same = match extent.zero {
            true => then.zero,
            false => !then.zero && extent.stored_at.is_some() && place(&then) == place(extent),
        };
        let content = if is_same { Content::Inherited } else { own_content(extent) };
        Ok((content, then.len))
    }
}

fn own_content(extent: &MapExtent) -> Content {
    if extent.zero { Content::Zeros } else { Content::Data }
}

/// The same pieces, where what is inherited fills whole clusters of the target, and is data otherwise.
fn inherited_whole(pieces: &[Piece], cluster: u64) -> Vec<Piece> {
    let own: Vec<u64> = pieces
        .iter()
        .filter(|piece| piece.content != Content::Inherited)
        .flat_map(|piece| piece.at / cluster..(piece.at + piece.len).div_ceil(cluster))
        .collect();
    let all = pieces.last().map_or(0, |piece| piece.at + piece.len) / cluster;
    let mut whole = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (mut at, end) = (piece.at, piece.at + piece.len);
        while at < end && piece.content == Content::Inherited {
            let kept = at / cluster < all && own.binary_search(&(at / cluster)).is_err();
            let len = (at / cluster * cluster + cluster).min(end) - at;
            let content = if kept { Content::Inherited } else { Content::Data };
            whole.push(Piece { at, len, content, ..*piece });
            at += len;
        }
        if at < end {
            whole.push(*piece);
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_is_not_all_inherited_is_copied_whole() {
        let piece = |at, len, content| Piece { source: 0, at, len, content };
        let pieces = [
            piece(0, 3000, Content::Inherited),
            piece(3000, 500, Content::Zeros),
            piece(3500, 9000, Content::Inherited),
            piece(12_500, 3884, Content::Data),
            // Cut off by the disk's end.
            piece(16_384, 100, Content::Inherited),
        ];
        let whole = inherited_whole(&pieces, 4096);
        let told: Vec<_> = whole.iter().map(|piece| (piece.at, piece.len, piece.content)).collect();
        let expected = [
            (0, 3000, Content::Data),
            (3000, 500, Content::Zeros),
            (3500, 596, Content::Data),
            (4096, 4096, Content::Inherited),
            (8192, 4096, Content::Inherited),
            (12_288, 212, Content::Data),
            (12_500, 3884, Content::Data),
            (16_384, 100, Content::Data),
        ];
        assert_eq!(told, expected);
    }
}
