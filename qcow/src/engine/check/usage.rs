//! How much of a file each state of the disk takes - the current one and each internal snapshot - and how much of that
//! it shares with others.
//!
//! The walk of a check has counted who points where. A cluster that is named once belongs to one state alone; deleting
//! that state, or overwriting it, gives the cluster back.

use std::collections::HashMap;
use std::path::Path;

use super::counts::Counts;
use super::live::LiveReferences;
use super::loose::{Claim, L2Format, LooseL1};
use super::tables::TableReader;
use super::target::Target;
use super::words;
use crate::addr::HostOffset;
use crate::disk::Disk;
use crate::engine::load::{read_header, read_snapshots, read_words};
use crate::error::Result;
use crate::format::snapshot::SnapshotEntry;

/// Bytes of the file that one state of the disk takes: whole clusters of guest data, and the tables that map them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nobody else uses them.
    pub exclusive: u64,
    /// Other states use them, too, or the cluster of the file holds more than one compressed cluster.
    pub shared: u64,
}

impl Usage {
    fn add(&mut self, other: Self) {
        self.exclusive = self.exclusive.saturating_add(other.exclusive);
        self.shared = self.shared.saturating_add(other.shared);
    }
}

/// What the states of one image take.
#[derive(Clone, Debug)]
pub struct ImageUsage {
    /// The current state of the disk.
    pub active: Usage,
    /// The internal snapshots, in the order of their table.
    pub snapshots: Vec<(SnapshotEntry, Usage)>,
}

impl ImageUsage {
    /// Walks all tables of the qcow2 image in `disk`, the file at `path`. Damage is passed over: `check` tells of it.
    ///
    /// # Errors
    /// The file cannot be read, or its header or snapshot table is broken.
    pub async fn read<D: Disk>(disk: &D, path: &Path) -> Result<Self> {
        Self::read_unnamed(disk).await.map_err(|e| e.in_file(path))
    }

    async fn read_unnamed<D: Disk>(disk: &D) -> Result<Self> {
        let header = read_header(disk).await?;
        let references = LiveReferences::collect(disk, header.clone(), &mut |_| ()).await?;
        let target = references.target();
        let (entries, _) = read_snapshots(disk, &header, target.file_len).await?;
        let mut meter = Meter { target, counts: references.counts(), tables: HashMap::new() };
        let active = meter.measure(header.l1_table_offset, header.l1_size).await?;
        let mut snapshots = Vec::with_capacity(entries.len());
        for entry in entries {
            let usage = match entry.check_l1(target.geometry, target.file_len) {
                Ok(()) => meter.measure(entry.l1_table_offset, entry.l1_size).await?,
                Err(_) => Usage::default(),
            };
            snapshots.push((entry, usage));
        }
        Ok(Self { active, snapshots })
    }
}

struct Meter<'a, 'd, D> {
    target: &'a Target<'d, D>,
    counts: &'a Counts,
    /// What each L2 table takes with all it names: the same for everyone who uses the table.
    tables: HashMap<u64, Usage>,
}

impl<D: Disk> Meter<'_, '_, D> {
    /// What the L1 table of `entries` at `at` takes with all below it.
    async fn measure(&mut self, at: HostOffset, entries: u32) -> Result<Usage> {
        let words = read_words(self.target.disk, at, entries.into(), "L1 table").await?;
        let offsets: Vec<u64> =
            words.into_iter().map(|word| LooseL1(word).offset()).filter(|&at| at != 0).collect();
        self.read_tables(&offsets).await?;
        let mut usage = self.of_span(at.get(), u64::from(entries) * 8);
        offsets.iter().filter_map(|at| self.tables.get(at)).for_each(|&table| usage.add(table));
        Ok(usage)
    }

    /// Measures those of the L2 tables that are not known yet.
    async fn read_tables(&mut self, offsets: &[u64]) -> Result<()> {
        let len = self.target.geometry.cluster_size();
        let mut missing: Vec<u64> =
            offsets.iter().copied().filter(|at| !self.tables.contains_key(at)).collect();
        missing.sort_unstable();
        missing.dedup();
        let format = L2Format::of(self.target);
        let mut reader = TableReader::new(self.target);
        for batch in missing.chunks(TableReader::<D>::batch_for(len)) {
            for (&at, bytes) in batch.iter().zip(reader.read(batch, len).await?) {
                let mut usage = self.of_span(at, len);
                let words: Vec<u64> = bytes.iter().flat_map(|bytes| words(bytes)).collect();
                for entry in format.entries(&words) {
                    usage.add(self.of_claim(entry.claim(format)));
                }
                self.tables.insert(at, usage);
            }
        }
        Ok(())
    }

    fn of_claim(&self, claim: Claim) -> Usage {
        match claim {
            Claim::Nothing => Usage::default(),
            // Not in this file.
            Claim::Cluster { .. } if self.target.has_data_file() => Usage::default(),
            Claim::Cluster { offset, .. } => {
                self.of_span(offset, self.target.geometry.cluster_size())
            }
            Claim::Compressed { offset, len } => {
                // Its own bytes: the clusters they lie in belong to its neighbours, too.
                let cluster = self.target.cluster_at(offset);
                match cluster.get() < self.counts.len() && self.counts.get(cluster) == 1 {
                    true => Usage { exclusive: len, shared: 0 },
                    false => Usage { exclusive: 0, shared: len },
                }
            }
        }
    }

    /// The clusters of the file that `len` bytes at `at` touch.
    fn of_span(&self, at: u64, len: u64) -> Usage {
        let geometry = self.target.geometry;
        let mut usage = Usage::default();
        if at.checked_add(len).is_none() {
            return usage;
        }
        let (first, count) = geometry.host_span(HostOffset::new(at), len);
        for cluster in (0..count).map(|i| first.plus(i)).filter(|c| c.get() < self.counts.len()) {
            match self.counts.get(cluster) {
                1 => usage.exclusive += geometry.cluster_size(),
                _ => usage.shared += geometry.cluster_size(),
            }
        }
        usage
    }
}
