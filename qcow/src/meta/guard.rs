//! What every change passes before it reaches a table or the disk. These checks stay on in every build: damage that is
//! there already must fail the request that meets it, and never spread.
//!
//! Each takes one lookup per cluster, and nothing is loaded for it.

use super::Meta;
use super::map::Slot;
use super::regions::Kind;
use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::error::{Error, Result};
use crate::format::entry::Mapping;

impl Meta {
    /// Fails unless the table in `cluster` lies inside the file.
    pub fn check_inside(&self, geometry: Geometry, kind: Kind, cluster: HostCluster) -> Result<()> {
        if self.alloc.is_inside_file(cluster) {
            return Ok(());
        }
        let at = geometry.host_start(cluster);
        Err(Error::corrupt(format!("{kind} at {at} lies past the end of the file")))
    }

    /// Fails unless data may lie in `len` bytes at `host`: inside the file, and clear of metadata. A file that holds
    /// nothing but data has no wrong places, other than for the guest cluster: see [`super::map::Map::check_place`].
    pub fn check_data(&self, geometry: Geometry, host: HostOffset, len: u64) -> Result<()> {
        if self.map.data_place().is_external() {
            return Ok(());
        }
        self.check_place(geometry, "data", host, len)
    }

    fn check_place(
        &self,
        geometry: Geometry,
        what: &str,
        host: HostOffset,
        len: u64,
    ) -> Result<()> {
        let (first, count) = geometry.host_span(host, len);
        if !self.alloc.is_inside_file(first.plus(count - 1)) {
            return Err(Error::corrupt(format!("{what} at {host} lies past the end of the file")));
        }
        self.regions.check_clear(first, count).map_err(|e| e.context(format!("{what} at {host}")))
    }

    /// Fails unless what an L2 entry names can be what a change replaces: data inside the file and clear of metadata.
    pub fn check_mapping(&self, geometry: Geometry, mapping: Mapping) -> Result<()> {
        if let Mapping::Compressed(extent) = mapping {
            return self.check_data(geometry, extent.offset, extent.len);
        }
        mapping
            .host()
            .map_or(Ok(()), |host| self.check_data(geometry, geometry.host_start(host.cluster), 1))
    }

    /// Fails unless the L2 table of `slot`, whose L1 entry has COPIED set, is this image's alone.
    pub fn check_own_table(&self, slot: Slot) -> Result<()> {
        self.regions.check_own(Kind::L2, slot.key.table, 1)
    }

    /// Fails unless nobody knows these clusters, which the counts say are free: they are no metadata, and of no table
    /// is anything in memory.
    pub fn check_unused(&self, first: HostCluster, count: ClusterCount) -> Result<()> {
        self.regions.check_clear(first, count)?;
        for cluster in (0..count).map(|i| first.plus(i)) {
            if self.map.knows_table(cluster) || self.refs.slices().has_table(cluster) {
                let number = cluster.get();
                return Err(Error::corrupt(format!("cluster {number} is a table in memory")));
            }
        }
        Ok(())
    }

    /// Fails unless nobody knows these clusters and no refcount block counts them.
    pub fn check_uncounted(&mut self, first: HostCluster, count: ClusterCount) -> Result<()> {
        self.check_unused(first, count)?;
        for cluster in (0..count).map(|i| first.plus(i)) {
            if self.refs.get(cluster) != Ok(None) {
                let number = cluster.get();
                return Err(Error::corrupt(format!("cluster {number} has a refcount block")));
            }
        }
        Ok(())
    }

    /// Fails unless these clusters, which were claimed, lie inside the file and hold no metadata yet.
    pub fn check_new(
        &self,
        geometry: Geometry,
        first: HostCluster,
        count: ClusterCount,
    ) -> Result<()> {
        let (start, len) = (geometry.host_start(first), geometry.bytes(count));
        self.check_place(geometry, "the new cluster", start, len)
    }

    /// Fails unless a table entry may name these clusters from now on: inside the file, clear of metadata, and counted
    /// as far as their counts are in memory.
    pub fn check_target(
        &mut self,
        geometry: Geometry,
        first: HostCluster,
        count: ClusterCount,
    ) -> Result<()> {
        self.check_new(geometry, first, count)?;
        for cluster in (0..count).map(|i| first.plus(i)) {
            if matches!(self.refs.get(cluster), Ok(None | Some(0))) {
                let number = cluster.get();
                let what =
                    format!("cluster {number} is about to be referenced but its refcount is zero");
                return Err(Error::corrupt(what));
            }
        }
        Ok(())
    }

    /// Fails unless `len` bytes at `at` lie in metadata of `kind` that is this image's alone, and the image still takes
    /// writes. The header alone is written even then, to say so.
    pub fn check_metadata(
        &self,
        geometry: Geometry,
        kind: Kind,
        at: HostOffset,
        len: u64,
    ) -> Result<()> {
        if kind != Kind::Header {
            self.check_writable()?;
        }
        let (first, count) = geometry.host_span(at, len);
        self.regions.check_own(kind, first, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{L1Index, SliceKey};
    use crate::meta::alloc::Allocator;
    use crate::meta::map::Map;
    use crate::meta::refs::Refcounts;
    use crate::meta::table::WordTable;
    use crate::meta::{Claim, Run};

    const HEADER: u64 = 0;
    const REFCOUNT_TABLE: u64 = 1;
    const REFCOUNT_BLOCK: u64 = 2;
    const L1: u64 = 3;
    const L2: u64 = 4;
    const DATA: u64 = 5;
    const FREE: u64 = 6;
    const CLUSTERS: u64 = 10;

    fn geometry() -> Geometry {
        Geometry::new(9, 4)
    }

    fn cluster(number: u64) -> HostCluster {
        HostCluster::new(number)
    }

    fn start(number: u64) -> HostOffset {
        geometry().host_start(cluster(number))
    }

    /// An image of ten clusters, of which the first six are in use.
    fn meta() -> Meta {
        let l1 = WordTable::new(start(L1), vec![start(L2).get()]);
        let table = WordTable::new(start(REFCOUNT_TABLE), vec![start(REFCOUNT_BLOCK).get()]);
        let mut refs = Refcounts::new(geometry(), table, 0).expect("a sound table");
        let (key, _) = geometry().refcount_slice(cluster(REFCOUNT_BLOCK), cluster(0));
        refs.slices_mut().insert_zeroed(key);
        for number in 0..FREE {
            refs.set(cluster(number), 1).expect("in memory");
        }
        let alloc = Allocator::new(geometry(), geometry().bytes(CLUSTERS));
        let mut meta = Meta::new(Map::new(geometry(), true, l1, 0), refs, alloc);
        meta.map_regions(geometry()).expect("sound");
        meta
    }

    #[test]
    fn metadata_is_written_only_where_its_kind_lies() {
        let meta = meta();
        let check = |kind, at, len| meta.check_metadata(geometry(), kind, start(at), len).is_ok();
        assert!(check(Kind::L2, L2, 512));
        assert!(check(Kind::Header, HEADER, 512));
        assert!(!check(Kind::Header, HEADER, 513), "into the refcount table");
        for wrong in [HEADER, REFCOUNT_TABLE, REFCOUNT_BLOCK, L1, DATA, FREE] {
            assert!(!check(Kind::L2, wrong, 8), "an L2 entry in cluster {wrong}");
        }
    }

    #[test]
    fn of_a_failed_image_only_the_header_is_written() {
        let mut meta = meta();
        meta.fail(Error::corrupt("found"));
        meta.check_metadata(geometry(), Kind::L2, start(L2), 8).expect_err("read-only");
        meta.check_metadata(geometry(), Kind::Header, start(HEADER), 8).expect("to say so");
    }

    #[test]
    fn a_table_in_memory_is_not_claimed_whatever_its_count_says() {
        let mut meta = meta();
        let key = SliceKey { table: cluster(FREE), index: 0 };
        meta.map.slices_mut().begin_load(key);
        meta.claim(1).expect("in memory").expect_err("a table is being loaded from there");
        meta.map.slices_mut().finish_load(key, None);
        let claim = meta.claim(1).expect("in memory").expect("free");
        assert_eq!(claim, Claim::Run(Run { first: cluster(FREE), count: 1, fresh: false }));
    }

    #[test]
    fn metadata_is_not_claimed_whatever_its_count_says() {
        for table in [REFCOUNT_TABLE, REFCOUNT_BLOCK, L1, L2] {
            let mut meta = meta();
            meta.refs.set(cluster(table), 0).expect("in memory");
            meta.claim(1).expect("in memory").expect_err("metadata");
        }
    }

    #[test]
    fn an_entry_names_only_counted_clusters_that_hold_no_metadata() {
        let mut meta = meta();
        meta.check_target(geometry(), cluster(DATA), 1).expect("counted data");
        for (wrong, why) in [(L1, "metadata"), (FREE, "not counted"), (CLUSTERS, "past the end")] {
            meta.check_target(geometry(), cluster(wrong), 1).expect_err(why);
        }
        meta.link_table(geometry(), L1Index(0), cluster(FREE)).expect_err("not counted");
        assert_eq!(
            meta.map.table(L1Index(0)).expect("sound").map(|t| t.cluster),
            Some(cluster(L2))
        );
    }

    #[test]
    fn clusters_with_a_refcount_block_are_not_taken_as_uncounted() {
        let mut meta = meta();
        meta.check_uncounted(cluster(FREE), 1).expect_err("a block counts it");
        meta.check_uncounted(geometry().refcount_block_first(1), 3).expect("no block does");
    }
}
