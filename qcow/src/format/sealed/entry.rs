//! What a node says of a part of the disk, or of another node: where it lies and what it must open with.

use super::{BLOCK_LEN, BLOCKS_MAX, FIRST_BLOCK, Generation, blocks_for};
use crate::addr::HostBlock;
use crate::crypt::seal::{NONCE_LEN, Seal, TAG_LEN};
use crate::error::{Error, Result};
use crate::format::bytes::Reader;

/// Bytes of an entry.
pub const ENTRY_LEN: usize = 64;
/// log2 of the entries of a node.
pub const NODE_BITS: u32 = 6;
/// Entries of a node.
pub const NODE_ENTRIES: usize = 1 << NODE_BITS;
/// Bytes of a node: one block.
pub const NODE_LEN: usize = ENTRY_LEN * NODE_ENTRIES;

const UNALLOCATED: u8 = 0;
const ZEROS: u8 = 1;
const STORED: u8 = 2;
const COMPRESSED: u8 = 3;
/// Where the kind stands in the first word; below it is the block.
const KIND_SHIFT: u32 = 56;

/// What is said of a cluster, or of all that a node would cover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entry {
    /// Nothing: the image below shows through.
    #[default]
    Unallocated,
    /// It reads as zeros.
    Zeros,
    /// It lies in the file.
    Stored(Stored),
}

/// Where sealed bytes lie, and what they open with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The first of consecutive blocks.
    pub place: HostBlock,
    /// Bytes: a whole cluster or node, or less of what is compressed, and of a blob.
    pub len: u32,
    /// Whether it is a cluster in compressed form.
    pub compressed: bool,
    /// The first root that led to it.
    pub born: Generation,
    /// What it opens with.
    pub seal: Seal,
}

impl Stored {
    /// Blocks that it takes.
    pub fn blocks(&self) -> u64 {
        blocks_for(self.len.into())
    }
}

impl Entry {
    /// Whether it lies nowhere.
    pub fn is_void(&self) -> bool {
        !matches!(self, Self::Stored(_))
    }

    /// What lies in the file, if anything.
    pub fn stored(&self) -> Option<&Stored> {
        match self {
            Self::Stored(stored) => Some(stored),
            _ => None,
        }
    }

    /// The bytes of the entry.
    pub fn encode(&self, into: &mut [u8; ENTRY_LEN]) {
        into.fill(0);
        let stored = match self {
            Self::Unallocated => return,
            Self::Zeros => return into[0] = ZEROS,
            Self::Stored(stored) => stored,
        };
        let kind = if stored.compressed { COMPRESSED } else { STORED };
        let word = u64::from(kind) << KIND_SHIFT | stored.place.get();
        into[..8].copy_from_slice(&word.to_be_bytes());
        into[8..16].copy_from_slice(&stored.born.to_be_bytes());
        into[16..40].copy_from_slice(&stored.seal.nonce);
        into[40..56].copy_from_slice(&stored.seal.tag);
        into[56..60].copy_from_slice(&stored.len.to_be_bytes());
    }

    /// The entry in `bytes`, of an image of which entries may name the blocks below `end`.
    ///
    /// # Errors
    /// It names blocks outside of that, or says what no entry says.
    pub fn parse(bytes: &[u8; ENTRY_LEN], end: HostBlock) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let whole = "an entry has 64 bytes";
        let word = reader.u64().expect(whole);
        let (kind, place) = ((word >> KIND_SHIFT) as u8, word & ((1 << KIND_SHIFT) - 1));
        if matches!(kind, UNALLOCATED | ZEROS) {
            return match place == 0 && bytes[8..].iter().all(|byte| *byte == 0) {
                true if kind == ZEROS => Ok(Self::Zeros),
                true => Ok(Self::Unallocated),
                false => Err(Error::corrupt("an entry without a place has a seal")),
            };
        }
        let born = reader.u64().expect(whole);
        let nonce: [u8; NONCE_LEN] = reader.take(NONCE_LEN).expect(whole).try_into().expect(whole);
        let tag: [u8; TAG_LEN] = reader.take(TAG_LEN).expect(whole).try_into().expect(whole);
        let len = reader.u32().expect(whole);
        let blocks = blocks_for(len.into());
        let inside = place >= FIRST_BLOCK.get()
            && place.checked_add(blocks).is_some_and(|last| last <= end.get().min(BLOCKS_MAX));
        if !matches!(kind, STORED | COMPRESSED) || len == 0 || reader.u32() != Some(0) {
            return Err(Error::corrupt(format!("an entry of an unknown kind ({kind})")));
        }
        if !inside {
            return Err(Error::corrupt(format!(
                "an entry names block {place:#x}, of an image of {:#x} blocks",
                end.get()
            )));
        }
        let (place, seal) = (HostBlock::new(place), Seal { nonce, tag });
        Ok(Self::Stored(Stored { place, len, compressed: kind == COMPRESSED, born, seal }))
    }
}

/// The entries of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node(pub [Entry; NODE_ENTRIES]);

impl Node {
    /// A node whose entries are all alike.
    pub fn filled(entry: Entry) -> Self {
        Self([entry; NODE_ENTRIES])
    }

    /// What all its entries say, where they say the same and nothing lies anywhere.
    pub fn void(&self) -> Option<Entry> {
        let first = self.0[0];
        (first.is_void() && self.0.iter().all(|entry| *entry == first)).then_some(first)
    }

    /// The bytes of the node.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; NODE_LEN];
        let (slots, _) = bytes.as_chunks_mut::<ENTRY_LEN>();
        self.0.iter().zip(slots).for_each(|(entry, slot)| entry.encode(slot));
        bytes
    }

    /// The node of level `level` in `bytes`, of an image with such clusters, of which entries may name the blocks below `end`.
    ///
    /// # Errors
    /// As [`Entry::parse`]; or an entry is of a length that nothing on that level has.
    pub fn parse(bytes: &[u8], level: u8, cluster_len: u64, end: HostBlock) -> Result<Self> {
        let (slots, rest) = bytes.as_chunks::<ENTRY_LEN>();
        if slots.len() != NODE_ENTRIES || !rest.is_empty() {
            return Err(Error::corrupt(format!("a node of {} bytes", bytes.len())));
        }
        let mut node = Self::filled(Entry::Unallocated);
        for (slot, entry) in slots.iter().zip(&mut node.0) {
            *entry = Entry::parse(slot, end)?;
            if let Entry::Stored(stored) = entry {
                check_len(stored, level - 1, cluster_len)?;
            }
        }
        Ok(node)
    }
}

/// Fails where `stored`, a node of level `level` or on level 0 a cluster, has a length that such a thing cannot have.
///
/// # Errors
/// As said.
pub fn check_len(stored: &Stored, level: u8, cluster_len: u64) -> Result<()> {
    let len = u64::from(stored.len);
    let fits = match (level, stored.compressed) {
        (0, true) => len < cluster_len,
        (0, false) => len == cluster_len,
        (_, compressed) => len == BLOCK_LEN && !compressed,
    };
    match fits {
        true => Ok(()),
        false => Err(Error::corrupt(format!("an entry of {len} bytes on level {level}"))),
    }
}

/// As [`check_len`], of what an entry names, if it names anything.
///
/// # Errors
/// As said.
pub fn check_len_of(entry: &Entry, level: u8, cluster_len: u64) -> Result<()> {
    entry.stored().map_or(Ok(()), |stored| check_len(stored, level, cluster_len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(place: u64, len: u32, compressed: bool) -> Entry {
        let seal = Seal { nonce: [3; NONCE_LEN], tag: [9; TAG_LEN] };
        Entry::Stored(Stored { place: HostBlock::new(place), len, compressed, born: 7, seal })
    }

    #[test]
    fn nodes_come_back_as_they_were() {
        let mut node = Node::filled(Entry::Unallocated);
        assert_eq!(node.void(), Some(Entry::Unallocated));
        node.0[1] = Entry::Zeros;
        assert_eq!(node.void(), None);
        node.0[2] = entry(8, 16384, false);
        node.0[63] = entry(99, 100, true);
        let parsed = Node::parse(&node.encode(), 1, 16384, HostBlock::new(100));
        assert_eq!(parsed.unwrap(), node);
        assert_eq!(Node::filled(Entry::Zeros).void(), Some(Entry::Zeros));
    }

    #[test]
    fn entries_stay_inside_the_file_and_have_the_length_of_their_level() {
        let parse = |entry: Entry, level| {
            let mut node = Node::filled(Entry::Unallocated);
            node.0[5] = entry;
            Node::parse(&node.encode(), level, 16384, HostBlock::new(100)).is_ok()
        };
        assert!(parse(entry(96, 16384, false), 1) && parse(entry(99, 4096, false), 2));
        assert!(!parse(entry(97, 16384, false), 1), "past the end");
        assert!(!parse(entry(7, 16384, false), 1), "in front of the first");
        assert!(!parse(entry(8, 16383, false), 1) && !parse(entry(8, 16384, true), 1));
        assert!(!parse(entry(8, 16384, false), 2) && !parse(entry(8, 4096, true), 2));
        assert!(!parse(entry(8, 0, true), 1));
    }

    proptest! {
        #[test]
        fn no_entry_panics_and_what_is_read_is_what_was_there(bytes: [[u8; 32]; 2], kind in 0_u8..5) {
            let mut bytes: [u8; ENTRY_LEN] = bytes.concat().try_into().unwrap();
            bytes[0] = kind;
            if let Ok(entry) = Entry::parse(&bytes, HostBlock::new(u64::MAX)) {
                let mut again = [0; ENTRY_LEN];
                entry.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
