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

    /// Fails unless data may lie in `len` bytes at `host`: inside the file, and clear of metadata.
    pub fn check_data(&self, geometry: Geometry, host: HostOffset, len: u64) -> Result<()> {
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
        match mapping {
            Mapping::Unallocated | Mapping::Zero { preallocated: None } => Ok(()),
            Mapping::Data(owned) | Mapping::Zero { preallocated: Some(owned) } => {
                self.check_data(geometry, geometry.host_start(owned.cluster), 1)
            }
            Mapping::Compressed(extent) => self.check_data(geometry, extent.offset, extent.len),
        }
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

    /// Fails unless these clusters, which were claimed for metadata or data, lie inside the file and hold no metadata yet.
    pub fn check_new(
        &self,
        geometry: Geometry,
        first: HostCluster,
        count: ClusterCount,
    ) -> Result<()> {
        let (start, len) = (geometry.host_start(first), geometry.bytes(count));
        self.check_place(geometry, "the new cluster", start, len)
    }

    /// Fails unless a table entry may name these clusters from now on: inside the file, clear of metadata, and counted as
    /// far as their counts are in memory.
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
