//! A bounded cache of table slices: loaded once however many ask, never evicted while changed or in use, and not emptied by
//! a pass over the whole disk.

use std::collections::BTreeSet;
use std::ops::Range;

use super::eviction::{Eviction, Stay, Turn};
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
    stay: Stay,
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
    /// Which slices are to leave first. Those that have been forgotten are still among them.
    eviction: Eviction,
    /// At most so many have been forgotten since they were taken out of the order.
    forgotten: usize,
    dirty: BTreeSet<SliceKey>,
    count_max: usize,
    slice_bytes: usize,
}

impl Slice {
    fn new(bytes: Box<[u8]>, stay: Stay) -> Self {
        Self { bytes, dirty: 0, writing: false, pins: 0, stay }
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
            forgotten: 0,
            dirty: BTreeSet::new(),
            count_max,
            slice_bytes: slice_bytes as usize,
        }
    }

    /// Looks for a slice.
    pub fn lookup(&mut self, key: SliceKey) -> Lookup<'_> {
        match self.entries.get_mut(&key) {
            Some(Entry::Ready(slice)) => {
                slice.stay.note_use(self.eviction.now());
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

    /// The slice's bytes, if it is in memory; no use of it as far as its eviction goes.
    pub fn peek(&self, key: SliceKey) -> Option<&[u8]> {
        match self.entries.get(&key)? {
            Entry::Ready(slice) => Some(slice.bytes()),
            Entry::Loading => None,
        }
    }

    /// As [`Self::get`], but no use of the slice as far as its eviction goes.
    fn ready(&mut self, key: SliceKey) -> Option<&mut Slice> {
        match self.entries.get_mut(&key) {
            Some(Entry::Ready(slice)) => Some(slice),
            Some(Entry::Loading) | None => None,
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
        // Its load has kept a place for it.
        self.take(key);
        self.make_room();
        let stay = self.eviction.admit(key);
        self.put(key, Entry::Ready(Slice::new(bytes, stay)));
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
                self.forgotten += 1;
            }
        }
        if self.forgotten > self.count_max {
            self.sweep();
        }
    }

    /// Takes slices that have been forgotten out of the order in which they would leave.
    fn sweep(&mut self) {
        let entries = &self.entries;
        self.eviction.sweep(|waiting| {
            matches!(entries.get(&waiting.key), Some(Entry::Ready(slice)) if slice.stay.is_of(waiting))
        });
        self.forgotten = 0;
    }

    /// Forgets everything: the tables have changed on disk. Nothing is in use or waits to be written.
    pub fn clear(&mut self) {
        let idle = |entry: &Entry| matches!(entry, Entry::Ready(slice) if slice.is_evictable());
        assert!(self.entries.values().all(idle), "only a cache that nobody uses is cleared");
        self.entries.clear();
        self.tables.clear();
        self.eviction.clear();
        self.forgotten = 0;
    }

    /// Overwrites bytes of a slice that is in memory.
    pub fn change(&mut self, key: SliceKey, offset: usize, new: &[u8]) {
        let Some(slice) = self.ready(key) else {
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
        let slice = self.ready(key).expect("only a slice in memory can be pinned");
        slice.pins += 1;
    }

    /// Takes back one [`Self::pin`].
    pub fn unpin(&mut self, key: SliceKey) {
        let slice = self.ready(key).expect("a pinned slice stays in memory");
        slice.pins -= 1;
        self.let_wait(key);
    }

    /// Lets a slice that may no longer be in use have its turn to leave again.
    fn let_wait(&mut self, key: SliceKey) {
        if let Some(Entry::Ready(slice)) = self.entries.get_mut(&key)
            && slice.stay.is_aside()
            && slice.is_evictable()
        {
            self.eviction.wait_again(key, &mut slice.stay);
        }
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
        let slice = self.ready(key).expect("a changed slice stays in memory");
        let mask = std::mem::take(&mut slice.dirty);
        slice.writing = true;
        let sector = SECTOR_BYTES as usize;
        let first = mask.trailing_zeros() as usize * sector;
        let end = (8 - mask.leading_zeros() as usize) * sector;
        let bytes = slice.bytes[first..end].to_vec();
        if Bug::LoadedWhileWritten.is_seeded() {
            self.let_wait(key);
        }
        DirtySectors { key, offset: first as u64, bytes, mask }
    }

    /// Ends the write of sectors that [`Self::take_dirty`] gave out; after a failure they are as changed as before.
    pub fn written(&mut self, sectors: &DirtySectors, success: bool) {
        let Some(slice) = self.ready(sectors.key) else { return };
        slice.writing = false;
        if !success {
            slice.dirty |= sectors.mask;
            self.dirty.insert(sectors.key);
        }
        self.let_wait(sectors.key);
    }

    /// Evicts until there is room for one more slice. Where everything is in use, the cache grows for a while.
    fn make_room(&mut self) {
        while self.entries.len() >= self.count_max {
            let Some(waiting) = self.eviction.next() else { break };
            // Else it was forgotten, and is perhaps being loaded again or has come anew.
            if let Some(Entry::Ready(slice)) = self.entries.get_mut(&waiting.key)
                && slice.stay.is_of(waiting)
            {
                let is_in_use = !slice.is_evictable();
                if self.eviction.take_turn(waiting, &mut slice.stay, is_in_use) == Turn::Leaves {
                    self.take(waiting.key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
