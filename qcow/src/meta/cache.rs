//! A bounded cache of table slices: loaded once however many ask, never evicted while changed or in use, and not emptied by
//! a pass over the whole disk.

use std::collections::BTreeSet;
use std::ops::Range;

use super::eviction::{Candidate, Eviction};
use crate::addr::{AddressMap, HostCluster, SliceKey};
use crate::limits::SECTOR_BYTES;
use crate::seeded_bugs::Bug;

/// Fewest slices a cache holds, so that one request can always make progress.
const SLICE_COUNT_MIN: usize = 16;

/// What the cache knows of a slice.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// In memory.
    Hit(&'a mut Slice),
    /// Somebody is loading it.
    Loading,
    /// Nobody has asked for it yet.
    Miss,
}

/// The bytes of one slice as they are to be on disk.
#[derive(Debug)]
pub struct Slice {
    bytes: Box<[u8]>,
    /// One bit per sector that differs from what was last handed to a flush.
    dirty: u8,
    /// A flush is writing it; a reload from disk could see the past.
    writing: bool,
    pins: u32,
    recently_used: bool,
}

#[derive(Debug)]
enum Entry {
    Loading,
    Ready(Slice),
}

/// Changed sectors of one slice, copied for a flush.
#[derive(Debug)]
pub struct DirtySectors {
    /// The slice.
    pub key: SliceKey,
    /// Distance of the first byte from the start of the slice.
    pub offset: u64,
    /// Whole sectors, from the first changed one to the last.
    pub bytes: Vec<u8>,
    mask: u8,
}

/// Slices by their place in the file.
#[derive(Debug)]
pub struct SliceCache {
    entries: AddressMap<SliceKey, Entry>,
    /// How many entries each table has.
    tables: AddressMap<HostCluster, u32>,
    eviction: Eviction,
    dirty: BTreeSet<SliceKey>,
    count_max: usize,
    slice_bytes: usize,
}

impl Slice {
    fn new(bytes: Box<[u8]>) -> Self {
        Self { bytes, dirty: 0, writing: false, pins: 0, recently_used: true }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The big-endian word at `index`, counted in words of eight bytes.
    pub fn word(&self, index: usize) -> u64 {
        let (at, mut word) = (index * 8, [0; 8]);
        word.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_be_bytes(word)
    }

    fn is_evictable(&self) -> bool {
        let dirty = self.dirty != 0 && !Bug::DirtySliceEvicted.is_seeded();
        let writing = self.writing && !Bug::LoadedWhileWritten.is_seeded();
        !dirty && !writing && self.pins == 0
    }
}

impl SliceCache {
    /// An empty cache that keeps about `bytes_max` bytes in slices of `slice_bytes`.
    pub fn new(bytes_max: u64, slice_bytes: u64) -> Self {
        let count_max = usize::try_from(bytes_max / slice_bytes).unwrap_or(usize::MAX);
        let count_max = count_max.max(SLICE_COUNT_MIN);
        Self {
            entries: AddressMap::default(),
            tables: AddressMap::default(),
            eviction: Eviction::new(count_max),
            dirty: BTreeSet::new(),
            count_max,
            slice_bytes: slice_bytes as usize,
        }
    }

    /// Looks for a slice.
    pub fn lookup(&mut self, key: SliceKey) -> Lookup<'_> {
        match self.entries.get_mut(&key) {
            Some(Entry::Ready(slice)) => {
                slice.recently_used = true;
                Lookup::Hit(slice)
            }
            Some(Entry::Loading) => Lookup::Loading,
            None => Lookup::Miss,
        }
    }

    /// The slice, if it is in memory.
    pub fn get(&mut self, key: SliceKey) -> Option<&mut Slice> {
        match self.lookup(key) {
            Lookup::Hit(slice) => Some(slice),
            Lookup::Loading | Lookup::Miss => None,
        }
    }

    /// Promises that the caller will load a missing slice and report with [`Self::finish_load`].
    pub fn begin_load(&mut self, key: SliceKey) {
        let before = self.put(key, Entry::Loading);
        assert!(before.is_none(), "a slice is loaded once");
    }

    /// Ends a load: with the slice's bytes, or with nothing where the load failed.
    pub fn finish_load(&mut self, key: SliceKey, bytes: Option<Vec<u8>>) {
        // A slice that was forgotten during its load belongs to a table that is no longer one.
        if !matches!(self.entries.get(&key), Some(Entry::Loading)) {
            return;
        }
        match bytes {
            Some(bytes) => self.insert(key, bytes.into_boxed_slice()),
            None => drop(self.take(key)),
        }
    }

    /// Puts a slice of a new, empty table in memory; its zeros are on disk already.
    pub fn insert_zeroed(&mut self, key: SliceKey) {
        self.insert(key, vec![0; self.slice_bytes].into_boxed_slice());
    }

    fn insert(&mut self, key: SliceKey, bytes: Box<[u8]>) {
        assert_eq!(bytes.len(), self.slice_bytes);
        self.make_room();
        self.put(key, Entry::Ready(Slice::new(bytes)));
        self.eviction.admit(key);
    }

    fn put(&mut self, key: SliceKey, entry: Entry) -> Option<Entry> {
        let before = self.entries.insert(key, entry);
        if before.is_none() {
            *self.tables.entry(key.table).or_insert(0) += 1;
        }
        before
    }

    fn take(&mut self, key: SliceKey) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        let count = self.tables.get_mut(&key.table).expect("a table with an entry is counted");
        *count -= 1;
        if *count == 0 {
            self.tables.remove(&key.table);
        }
        Some(entry)
    }

    /// Whether any slice of the table in `cluster` is in memory or being loaded.
    pub fn has_table(&self, cluster: HostCluster) -> bool {
        self.tables.contains_key(&cluster)
    }

    /// Forgets everything about a table of up to `slices` slices: its cluster is free.
    pub fn forget_table(&mut self, table: HostCluster, slices: u32) {
        for index in 0..slices {
            let key = SliceKey { table, index };
            if let Some(Entry::Ready(slice)) = self.take(key) {
                assert!(slice.is_evictable(), "a table that is free is not in use");
            }
        }
    }

    /// Forgets everything: the tables have changed on disk. Nothing is in use or waits to be written.
    pub fn clear(&mut self) {
        let idle = |entry: &Entry| matches!(entry, Entry::Ready(slice) if slice.is_evictable());
        assert!(self.entries.values().all(idle), "only a cache that nobody uses is cleared");
        self.entries.clear();
        self.tables.clear();
        self.eviction.clear();
    }

    /// Overwrites bytes of a slice that is in memory.
    pub fn change(&mut self, key: SliceKey, offset: usize, new: &[u8]) {
        let Some(slice) = self.get(key) else {
            panic!("a change to {key:?}, which is not in memory")
        };
        slice.bytes[offset..offset + new.len()].copy_from_slice(new);
        let was_clean = slice.dirty == 0;
        slice.dirty |= 1 << (offset as u64 / SECTOR_BYTES);
        if was_clean {
            self.dirty.insert(key);
        }
    }

    /// Keeps a slice that is in memory there until [`Self::unpin`].
    pub fn pin(&mut self, key: SliceKey) {
        let slice = self.get(key).expect("only a slice in memory can be pinned");
        slice.pins += 1;
    }

    /// Takes back one [`Self::pin`].
    pub fn unpin(&mut self, key: SliceKey) {
        let slice = self.get(key).expect("a pinned slice stays in memory");
        slice.pins -= 1;
    }

    /// Whether any slice waits to be written.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whether any of these bytes of a slice may differ from the disk.
    pub fn is_range_dirty(&self, key: SliceKey, bytes: Range<usize>) -> bool {
        let Some(Entry::Ready(slice)) = self.entries.get(&key) else { return false };
        let sectors =
            bytes.start / SECTOR_BYTES as usize..bytes.end.div_ceil(SECTOR_BYTES as usize);
        slice.writing || sectors.into_iter().any(|sector| slice.dirty >> sector & 1 == 1)
    }

    /// Whether anything of a table of up to `slices` slices waits to be written, or somebody keeps it in memory.
    pub fn is_table_in_use(&self, table: HostCluster, slices: u32) -> bool {
        (0..slices).any(|index| match self.entries.get(&SliceKey { table, index }) {
            Some(Entry::Ready(slice)) => !slice.is_evictable(),
            Some(Entry::Loading) | None => false,
        })
    }

    /// Whether unwritten slices fill half of the cache.
    pub fn is_crowded(&self) -> bool {
        self.dirty.len() >= self.count_max / 2
    }

    /// Copies every changed sector for a flush, in file order; each must be reported with [`Self::written`].
    pub fn take_dirty(&mut self) -> Vec<DirtySectors> {
        let keys = std::mem::take(&mut self.dirty);
        keys.into_iter().map(|key| self.take_sectors(key)).collect()
    }

    fn take_sectors(&mut self, key: SliceKey) -> DirtySectors {
        let slice = self.get(key).expect("a changed slice stays in memory");
        let mask = std::mem::take(&mut slice.dirty);
        slice.writing = true;
        let sector = SECTOR_BYTES as usize;
        let first = mask.trailing_zeros() as usize * sector;
        let end = (8 - mask.leading_zeros() as usize) * sector;
        let bytes = slice.bytes[first..end].to_vec();
        DirtySectors { key, offset: first as u64, bytes, mask }
    }

    /// Ends the write of sectors that [`Self::take_dirty`] gave out; after a failure they are as changed as before.
    pub fn written(&mut self, sectors: &DirtySectors, success: bool) {
        let Some(slice) = self.get(sectors.key) else { return };
        slice.writing = false;
        if !success {
            slice.dirty |= sectors.mask;
            self.dirty.insert(sectors.key);
        }
    }

    /// Evicts until there is room for one more slice. Where everything is in use, the cache grows for a while.
    fn make_room(&mut self) {
        let mut turns = self.eviction.turns();
        while self.entries.len() >= self.count_max && turns > 0 {
            turns -= 1;
            let Some(candidate) = self.eviction.next() else { break };
            let Candidate { key, proven } = candidate;
            match self.entries.get_mut(&key) {
                Some(Entry::Ready(slice))
                    if slice.is_evictable() && !(proven && slice.recently_used) =>
                {
                    self.take(key);
                    self.eviction.left(candidate);
                }
                Some(Entry::Ready(slice)) => {
                    slice.recently_used = false;
                    self.eviction.keep(candidate);
                }
                // Forgotten, and perhaps being loaded again: it is admitted anew when it arrives.
                Some(Entry::Loading) | None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(table: u64, index: u32) -> SliceKey {
        SliceKey { table: HostCluster::new(table), index }
    }

    #[test]
    fn a_table_is_there_as_long_as_any_of_its_slices() {
        let mut cache = SliceCache::new(0, 512);
        let has = |cache: &SliceCache| cache.has_table(HostCluster::new(7));
        cache.begin_load(key(7, 0));
        assert!(has(&cache), "being loaded");
        cache.finish_load(key(7, 0), None);
        assert!(!has(&cache), "the load failed");
        cache.begin_load(key(7, 1));
        cache.finish_load(key(7, 1), Some(vec![0; 512]));
        cache.insert_zeroed(key(7, 2));
        assert!(has(&cache));
        for table in 100..100 + 4 * SLICE_COUNT_MIN as u64 {
            cache.insert_zeroed(key(table, 0));
        }
        assert!(!has(&cache), "evicted");
        cache.insert_zeroed(key(7, 3));
        cache.forget_table(HostCluster::new(7), 8);
        assert!(!has(&cache), "forgotten");
    }

    /// Looks `key` up, and loads it where it is missing; whether it was there.
    fn use_slice(cache: &mut SliceCache, key: SliceKey) -> bool {
        if cache.get(key).is_some() {
            return true;
        }
        cache.begin_load(key);
        cache.finish_load(key, Some(vec![0; 512]));
        false
    }

    /// A small generator, for the same numbers each time.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn a_pass_over_the_disk_leaves_what_is_used_again_and_again() {
        const COUNT_MAX: u64 = 64;
        let hot_count = COUNT_MAX / 2;
        let mut cache = SliceCache::new(COUNT_MAX * 512, 512);
        let (mut state, mut uses, mut hits) = (1, 0, 0);
        for step in 0..50 * COUNT_MAX {
            // Each slice of the pass is used by many requests, and never again.
            for _ in 0..512 {
                use_slice(&mut cache, key(1000 + step, 0));
            }
            // A hot slice has its turn long after it would have been driven out.
            if step % 4 == 0 {
                let hit = use_slice(&mut cache, key(random(&mut state) % hot_count, 0));
                if step > 20 * COUNT_MAX {
                    uses += 1;
                    hits += u64::from(hit);
                }
            }
        }
        assert!(hits * 10 > uses * 9, "{hits} of {uses}");
    }

    #[test]
    fn what_is_in_use_stays_and_the_rest_fits() {
        for seed in 1..=200 {
            let mut cache = SliceCache::new(32 * 512, 512);
            let (mut state, mut pinned, mut dirty) = (seed, Vec::new(), Vec::new());
            for _ in 0..2000 {
                let key = key(random(&mut state) % 100, 0);
                use_slice(&mut cache, key);
                match random(&mut state) % 16 {
                    0 if pinned.len() < 10 => {
                        cache.pin(key);
                        pinned.push(key);
                    }
                    1 if dirty.len() < 10 => {
                        cache.change(key, 0, &[1]);
                        dirty.push(key);
                    }
                    2 => pinned.drain(..).for_each(|key| cache.unpin(key)),
                    3 => {
                        let taken = cache.take_dirty();
                        taken.iter().for_each(|sectors| cache.written(sectors, true));
                        dirty.clear();
                    }
                    _ => {}
                }
                let is_there = |key| matches!(cache.entries.get(key), Some(Entry::Ready(_)));
                assert!(pinned.iter().chain(&dirty).all(is_there), "seed {seed}");
                assert!(cache.entries.len() <= 32, "seed {seed}: {}", cache.entries.len());
            }
        }
    }
}
