//! Roots: from where everything else can be told, and how one follows another.
//!
//! Each root has one sector, written twice: two copies make a pair, and roots take turns between two pairs, so that the one
//! before stays whole. A root is acknowledged once both of its copies are durable.
//!
//! ```text
//! block   1       2        3       4
//!         even 1  even 2   odd 1   odd 2          by the number of the root's generation
//! ```
//!
//! No disk tears a sector, so a copy that does not open is damage, not an interrupted write. One such copy of a pair does no
//! harm: its twin is the same, or else that root was never acknowledged. Two of them may have been the newest root, and to go
//! on with the older one would show the past as if it were the present: that is refused ([`Roots::newest`]).

use std::fmt;
use std::str::FromStr;

use super::entry::{ENTRY_LEN, Entry, NODE_BITS};
use super::{Generation, ROOT_LEVEL, check_disk_size, start_of};
use crate::addr::{HostBlock, HostOffset};
use crate::crypt::seal::{Label, NONCE_LEN, Seal, Sealer, TAG_LEN};
use crate::error::{Error, Result};
use crate::format::bytes::Reader;
use crate::limits::{SEALED_CLUSTER_BITS_MAX, SEALED_CLUSTER_BITS_MIN, SEALED_GENERATION_MAX};

/// Copies of roots in an image.
pub const COPY_COUNT: usize = 4;
/// Bytes of a copy: one sector.
pub const ROOT_LEN: usize = 512;
/// First bytes of a copy.
const MAGIC: [u8; 8] = *b"qcowroot";
/// Where a copy's sealed bytes start: behind magic, generation and seal.
const BODY_AT: usize = 56;
const BODY_LEN: usize = ROOT_LEN - BODY_AT;
/// Most levels of nodes: enough for any disk.
pub const LEVELS_MAX: u8 = 9;

/// The state of an image from one moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Which one it is.
    pub generation: Generation,
    /// Bytes of the disk, whole sectors.
    pub size: u64,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Levels of nodes above the data, one at least.
    pub levels: u8,
    /// All blocks that entries name lie below this one.
    pub end: HostBlock,
    /// The newest root that a snapshot was taken of, ever; what was born later belongs to the disk alone.
    pub newest_snapshot: Generation,
    /// Whether the disk leads to something that is older and that no snapshot has.
    pub has_older: bool,
    /// The top node.
    pub top: Entry,
    /// The details.
    pub details: Entry,
    /// The map of blocks, of an image that was closed with this root.
    pub space: Entry,
}

impl Root {
    /// Clusters that nodes of so many levels cover; `None` where that is more than any.
    pub fn reach(levels: u8) -> Option<u64> {
        1_u64.checked_shl(NODE_BITS * u32::from(levels))
    }

    /// Fewest levels of nodes that cover so many clusters.
    pub fn levels_for(clusters: u64) -> u8 {
        let covers = |levels: &u8| Self::reach(*levels).is_none_or(|reach| reach >= clusters);
        (1..LEVELS_MAX).find(covers).unwrap_or(LEVELS_MAX)
    }

    /// Where its two copies lie.
    pub fn places(&self) -> [HostOffset; 2] {
        let first = (self.generation % 2) as usize * 2;
        [place_of(first), place_of(first + 1)]
    }

    /// The sector of a copy, and what tells it from others.
    pub fn encode(&self, sealer: &Sealer) -> (Vec<u8>, RootTag) {
        let mut body = vec![0; BODY_LEN];
        body[..8].copy_from_slice(&self.size.to_be_bytes());
        body[8..16].copy_from_slice(&self.end.get().to_be_bytes());
        body[16..24].copy_from_slice(&self.newest_snapshot.to_be_bytes());
        (body[24], body[25]) = (self.cluster_bits as u8, self.levels);
        body[26] = u8::from(self.has_older);
        let (slots, _) = body[32..].as_chunks_mut::<ENTRY_LEN>();
        for (entry, slot) in [self.top, self.details, self.space].iter().zip(slots) {
            entry.encode(slot);
        }
        let seal = sealer.seal(label(self.generation), &mut body);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&seal.nonce);
        bytes.extend_from_slice(&seal.tag);
        bytes.extend_from_slice(&body);
        (bytes, RootTag { generation: self.generation, tag: seal.tag })
    }

    /// The root in a copy.
    ///
    /// # Errors
    /// The copy is damaged, or says what no root says.
    pub fn parse(bytes: &[u8], sealer: &Sealer) -> Result<(Self, RootTag)> {
        let damaged = || Error::corrupt("a copy of a root is damaged");
        if bytes.len() != ROOT_LEN || bytes[..8] != MAGIC {
            return Err(damaged());
        }
        let (head, body) = bytes.split_at(BODY_AT);
        let mut reader = Reader::new(&head[8..]);
        let generation = reader.u64().ok_or_else(damaged)?;
        let nonce: &[u8] = reader.take(NONCE_LEN).ok_or_else(damaged)?;
        let tag: &[u8] = reader.take(TAG_LEN).ok_or_else(damaged)?;
        let seal = Seal {
            nonce: nonce.try_into().map_err(|_| damaged())?,
            tag: tag.try_into().map_err(|_| damaged())?,
        };
        let mut body = body.to_vec();
        if !sealer.open(label(generation), &seal, &mut body) {
            return Err(damaged());
        }
        let root = Self::parse_body(generation, &body)?;
        Ok((root, RootTag { generation, tag: seal.tag }))
    }

    fn parse_body(generation: Generation, body: &[u8]) -> Result<Self> {
        let short = || Error::corrupt("a root is cut short");
        let mut reader = Reader::new(body);
        let size = reader.u64().ok_or_else(short)?;
        let end = HostBlock::new(reader.u64().ok_or_else(short)?);
        let newest_snapshot = reader.u64().ok_or_else(short)?;
        let cluster_bits = u32::from(reader.u8().ok_or_else(short)?);
        let levels = reader.u8().ok_or_else(short)?;
        let has_older = reader.u8().ok_or_else(short)? != 0;
        reader.take(5).ok_or_else(short)?;
        let mut entry = || {
            let bytes = reader.take(ENTRY_LEN).ok_or_else(short)?;
            Entry::parse(bytes.try_into().map_err(|_| short())?, end)
        };
        let (top, details, space) = (entry()?, entry()?, entry()?);
        let root = Self {
            generation,
            size,
            cluster_bits,
            levels,
            end,
            newest_snapshot,
            has_older,
            top,
            details,
            space,
        };
        root.check()?;
        Ok(root)
    }

    fn check(&self) -> Result<()> {
        let bits = SEALED_CLUSTER_BITS_MIN..=SEALED_CLUSTER_BITS_MAX;
        if !bits.contains(&self.cluster_bits) || !(1..=LEVELS_MAX).contains(&self.levels) {
            return Err(Error::corrupt("a root says what no root says"));
        }
        if self.generation > SEALED_GENERATION_MAX {
            return Err(Error::limit(format!("root {}, which no image gets to", self.generation)));
        }
        check_disk_size(self.size)?;
        let clusters = self.size.div_ceil(1 << self.cluster_bits);
        let covered = Self::reach(self.levels).is_none_or(|reach| reach >= clusters);
        if !covered || !self.size.is_multiple_of(crate::limits::SECTOR_BYTES) {
            let what =
                format!("a root of a disk of {} bytes with {} levels", self.size, self.levels);
            return Err(Error::corrupt(what));
        }
        super::entry::check_len_of(&self.top, self.levels, 1 << self.cluster_bits)
    }
}

fn label(generation: Generation) -> Label {
    Label { level: ROOT_LEVEL, index: generation, len: BODY_LEN as u32 }
}

/// Where copy number `index` lies.
pub fn place_of(index: usize) -> HostOffset {
    start_of(HostBlock::new(1 + index as u64))
}

/// Which root an image has: who keeps it elsewhere notices when an older state of the file is put in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootTag {
    /// The root's generation.
    pub generation: Generation,
    /// What the root opens with.
    pub tag: [u8; TAG_LEN],
}

impl RootTag {
    /// Whether an image with this root may have been one with `earlier`: it is a later one, or the same.
    pub fn may_follow(&self, earlier: &Self) -> bool {
        self.generation > earlier.generation || self == earlier
    }
}

impl fmt::Display for RootTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.generation)?;
        self.tag.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for RootTag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no root, as '12:' and 32 hexadecimal digits are");
        let (generation, digits) = text.split_once(':').ok_or_else(wrong)?;
        let generation = generation.parse().map_err(|_| wrong())?;
        let is_hex = digits.len() == 2 * TAG_LEN && digits.bytes().all(|c| c.is_ascii_hexdigit());
        let mut tag = [0; TAG_LEN];
        for (index, byte) in tag.iter_mut().enumerate().filter(|_| is_hex) {
            *byte =
                u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
        }
        if is_hex { Ok(Self { generation, tag }) } else { Err(wrong()) }
    }
}

/// All copies of roots of an image.
#[derive(Debug)]
pub struct Roots {
    sectors: [Vec<u8>; COPY_COUNT],
    found: [Option<(Root, RootTag)>; COPY_COUNT],
}

impl Roots {
    /// The roots in the sectors of all copies, in their order.
    pub fn parse(sectors: [Vec<u8>; COPY_COUNT], sealer: &Sealer) -> Self {
        let found = [0, 1, 2, 3].map(|index| {
            let (root, tag) = Root::parse(&sectors[index], sealer).ok()?;
            // A copy that lies where others belong was put there by somebody.
            root.places().contains(&place_of(index)).then_some((root, tag))
        });
        Self { sectors, found }
    }

    /// The newest root.
    ///
    /// # Errors
    /// It may have been one of two copies that are damaged.
    pub fn newest(&self) -> Result<(Root, RootTag)> {
        for pair in PAIRS {
            if self.newer_of(pair).is_none() {
                return Err(Error::corrupt(format!(
                    "both copies of a root, at {} and {}, are damaged or sealed with another key: \
                     the newest state of the disk may be lost",
                    place_of(pair[0]),
                    place_of(pair[1])
                )));
            }
        }
        let newest = self.found.iter().flatten().max_by_key(|(root, _)| root.generation);
        Ok(*newest.expect("a pair has a copy"))
    }

    /// Copies that are damaged.
    pub fn damaged(&self) -> impl Iterator<Item = HostOffset> + '_ {
        (0..COPY_COUNT).filter(|index| self.found[*index].is_none()).map(place_of)
    }

    /// Copies that are damaged, or older than their twin, and what belongs there: the twin.
    pub fn to_mend(&self) -> Vec<(HostOffset, &[u8])> {
        let mut found = Vec::new();
        for pair in PAIRS {
            let Some(newer) = self.newer_of(pair) else { continue };
            let generation = self.generation(newer);
            for index in pair.into_iter().filter(|index| self.generation(*index) != generation) {
                found.push((place_of(index), &self.sectors[newer][..]));
            }
        }
        found
    }

    /// Which copy of a pair is not damaged, or the newer one.
    fn newer_of(&self, pair: [usize; 2]) -> Option<usize> {
        pair.into_iter().filter(|i| self.found[*i].is_some()).max_by_key(|i| self.generation(*i))
    }

    fn generation(&self, index: usize) -> Option<Generation> {
        self.found[index].map(|(root, _)| root.generation)
    }
}

/// The copies of each pair.
const PAIRS: [[usize; 2]; 2] = [[0, 1], [2, 3]];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::seal::{DataKey, ImageId};

    fn root(generation: Generation) -> Root {
        Root {
            generation,
            size: 1 << 30,
            cluster_bits: 14,
            levels: 3,
            end: HostBlock::new(1000),
            newest_snapshot: 5,
            has_older: true,
            top: Entry::Zeros,
            details: Entry::Unallocated,
            space: Entry::Unallocated,
        }
    }

    fn sealers() -> [Sealer; 2] {
        let image = ImageId([1; 16]);
        [Sealer::crc32c(image), Sealer::aes_256_gcm(image, &DataKey::random())]
    }

    fn copies(sealer: &Sealer, generations: [Generation; 4]) -> [Vec<u8>; 4] {
        generations.map(|generation| root(generation).encode(sealer).0)
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for sealer in sealers() {
            let (bytes, tag) = root(7).encode(&sealer);
            assert_eq!(Root::parse(&bytes, &sealer).unwrap(), (root(7), tag));
            for bit in 0..ROOT_LEN * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(Root::parse(&flipped, &sealer).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn the_newest_root_counts_and_one_damaged_copy_is_mended() {
        for sealer in sealers() {
            let whole = copies(&sealer, [8, 8, 7, 7]);
            let roots = Roots::parse(whole.clone(), &sealer);
            assert_eq!(roots.newest().unwrap().0, root(8));
            assert_eq!((roots.to_mend().len(), roots.damaged().count()), (0, 0));
            let mut damaged = whole.clone();
            damaged[1][100] ^= 1;
            let roots = Roots::parse(damaged.clone(), &sealer);
            assert_eq!(roots.newest().unwrap().0, root(8));
            assert_eq!(roots.to_mend(), [(place_of(1), &whole[0][..])]);
            damaged[0][100] ^= 1;
            assert!(Roots::parse(damaged, &sealer).newest().is_err(), "it may have been newer");
        }
    }

    #[test]
    fn a_root_that_was_being_written_is_mended() {
        for sealer in sealers() {
            let sectors = copies(&sealer, [8, 6, 7, 7]);
            let roots = Roots::parse(sectors.clone(), &sealer);
            assert_eq!(roots.newest().unwrap().0, root(8));
            assert_eq!(roots.to_mend(), [(place_of(1), &sectors[0][..])]);
        }
    }

    #[test]
    fn numbers_beyond_all_images_are_refused() {
        let sealer = Sealer::crc32c(ImageId([1; 16]));
        let parse =
            |root: Root| Root::parse(&root.encode(&sealer).0, &sealer).map(|(root, _)| root);
        let newest = Root { levels: LEVELS_MAX, ..root(SEALED_GENERATION_MAX) };
        let largest = Root { size: crate::limits::SEALED_DISK_BYTES_MAX, ..newest };
        assert_eq!(parse(largest).unwrap(), largest);
        assert!(parse(Root { size: largest.size + 512, ..largest }).is_err());
        assert!(parse(Root { generation: newest.generation + 1, ..newest }).is_err());
    }

    #[test]
    fn copies_in_the_wrong_place_do_not_count() {
        for sealer in sealers() {
            let roots = Roots::parse(copies(&sealer, [8, 8, 10, 10]), &sealer);
            assert!(roots.newest().is_err());
        }
    }

    #[test]
    fn a_tag_is_written_and_read_back() {
        let tag = RootTag { generation: 12, tag: [0xa5; TAG_LEN] };
        assert_eq!(tag.to_string().parse(), Ok(tag));
        for text in ["", "12", "12:", "x:00", "12:a5", &format!("{tag}0")] {
            assert!(text.parse::<RootTag>().is_err(), "{text}");
        }
        let later = RootTag { generation: 13, ..tag };
        let other = RootTag { tag: [0; TAG_LEN], ..tag };
        assert!(later.may_follow(&tag) && tag.may_follow(&tag));
        assert!(!tag.may_follow(&later) && !other.may_follow(&tag));
    }
}
