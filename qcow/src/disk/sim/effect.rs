//! What an operation does to a file, block by block: the units that a power cut keeps or loses on their own.

use super::content::{Block, Content, pieces};
use super::random::Random;
use crate::disk::Payload;

/// An operation on a file.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Read { at: u64, into: Payload },
    Write { at: u64, from: Payload },
    Zero { at: u64, len: u64 },
    Punch { at: u64, len: u64, junk: bool },
    Grow { len: u64 },
    SetLen { len: u64 },
    Sync,
}

/// The smallest part of an effect.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Block { index: u64, block: Block },
    Len(u64),
}

impl Effect {
    /// What the operation changes in a file that reads as `visible` now.
    pub fn changes(&self, visible: &Content) -> Vec<Change> {
        match self {
            Self::Read { .. } | Self::Sync => Vec::new(),
            Self::Write { at, from } => write(visible, *at, &from.to_vec()),
            Self::Zero { at, len } => zero(visible, *at, *len),
            Self::Punch { at, len, junk } => punch(visible, *at, *len, *junk),
            Self::Grow { len } => grown(visible, *len).collect(),
            Self::SetLen { len } => cut(visible, *len),
        }
    }

    /// Bytes of blocks that the operation needs the host to store.
    pub fn stored(&self) -> (u64, u64) {
        match self {
            Self::Write { at, from } => (*at, from.len()),
            Self::Zero { at, len } => (*at, *len),
            _ => (0, 0),
        }
    }
}

/// Some of `changes`, as an operation leaves them that failed on its way.
pub(super) fn some_of(changes: Vec<Change>, random: &mut Random) -> Vec<Change> {
    changes.into_iter().filter(|_| random.below(2) == 0).collect()
}

fn write(visible: &Content, at: u64, bytes: &[u8]) -> Vec<Change> {
    let blocks = pieces(at, bytes.len() as u64).map(|piece| {
        let old = if piece.is_whole() { Block::HOLE } else { visible.block(piece.block) };
        let block = old.patched(piece.offset, &bytes[piece.range()]);
        Change::Block { index: piece.block, block }
    });
    blocks.chain(grown(visible, at + bytes.len() as u64)).collect()
}

fn zero(visible: &Content, at: u64, len: u64) -> Vec<Change> {
    let blocks = pieces(at, len).map(|piece| {
        let block = if piece.is_whole() {
            Block::zeros()
        } else {
            visible.block(piece.block).patched(piece.offset, &vec![0; piece.len])
        };
        Change::Block { index: piece.block, block }
    });
    blocks.chain(grown(visible, at + len)).collect()
}

/// Frees whole blocks; with `junk` they read as anything, and so does the rest of the range in any case.
fn punch(visible: &Content, at: u64, len: u64, junk: bool) -> Vec<Change> {
    let len = len.min(visible.len().saturating_sub(at));
    let junk_bytes = |len| vec![0xa5; len];
    pieces(at, len)
        .map(|piece| {
            let block = match (piece.is_whole(), junk) {
                (true, false) => Block::HOLE,
                (true, true) => Block::junk(),
                (false, _) => {
                    visible.block(piece.block).patched(piece.offset, &junk_bytes(piece.len))
                }
            };
            Change::Block { index: piece.block, block }
        })
        .collect()
}

fn grown(visible: &Content, len: u64) -> impl Iterator<Item = Change> + use<> {
    (len > visible.len()).then_some(Change::Len(len)).into_iter()
}

fn cut(visible: &Content, len: u64) -> Vec<Change> {
    let mut changes = vec![Change::Len(len)];
    if len < visible.len() {
        let gone = pieces(len, visible.len() - len).filter(|p| !visible.block(p.block).is_hole());
        changes.extend(gone.map(|piece| {
            let block = if piece.offset == 0 {
                Block::HOLE
            } else {
                visible.block(piece.block).patched(piece.offset, &vec![0; piece.len])
            };
            Change::Block { index: piece.block, block }
        }));
    }
    changes
}
