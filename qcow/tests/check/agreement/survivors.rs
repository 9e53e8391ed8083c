//! What of a disk and its snapshots can still be found: each entry that makes sense, by way of tables that make sense.
//!
//! A reader of its own, which knows nothing of the engine.

use std::collections::BTreeMap;
use std::ops::Range;

use super::anatomy::{Anatomy, OFFSET, word};

/// Names an entry: the active tables or those of a snapshot, and its position there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    snapshot: Option<Vec<u8>>,
    entry: u64,
}

/// An entry that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    /// Without the flag that a repair may turn round, and without what means nothing.
    word: u64,
    bitmap: u64,
    /// The bytes of the image file that it names.
    bytes: Range<u64>,
}

pub struct Survivors {
    cluster: u64,
    found: BTreeMap<Key, Mapping>,
}

impl Survivors {
    pub fn of(image: &[u8], data_is_elsewhere: bool) -> Self {
        let anatomy = Anatomy::of(image);
        let mut walk = Walk {
            image,
            metadata: anatomy.metadata(),
            anatomy,
            data_is_elsewhere,
            found: BTreeMap::new(),
        };
        let size = word(image, 24, 8);
        walk.table(None, word(image, 40, 8), word(image, 36, 4), size);
        let snapshots = walk.anatomy.snapshots.clone();
        for at in snapshots {
            let extra = word(image, at + 36, 4) as usize;
            let (id, name) = (word(image, at + 12, 2) as usize, word(image, at + 14, 2) as usize);
            let names = image.get(at + 40 + extra..).and_then(|rest| rest.get(..id + name));
            let Some(names) = names.filter(|_| !data_is_elsewhere) else { continue };
            walk.table(Some(names), word(image, at, 8), word(image, at + 8, 4), u64::MAX);
        }
        Self { cluster: walk.anatomy.cluster as u64, found: walk.found }
    }

    /// Panics unless all of them are in `after` as they are here, and the bytes they name, too.
    pub fn must_be_in(&self, after: &Self, old: &[u8], new: &[u8]) {
        for (key, mapping) in &self.found {
            let now = after.found.get(key);
            assert_eq!(now, Some(mapping), "{key:?}");
            let of = |image: &[u8]| {
                let clip = |at: u64| (at as usize).min(image.len());
                let mut bytes = image[clip(mapping.bytes.start)..clip(mapping.bytes.end)].to_vec();
                bytes.resize((mapping.bytes.end - mapping.bytes.start) as usize, 0);
                bytes
            };
            assert!(of(old) == of(new), "the bytes of {key:?} at {:?}", mapping.bytes);
        }
    }

    /// Where the active ones are on the disk.
    pub fn active_offsets(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let active = self.found.keys().filter(|key| key.snapshot.is_none());
        active.map(|key| {
            (key.entry * self.cluster) as usize..((key.entry + 1) * self.cluster) as usize
        })
    }
}

struct Walk<'i> {
    image: &'i [u8],
    anatomy: Anatomy,
    metadata: Vec<Range<usize>>,
    data_is_elsewhere: bool,
    found: BTreeMap<Key, Mapping>,
}

impl Walk<'_> {
    fn table(&mut self, snapshot: Option<&[u8]>, at: u64, entries: u64, size: u64) {
        let cluster = self.anatomy.cluster as u64;
        let inside = |end: u64| end <= self.image.len() as u64;
        let is_table = at.is_multiple_of(cluster)
            && entries <= 4 << 20
            && at.checked_add(entries * 8).is_some_and(inside);
        // Two snapshots of one name are not told apart.
        let is_known = self.found.keys().any(|key| key.snapshot.as_deref() == snapshot);
        if !is_table || is_known {
            return;
        }
        let words = if self.anatomy.extended { 2 } else { 1 };
        let per_table = cluster / (8 * words);
        let needed = size.div_ceil(cluster).div_ceil(per_table);
        for l1 in 0..entries.min(needed) {
            let table = word(self.image, (at + l1 * 8) as usize, 8) & OFFSET;
            if table == 0
                || !table.is_multiple_of(cluster)
                || table + cluster > self.image.len() as u64
            {
                continue;
            }
            for l2 in 0..per_table {
                let at = (table + l2 * words * 8) as usize;
                let bitmap = if words == 2 { word(self.image, at + 8, 8) } else { 0 };
                if let Some(mapping) = self.mapping(word(self.image, at, 8), bitmap) {
                    let entry = l1 * per_table + l2;
                    self.found
                        .insert(Key { snapshot: snapshot.map(<[u8]>::to_vec), entry }, mapping);
                }
            }
        }
    }

    fn mapping(&self, entry: u64, bitmap: u64) -> Option<Mapping> {
        let cluster = self.anatomy.cluster as u64;
        if entry & 1 << 62 != 0 {
            let bits = cluster.trailing_zeros() - 8;
            let offset = entry & ((1 << (62 - bits)) - 1);
            let sectors = (entry >> (62 - bits)) & ((1 << bits) - 1);
            let bytes = offset..offset + (sectors + 1) * 512 - offset % 512;
            let word = entry & !(1 << 63);
            let is_sound = !self.data_is_elsewhere && self.is_data(&bytes);
            return is_sound.then_some(Mapping { word, bitmap: 0, bytes });
        }
        let zero = if self.anatomy.extended || self.anatomy.version < 3 { 0 } else { entry & 1 };
        let offset = entry & OFFSET;
        let word = offset | zero;
        let contradicts = bitmap >> 32 & bitmap != 0 || offset == 0 && bitmap & 0xffff_ffff != 0;
        // What version 2 makes of bit 0 is another matter.
        let is_odd = self.anatomy.version < 3 && entry & 1 != 0;
        if contradicts || is_odd || (self.data_is_elsewhere && offset == 0) {
            return None;
        }
        if offset == 0 || self.data_is_elsewhere {
            let is_sound = offset.is_multiple_of(cluster);
            return is_sound.then_some(Mapping { word, bitmap, bytes: 0..0 });
        }
        let bytes = offset..offset + cluster;
        let is_sound = offset.is_multiple_of(cluster) && self.is_data(&bytes);
        let bytes = if zero != 0 { 0..0 } else { bytes };
        is_sound.then_some(Mapping { word, bitmap, bytes })
    }

    /// Whether these bytes are in the file, the last cluster perhaps in part, and are nothing but data.
    fn is_data(&self, bytes: &Range<u64>) -> bool {
        let cluster = self.anatomy.cluster as u64;
        let clusters = bytes.start / cluster * cluster..bytes.end.next_multiple_of(cluster);
        let is_met = |place: &Range<usize>| {
            !place.is_empty()
                && (place.start as u64) < clusters.end
                && clusters.start < place.end as u64
        };
        let is_inside =
            bytes.end < self.anatomy.len as u64 + cluster && bytes.start < self.anatomy.len as u64;
        is_inside && !self.metadata.iter().any(is_met)
    }
}
