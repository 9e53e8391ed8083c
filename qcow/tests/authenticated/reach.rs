//! What the newest root of a file leads to: found without the engine, from the format alone.

use std::collections::BTreeMap;
use std::ops::Range;

use qcow::addr::HostBlock;
use qcow::crypt::seal::{Label, SealKind, Sealer};
use qcow::crypt::sealed_slots::{KeySlots, SLOTS_LEN};
use qcow::format::sealed::details::Details;
use qcow::format::sealed::entry::{Entry, NODE_ENTRIES, Node, Stored};
use qcow::format::sealed::header::SealedHeader;
use qcow::format::sealed::root::{ROOT_LEN, Root, RootTag, place_of};
use qcow::format::sealed::{BLOCK_LEN, DETAILS_LEVEL, KEY_SLOTS_BLOCK, SPACE_LEVEL, start_of};

use crate::shape::key;

/// All bytes that count.
pub struct Reach {
    pub root: RootTag,
    /// Places that are led to, each with its length, in the order of the file.
    pub places: Vec<Range<usize>>,
    /// How many bytes of a block are led to; they are its first ones.
    blocks: BTreeMap<usize, usize>,
    sealer: Sealer,
}

impl Reach {
    /// What the newest root of the sound image in `bytes` leads to.
    pub fn of(bytes: &[u8]) -> Self {
        let header = SealedHeader::parse(bytes).expect("a header");
        let sealer = match header.kind {
            SealKind::Crc32c => Sealer::crc32c(header.image),
            SealKind::Aes256Gcm => {
                let slots = &bytes[start_of(KEY_SLOTS_BLOCK).get() as usize..][..SLOTS_LEN];
                let slots = KeySlots::parse(header.image, slots).expect("key slots");
                Sealer::aes_256_gcm(header.image, &slots.unlock(&key()).expect("the key").1)
            }
        };
        let roots = (0..4).filter_map(|index| Root::parse(root_sector(bytes, index), &sealer).ok());
        let (root, tag) = roots.max_by_key(|(root, _)| root.generation).expect("a root");
        let mut walk = Walk { bytes, sealer: &sealer, header, end: root.end, places: Vec::new() };
        walk.tree(&root.top, root.levels, 0);
        walk.leaf(&root.space, SPACE_LEVEL, 0);
        if let Some(details) = walk.leaf(&root.details, DETAILS_LEVEL, 0) {
            let details = Details::parse(&details, header.cluster_len(), root.end);
            for snapshot in details.expect("details").snapshots {
                walk.tree(&snapshot.top, snapshot.levels, 0);
            }
        }
        let mut places = walk.places;
        places.sort_by_key(|place| place.start);
        places.dedup();
        let mut blocks = BTreeMap::new();
        for place in &places {
            for at in place.clone().step_by(BLOCK_LEN as usize) {
                let len = (place.end - at).min(BLOCK_LEN as usize);
                blocks.insert(at / BLOCK_LEN as usize, len);
            }
        }
        Self { root: tag, places, blocks, sealer }
    }

    /// How many bytes of a block count, its first ones.
    pub fn of_block(&self, block: usize) -> usize {
        self.blocks.get(&block).copied().unwrap_or(0)
    }

    /// Whether a copy of a root is whole and in its place.
    pub fn is_root(&self, sector: &[u8], index: usize) -> bool {
        let root = Root::parse(sector, &self.sealer);
        root.is_ok_and(|(root, _)| root.places().contains(&place_of(index)))
    }
}

/// The sector of a copy of a root.
pub fn root_sector(bytes: &[u8], index: usize) -> &[u8] {
    &bytes[place_of(index).get() as usize..][..ROOT_LEN]
}

struct Walk<'b> {
    bytes: &'b [u8],
    sealer: &'b Sealer,
    header: SealedHeader,
    end: HostBlock,
    places: Vec<Range<usize>>,
}

impl Walk<'_> {
    fn tree(&mut self, entry: &Entry, level: u8, index: u64) {
        let Some(plain) = self.leaf(entry, level, index) else { return };
        if level == 0 {
            return;
        }
        let node = Node::parse(&plain, level, self.header.cluster_len(), self.end);
        let first = index * NODE_ENTRIES as u64;
        for (index, entry) in (first..).zip(&node.expect("a node").0) {
            self.tree(entry, level - 1, index);
        }
    }

    fn leaf(&mut self, entry: &Entry, level: u8, index: u64) -> Option<Vec<u8>> {
        let Entry::Stored(Stored { place, len, seal, .. }) = entry else { return None };
        let start = start_of(*place).get() as usize;
        let place = start..start + *len as usize;
        let mut plain = self.bytes[place.clone()].to_vec();
        self.places.push(place);
        let opens = self.sealer.open(Label { level, index, len: *len }, seal, &mut plain);
        assert!(opens, "level {level}, index {index} of a sound image");
        Some(plain)
    }
}
