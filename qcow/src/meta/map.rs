//! Guest clusters to host clusters: the L1 table in memory, the L2 tables in a slice cache.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::cache::{Lookup, SliceCache};
use super::lookaside::Lookaside;
use super::table::WordTable;
use super::{Asked, Need};
use crate::addr::{
    Geometry, GuestCluster, GuestOffset, HostCluster, HostOffset, L1Index, SliceKey,
};
use crate::error::{Error, Result};
use crate::format::entry::{CompressedExtent, ExtendedL2Entry, L1Entry, L2Entry, Mapping, Owned};
use crate::format::subcluster::Subcluster;
use crate::seeded_bugs::Bug;

/// What a stretch of the virtual disk reads as, in one image of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// This image has nothing here: the backing file shows through.
    Unallocated {
        /// First byte of the place that it has all the same, in a cluster of which other parts are there.
        host: Option<HostOffset>,
    },
    /// Zeros; `host` is where space is kept for them, if any is.
    Zero {
        /// First byte of the reserved space.
        host: Option<HostOffset>,
    },
    /// Bytes of the file, from here on.
    Data(HostOffset),
    /// One compressed cluster, or a part of it.
    Compressed {
        /// Where the compressed bytes lie.
        extent: CompressedExtent,
        /// Distance of the stretch from the start of the cluster, in bytes.
        skip: u64,
    },
}

/// Where guest data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// In the image's own file, wherever there is room, and counted.
    Image,
    /// In a file of its own, each byte at its guest offset, and not counted.
    External,
    /// As `External`, and that file equals the disk at all times.
    RawExternal,
}

impl DataPlace {
    /// Whether data lies in a file of its own.
    pub fn is_external(self) -> bool {
        self != Self::Image
    }
}

/// The tables that map the virtual disk.
#[derive(Debug)]
pub struct Map {
    geometry: Geometry,
    /// Whether bit 0 of an L2 entry means zeros (version 3).
    zero_flag: bool,
    data_place: DataPlace,
    l1: WordTable,
    slices: SliceCache,
    /// Shared with those who look without the lock.
    lookaside: Arc<Lookaside>,
    /// L1 entries whose L2 table somebody is making.
    making: HashSet<usize>,
    /// Clusters that were L2 tables and are not free yet: their slices may still be loaded.
    retired: HashSet<HostCluster>,
}

/// Where the entry of a guest cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// There is no L2 table.
    NoTable,
    /// The L2 table is shared with a snapshot, and has to be copied before a change.
    SharedTable(Slot),
    /// The L2 table is this image's own.
    OwnTable(Slot),
}

/// An L2 entry by its slice and its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The slice.
    pub key: SliceKey,
    /// The entry's index in the slice.
    pub index: usize,
}

impl Map {
    /// The map behind the L1 table `l1`.
    pub fn new(geometry: Geometry, zero_flag: bool, l1: WordTable, cache_bytes: u64) -> Self {
        let slices = SliceCache::new(cache_bytes, geometry.slice_bytes());
        let clusters = l1.words().len() as u64 * geometry.l2_entries();
        let lookaside = Arc::new(Lookaside::new(clusters));
        let (making, retired) = (HashSet::new(), HashSet::new());
        let data_place = DataPlace::Image;
        Self { geometry, zero_flag, data_place, l1, slices, lookaside, making, retired }
    }

    /// The same map of an image whose data lies at `place`.
    #[must_use]
    pub fn with_data_at(self, place: DataPlace) -> Self {
        Self { data_place: place, ..self }
    }

    /// The sizes that it goes by.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Where guest data lies.
    pub fn data_place(&self) -> DataPlace {
        self.data_place
    }

    /// What is known of the map without a lock.
    pub fn lookaside(&self) -> &Arc<Lookaside> {
        &self.lookaside
    }

    /// Whether version 3's zero flag may be used.
    pub fn has_zero_flag(&self) -> bool {
        self.zero_flag
    }

    /// What the disk reads as from `at` on, and for how long (at most `len` bytes, at least one).
    pub fn resolve(&mut self, at: GuestOffset, len: u64) -> Asked<Result<(Extent, u64)>> {
        let cluster = self.geometry.guest_cluster(at);
        let inside = self.geometry.in_guest_cluster(at);
        let slot = match self.place(cluster) {
            Ok(Place::NoTable) => {
                let nothing = Extent::Unallocated { host: None };
                return Ok(Ok((nothing, len.min(self.to_table_end(at)))));
            }
            Ok(Place::SharedTable(slot) | Place::OwnTable(slot)) => slot,
            Err(e) => return Ok(Err(e)),
        };
        let first = match self.mapping(slot)? {
            Ok(mapping) => mapping,
            Err(e) => return Ok(Err(e)),
        };
        if let Err(e) = self.check_place(cluster, first) {
            return Ok(Err(e));
        }
        if let Mapping::Divided(divided) = first {
            let index = self.geometry.subcluster_index(self.geometry.guest_subcluster(at));
            let count = divided.subclusters().count_alike(index);
            let end = u64::from(index + count) * self.geometry.subcluster_size();
            return Ok(Ok((self.extent(first, inside), (end - inside).min(len))));
        }
        let wanted = self.geometry.clusters_for(inside + len);
        let count = self.count_alike(slot, first, wanted)?;
        let reach = (self.geometry.bytes(count) - inside).min(len);
        Ok(Ok((self.extent(first, inside), reach)))
    }

    /// What the entry at `slot` means.
    pub fn mapping(&mut self, slot: Slot) -> Asked<Result<Mapping>> {
        let words = match self.slices.lookup(slot.key) {
            Lookup::Hit(slice) if self.geometry.has_extended_l2() => {
                [0, 1].map(|word| slice.word(slot.index * 2 + word))
            }
            Lookup::Hit(slice) => [slice.word(slot.index), 0],
            Lookup::Loading | Lookup::Miss => return Err(Need::L2(slot.key)),
        };
        Ok(self.parse(words))
    }

    /// What an entry of these words means; the second one counts in an image with extended entries only.
    pub fn parse(&self, [descriptor, bitmap]: [u64; 2]) -> Result<Mapping> {
        let in_image = self.data_place == DataPlace::Image;
        if self.geometry.has_extended_l2() {
            let entry = ExtendedL2Entry { descriptor, bitmap };
            return match in_image {
                true => entry.parse(self.geometry),
                false => entry.parse_external(self.geometry),
            };
        }
        match in_image {
            true => L2Entry(descriptor).parse(self.geometry, self.zero_flag),
            false => L2Entry(descriptor).parse_external(self.geometry, self.zero_flag),
        }
    }

    /// Fails where data that lies in a file of its own is not where the guest has it.
    pub fn check_place(&self, cluster: GuestCluster, mapping: Mapping) -> Result<()> {
        let host = mapping.host().filter(|_| self.data_place.is_external());
        let Some(host) = host.map(|host| host.cluster) else {
            return Ok(());
        };
        if host.get() == cluster.get() {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "External data file host cluster offset {} does not match guest cluster offset: {}",
            self.geometry.host_start(host),
            self.geometry.guest_start(cluster)
        )))
    }

    /// How many entries from `slot` on continue `first`: same kind, and consecutive host clusters. At most `count_max`,
    /// and no further than the slice.
    fn count_alike(&mut self, slot: Slot, first: Mapping, count_max: u64) -> Asked<u64> {
        let left = self.geometry.l2_entries_per_slice() - slot.index as u64;
        let mut count = 1;
        while count < count_max.min(left) {
            let next = Slot { index: slot.index + count as usize, ..slot };
            match self.mapping(next)? {
                Ok(mapping) if continues(first, mapping, count) => count += 1,
                _ => break,
            }
        }
        Ok(count)
    }

    fn extent(&self, mapping: Mapping, inside: u64) -> Extent {
        let host = |o: Owned| self.geometry.host_start(o.cluster).plus(inside);
        match mapping {
            Mapping::Unallocated => Extent::Unallocated { host: None },
            Mapping::Zero { preallocated } => Extent::Zero { host: preallocated.map(host) },
            Mapping::Data(owned) => Extent::Data(host(owned)),
            Mapping::Compressed(extent) => Extent::Compressed { extent, skip: inside },
            Mapping::Divided(divided) => {
                let index = (inside / self.geometry.subcluster_size()) as u32;
                match (divided.subclusters().get(index), divided.host().map(host)) {
                    (Subcluster::Allocated, Some(host)) => Extent::Data(host),
                    (Subcluster::Zero, host) => Extent::Zero { host },
                    (_, host) => Extent::Unallocated { host },
                }
            }
        }
    }

    /// Where the entry of `cluster` is; an error where the L1 entry is damaged.
    pub fn place(&self, cluster: GuestCluster) -> Result<Place> {
        let l1 = self.geometry.l1_index(cluster);
        let Some(&raw) = self.l1.words().get(l1.0) else {
            return Err(Error::invalid(format!("guest cluster {cluster} lies past the L1 table")));
        };
        let Some(Owned { cluster: table, copied }) = L1Entry(raw).parse(self.geometry)? else {
            return Ok(Place::NoTable);
        };
        let (key, index) = self.geometry.l2_slice(table, self.geometry.l2_index(cluster));
        let slot = Slot { key, index };
        let own = copied || Bug::SharedTableChangedInPlace.is_seeded();
        Ok(if own { Place::OwnTable(slot) } else { Place::SharedTable(slot) })
    }

    /// Changes what a guest cluster maps to; what it mapped to before. Its slice is in memory.
    pub fn replace(&mut self, slot: Slot, new: Mapping) -> Mapping {
        let old = match self.mapping(slot) {
            Ok(Ok(mapping)) => mapping,
            other => panic!("an entry was looked at before it is changed, but now: {other:?}"),
        };
        let at = self.entry_bytes(slot, 1).start;
        self.slices.change(slot.key, at, &new.encode(self.geometry));
        old
    }

    /// Whether the entries that map `len` bytes at `at`, which share a slice, are on disk as they are in memory.
    pub fn is_durable(&self, at: GuestOffset, len: u64) -> bool {
        let cluster = self.geometry.guest_cluster(at);
        let count = self.geometry.clusters_for(self.geometry.in_guest_cluster(at) + len);
        if self.l1.is_word_dirty(self.geometry.l1_index(cluster).0) {
            return false;
        }
        match self.place(cluster) {
            Ok(Place::OwnTable(slot)) => {
                !self.slices.is_range_dirty(slot.key, self.entry_bytes(slot, count))
            }
            _ => true,
        }
    }

    /// Where in their slice `count` entries from `slot` on lie.
    fn entry_bytes(&self, slot: Slot, count: u64) -> Range<usize> {
        let bytes = self.geometry.l2_entry_bytes() as usize;
        slot.index * bytes..(slot.index + count as usize) * bytes
    }

    /// Bytes from `at` to the end of what its L2 table covers.
    fn to_table_end(&self, at: GuestOffset) -> u64 {
        let index = self.geometry.l2_index(self.geometry.guest_cluster(at)).0 as u64;
        let clusters = self.geometry.l2_entries() - index;
        self.geometry.bytes(clusters) - self.geometry.in_guest_cluster(at)
    }

    /// Claims the making of the L2 table behind `l1`; false where somebody is at it.
    pub fn begin_table(&mut self, l1: L1Index) -> bool {
        self.making.insert(l1.0)
    }

    /// Ends the making of a table, hooked in or not.
    pub fn end_table(&mut self, l1: L1Index) {
        self.making.remove(&l1.0);
    }

    /// The L2 table behind `l1`.
    pub fn table(&self, l1: L1Index) -> Result<Option<Owned>> {
        L1Entry(self.l1.words()[l1.0]).parse(self.geometry)
    }

    /// Points `l1` to the table at `table`, whose bytes are on disk; what it pointed to before.
    pub fn link_table(&mut self, l1: L1Index, table: HostCluster) -> Result<Option<Owned>> {
        let old = self.unlink_table(l1)?;
        self.l1.set(l1.0, L1Entry::to_table(self.geometry, table, true).0);
        Ok(old)
    }

    /// Makes `l1` name no table; what it named before.
    pub fn unlink_table(&mut self, l1: L1Index) -> Result<Option<Owned>> {
        self.lookaside.forget_all();
        let old = self.table(l1)?;
        self.retired.extend(old.map(|old| old.cluster));
        self.l1.set(l1.0, L1Entry::EMPTY.0);
        Ok(old)
    }

    /// Whether anything of the table in `cluster` waits to be written, or is kept in memory.
    pub fn is_table_in_use(&self, cluster: HostCluster) -> bool {
        self.slices.is_table_in_use(cluster, self.geometry.slices_per_table())
    }

    /// Forgets the L2 table that `cluster` may have been: it is free, and whoever claims it next may make it a table.
    /// Whether it was one.
    pub fn forget_table(&mut self, cluster: HostCluster) -> bool {
        let retired = self.retired.remove(&cluster);
        if retired {
            self.slices.forget_table(cluster, self.geometry.slices_per_table());
        }
        retired
    }

    /// Whether `cluster` is, or was and is not free yet, an L2 table of which something may be in memory.
    pub fn knows_table(&self, cluster: HostCluster) -> bool {
        self.retired.contains(&cluster) || self.slices.has_table(cluster)
    }

    /// The L1 table.
    pub fn l1(&self) -> &WordTable {
        &self.l1
    }

    /// The L1 table, for flushing.
    pub fn l1_mut(&mut self) -> &mut WordTable {
        &mut self.l1
    }

    /// Goes on with a longer L1 table at `offset`, where `on_disk` lies already. Words that have changed since then are
    /// written there by the next flush.
    pub fn switch_l1(&mut self, offset: HostOffset, on_disk: Vec<u64>) {
        let mut table = WordTable::new(offset, on_disk);
        for (index, &word) in self.l1.words().iter().enumerate() {
            if table.words()[index] != word {
                table.set(index, word);
            }
        }
        self.l1 = table;
    }

    /// Goes on with another L1 table, which is on disk, and whose entries are all empty as those of this one are by now.
    pub fn replace_l1(&mut self, l1: WordTable) {
        self.lookaside.forget_all();
        self.l1 = l1;
    }

    /// Goes on with `l1`, which is on disk; the L2 tables may have changed, too. Nobody is using any of them.
    pub fn restart(&mut self, l1: WordTable) {
        assert!(!self.is_dirty() && self.making.is_empty(), "a map starts anew when it is clean");
        self.lookaside.forget_all();
        self.l1 = l1;
        self.slices.clear();
        self.retired.clear();
    }

    /// The slice cache, for loading and flushing.
    pub fn slices(&self) -> &SliceCache {
        &self.slices
    }

    /// The slice cache, for loading and flushing.
    pub fn slices_mut(&mut self) -> &mut SliceCache {
        &mut self.slices
    }

    /// Whether anything waits to be written.
    pub fn is_dirty(&self) -> bool {
        self.slices.is_dirty() || self.l1.is_dirty()
    }
}

/// Whether `next`, `distance` clusters after `first`, can be read or written in one go with it.
fn continues(first: Mapping, next: Mapping, distance: u64) -> bool {
    let follows = |a: Owned, b: Owned| {
        a.copied == b.copied && a.cluster.checked_add(distance) == Some(b.cluster)
    };
    match (first, next) {
        (Mapping::Unallocated, Mapping::Unallocated)
        | (Mapping::Zero { preallocated: None }, Mapping::Zero { preallocated: None }) => true,
        (Mapping::Zero { preallocated: Some(a) }, Mapping::Zero { preallocated: Some(b) })
        | (Mapping::Data(a), Mapping::Data(b)) => follows(a, b),
        _ => false,
    }
}
