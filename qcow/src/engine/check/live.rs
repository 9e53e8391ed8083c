//! The references of an image that is in use, for the recovery of leaks.
//!
//! What is found is as old as the reads: the caller knows which clusters have changed meanwhile.

use std::collections::{BTreeMap, HashSet};

use super::counts::Counts;
use super::crew::Crew;
use super::finding::Finding;
use super::loose::{Claim, L2Format};
use super::references::{Means, collect};
use super::snapshots::Snapshots;
use super::stored::StoredCounts;
use super::tables::TableReader;
use super::tally::Tally;
use super::target::Target;
use super::uses::Uses;
use super::words;
use crate::addr::{ClusterCount, HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::load::read_snapshots;
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
        let file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
        let mut target = Target::of(disk, header, file_len, false)?;
        let stored = StoredCounts::read_table(&target).await?;
        // The table may name blocks by now that lie behind what was the end before it was read.
        target.file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
        let (entries, table_len) = read_snapshots(disk, &target.header, target.file_len).await?;
        let snapshots = Snapshots { entries, table_len, is_outdated: false };
        let means = Means { snapshots: &snapshots, stored: &stored, crew: Crew::ALONE, fix: false };
        let found = collect(&target, &means, &mut Tally::new(report)).await?;
        let found = found.ok_or_else(|| Error::corrupt("its bitmaps cannot be read"))?;
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
        let format = L2Format::of(&self.target);
        let active = self.tables.iter().filter(|(_, uses)| uses.active > 0);
        let places: Vec<u64> = active.map(|(&at, _)| at).collect();
        let tables = places.iter().map(|&at| self.target.cluster_at(at));
        let mut found: HashSet<HostCluster> = tables.filter(|c| clusters.contains(c)).collect();
        let mut reader = TableReader::new(&self.target);
        let len = format.geometry.cluster_size();
        for batch in places.chunks(TableReader::<D>::batch_for(len)) {
            for bytes in reader.read(batch, len).await?.into_iter().flatten() {
                let words: Vec<u64> = words(&bytes).collect();
                found.extend(data_clusters(&words, format).filter(|c| clusters.contains(c)));
            }
        }
        Ok(found)
    }
}

fn data_clusters(table: &[u64], format: L2Format) -> impl Iterator<Item = HostCluster> + '_ {
    format.entries(table).filter_map(move |entry| match entry.claim(format) {
        Claim::Cluster { offset, .. } if !format.data_file => {
            Some(format.geometry.host_cluster(HostOffset::new(offset)))
        }
        Claim::Cluster { .. } | Claim::Nothing | Claim::Compressed { .. } => None,
    })
}
