//! The references of an image that is in use, for the recovery of leaks.
//!
//! What is found is as old as the reads: the caller knows which clusters have changed meanwhile.

use std::collections::{BTreeMap, HashSet};

use super::counts::Counts;
use super::finding::Finding;
use super::loose::{Claim, LooseL2};
use super::references::collect;
use super::stored::StoredCounts;
use super::tables::TableReader;
use super::tally::Tally;
use super::uses::Uses;
use super::{CLUSTERS_MAX, Target, words};
use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::header::Header;

/// Who points where, as far as the file is long.
pub(in crate::engine) struct LiveReferences<'d, D> {
    target: Target<'d, D>,
    counts: Counts,
    /// The L2 tables: their first bytes, and how often L1 tables name them.
    tables: BTreeMap<u64, Uses>,
}

impl<'d, D: Disk> LiveReferences<'d, D> {
    /// Walks all metadata of the image in `disk`, which `header` describes. Faults go to `report` as they are found.
    ///
    /// # Errors
    /// The file cannot be read, or is too large.
    pub(in crate::engine) async fn collect(
        disk: &'d D,
        header: Header,
        report: &mut dyn FnMut(&Finding),
    ) -> Result<Self> {
        let geometry = header.geometry();
        let file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
        let mut target = Target { disk, header, geometry, file_len, skip_holes: false };
        if target.clusters() > CLUSTERS_MAX {
            return Err(Error::limit("the file has too many clusters to look for leaks"));
        }
        let stored = StoredCounts::read(&target).await?;
        // The table may name blocks by now that lie behind what was the end before it was read.
        target.file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
        let mut tally = Tally::new(report);
        let found = collect(&target, &stored, &mut tally).await?;
        Ok(Self { counts: found.counts, tables: found.tables, target })
    }

    /// The image.
    pub(super) fn target(&self) -> &Target<'d, D> {
        &self.target
    }

    /// How often each cluster is named.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many clusters can have references.
    pub(in crate::engine) fn clusters(&self) -> ClusterCount {
        self.counts.len()
    }

    /// How often `cluster` is named.
    pub(in crate::engine) fn count(&self, cluster: HostCluster) -> u64 {
        if cluster.get() < self.counts.len() { self.counts.get(cluster) } else { 0 }
    }

    /// Those of `clusters` that the active tables name, other than for compressed data: whose COPIED flags depend on
    /// their counts.
    pub(in crate::engine) async fn active_among(
        &self,
        clusters: &HashSet<HostCluster>,
    ) -> Result<HashSet<HostCluster>> {
        let geometry = self.target.geometry;
        let active = self.tables.iter().filter(|(_, uses)| uses.active > 0);
        let places: Vec<u64> = active.map(|(&at, _)| at).collect();
        let tables = places.iter().map(|&at| self.target.cluster_at(at));
        let mut found: HashSet<HostCluster> = tables.filter(|c| clusters.contains(c)).collect();
        let mut reader = TableReader::new(&self.target);
        let len = geometry.cluster_size();
        for batch in places.chunks(TableReader::<D>::batch_for(len)) {
            for bytes in reader.read(batch, len).await?.into_iter().flatten() {
                found.extend(data_clusters(&bytes, geometry).filter(|c| clusters.contains(c)));
            }
        }
        Ok(found)
    }
}

fn data_clusters(table: &[u8], geometry: Geometry) -> impl Iterator<Item = HostCluster> + '_ {
    let place = move |entry| match LooseL2(entry).claim(geometry) {
        Claim::Cluster { offset, .. } => Some(geometry.host_cluster(HostOffset::new(offset))),
        Claim::Nothing | Claim::Compressed { .. } => None,
    };
    words(table).filter_map(place)
}
