//! Who points where: walks all metadata and counts the references to each cluster of the file.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::counts::Counts;
use super::fault::Fault;
use super::finding::Finding;
use super::loose::LooseL1;
use super::stored::StoredCounts;
use super::tables::TableReader;
use super::tally::Tally;
use super::uses::{Uses, disjoint};
use super::{Target, words};
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::load::read_snapshots;
use crate::error::Result;
use crate::format::snapshot::SnapshotEntry;
use crate::limits::L1_BYTES_MAX;

mod bitmaps;
mod clusters;
mod regions;

/// Most unaligned L2 tables that are followed. Aligned ones cannot overlap, and so cost no more than the file's length;
/// these could make a small file cost hours.
const UNALIGNED_TABLES_MAX: u64 = 1024;

/// The references of an image.
pub(super) struct References {
    /// To each cluster of the file, but not above what a count of this image can tell.
    pub(super) counts: Counts,
    /// The L2 tables: their first bytes, and how often L1 tables name them.
    pub(super) tables: BTreeMap<u64, Uses>,
    /// A table that a repair would write to is something else, too.
    pub(super) overlap_tables: bool,
}

/// Counts the references in the image.
pub(super) async fn collect<D: Disk>(
    target: &Target<'_, D>,
    stored: &StoredCounts,
    tally: &mut Tally<'_>,
) -> Result<References> {
    let mut collector = Collector {
        target,
        tally,
        reader: TableReader::new(target),
        counts: Counts::new(target.clusters()),
        tables: HashMap::new(),
        unaligned_tables: 0,
    };
    let (snapshots, snapshot_table_len) =
        read_snapshots(target.disk, &target.header, target.file_len).await?;
    collector.count_fixed_places(snapshot_table_len);
    collector.walk_l1_tables(&snapshots).await?;
    let tables: BTreeMap<u64, Uses> = std::mem::take(&mut collector.tables).into_iter().collect();
    collector.walk_l2_tables(&tables).await?;
    collector.walk_bitmaps().await?;
    // Last, because a block that is anything else, too, is an error of its own.
    collector.count_refcount_blocks(stored);
    let overlap_tables = collector.finds_overlap(&tables);
    Ok(References { counts: collector.counts, tables, overlap_tables })
}

struct Collector<'c, 'd, 'r, D> {
    target: &'c Target<'d, D>,
    tally: &'c mut Tally<'r>,
    reader: TableReader<'c, 'd, D>,
    counts: Counts,
    tables: HashMap<u64, Uses>,
    unaligned_tables: u64,
}

impl<D: Disk> Collector<'_, '_, '_, D> {
    /// Counts what the header itself names, and the header.
    fn count_fixed_places(&mut self, snapshot_table_len: u64) {
        let (header, geometry) = (&self.target.header, self.target.geometry);
        let refcount_table_len = geometry.bytes(header.refcount_table_clusters.into());
        self.count_region(0, geometry.cluster_size(), 1);
        self.count_region(header.snapshots_offset.get(), snapshot_table_len, 1);
        self.count_region(header.refcount_table_offset.get(), refcount_table_len, 1);
        if let Some(luks) = &header.extensions.encryption_header {
            self.count_region(luks.offset.get(), luks.length, 1);
        }
    }

    /// Walks the active L1 table and those of the snapshots, many of which may lie in the same place.
    async fn walk_l1_tables(&mut self, snapshots: &[SnapshotEntry]) -> Result<()> {
        let header = &self.target.header;
        let active = header.l1_table_offset.get();
        let mut l1_tables = vec![(active..active + u64::from(header.l1_size) * 8, Uses::ACTIVE)];
        for snapshot in snapshots {
            l1_tables.extend(self.snapshot_l1(snapshot).map(|range| (range, Uses::OTHER)));
        }
        self.count_regions(&l1_tables);
        for (range, uses) in disjoint(&l1_tables) {
            for piece in TableReader::<D>::pieces(range) {
                if let Some(bytes) = self.reader.read_piece(&piece).await? {
                    self.scan_l1(&bytes, uses);
                }
            }
        }
        Ok(())
    }

    /// The bytes of a snapshot's L1 table, unless they cannot be one.
    fn snapshot_l1(&mut self, snapshot: &SnapshotEntry) -> Option<Range<u64>> {
        let (offset, entries) = (snapshot.l1_table_offset.get(), snapshot.l1_size);
        let id = || snapshot.id.to_string_lossy().into_owned();
        let name = || snapshot.name.to_string_lossy().into_owned();
        let len = u64::from(entries) * 8;
        if !self.target.geometry.is_cluster_aligned(offset) {
            self.fault(Fault::SnapshotL1Unaligned { id: id(), name: name(), offset }, 1);
            return None;
        }
        if len > L1_BYTES_MAX {
            self.fault(Fault::SnapshotL1TooLarge { id: id(), name: name(), entries }, 1);
            return None;
        }
        let Some(end) = offset.checked_add(len) else {
            self.fault(Fault::PastEnd { offset, len }, 1);
            return None;
        };
        Some(offset..end)
    }

    fn scan_l1(&mut self, bytes: &[u8], uses: Uses) {
        for entry in words(bytes).filter(|&entry| entry != 0).map(LooseL1) {
            if entry.has_reserved_bits() {
                self.fault(Fault::L1ReservedBits { entry: entry.0 }, uses.total);
            }
            self.add_table(entry.offset(), uses);
        }
    }

    /// Remembers an L2 table to be counted and walked; one behind the end of the file reads as zeros.
    fn add_table(&mut self, offset: u64, uses: Uses) {
        if let Some(known) = self.tables.get_mut(&offset) {
            *known += uses;
            return;
        }
        if offset >= self.target.file_len {
            return self.count_table(offset, uses);
        }
        if !self.target.geometry.is_cluster_aligned(offset) {
            self.unaligned_tables += 1;
            if self.unaligned_tables == UNALIGNED_TABLES_MAX + 1 {
                self.tally.note(&Finding::TooManyUnalignedTables, 1);
            }
            if self.unaligned_tables > UNALIGNED_TABLES_MAX {
                return self.count_table(offset, uses);
            }
        }
        self.tables.insert(offset, uses);
    }

    fn count_table(&mut self, offset: u64, uses: Uses) {
        let geometry = self.target.geometry;
        self.count_region(offset, geometry.cluster_size(), uses.total);
        if !geometry.is_cluster_aligned(offset) {
            self.fault(Fault::L2TableUnaligned { offset }, uses.total);
        }
    }

    async fn walk_l2_tables(&mut self, tables: &BTreeMap<u64, Uses>) -> Result<()> {
        let len = self.target.geometry.cluster_size();
        let mut rest = tables.iter().peekable();
        while rest.peek().is_some() {
            let batch = rest.by_ref().take(TableReader::<D>::batch_for(len));
            let (offsets, uses): (Vec<u64>, Vec<Uses>) =
                batch.map(|(&at, &uses)| (at, uses)).unzip();
            let read = self.reader.read(&offsets, len).await?;
            for ((offset, bytes), uses) in offsets.into_iter().zip(read).zip(uses) {
                self.count_table(offset, uses);
                if let Some(bytes) = bytes {
                    self.scan_l2(&bytes, uses);
                }
            }
        }
        Ok(())
    }

    fn count_refcount_blocks(&mut self, stored: &StoredCounts) {
        let geometry = self.target.geometry;
        for (index, entry) in (0..).zip(stored.table()) {
            let offset = entry.offset();
            let cluster = self.target.cluster_at(offset);
            if entry.has_reserved_bits() {
                self.fault(Fault::RefcountTableReservedBits { index }, 1);
            } else if !geometry.is_cluster_aligned(offset) {
                self.fault(Fault::RefcountBlockUnaligned { index }, 1);
            } else if cluster.get() >= self.counts.len() {
                self.fault(Fault::RefcountBlockOutside { index }, 1);
            } else if offset != 0 {
                self.count_region(offset, geometry.cluster_size(), 1);
                let reference = self.counts.get(cluster);
                if reference != 1 {
                    self.fault(Fault::RefcountBlockShared { index, reference }, 1);
                }
            }
        }
    }

    /// Whether the header, the refcount table, the active L1 table or an active L2 table is something else, too.
    fn finds_overlap(&self, tables: &BTreeMap<u64, Uses>) -> bool {
        let (header, geometry) = (&self.target.header, self.target.geometry);
        let fixed = [
            (HostOffset::new(0), geometry.cluster_size()),
            (header.refcount_table_offset, geometry.bytes(header.refcount_table_clusters.into())),
            (header.l1_table_offset, u64::from(header.l1_size) * 8),
        ];
        let is_shared = |cluster: HostCluster, uses: u64| {
            cluster.get() < self.counts.len() && self.counts.get(cluster) > uses
        };
        fixed.into_iter().any(|(at, len)| {
            let (first, count) = geometry.host_span(at, len);
            (0..count).any(|i| is_shared(first.plus(i), 1))
        }) || tables
            .iter()
            .filter(|(_, uses)| uses.active > 0)
            .any(|(&at, uses)| is_shared(self.target.cluster_at(at), uses.total))
    }

    fn fault(&mut self, fault: Fault, times: u64) {
        self.tally.note(&Finding::Fault(fault), times);
    }
}
