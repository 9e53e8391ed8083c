//! Who points where: walks all metadata and counts the references to each cluster of the file.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::counts::Counts;
use super::fault::Fault;
use super::finding::Finding;
use super::loose::{Claim, LooseL1, LooseL2};
use super::stored::StoredCounts;
use super::tables::TableReader;
use super::tally::Tally;
use super::uses::{Used, Uses, disjoint};
use super::{Target, snapshots, words};
use crate::addr::{Geometry, HostCluster};
use crate::disk::Disk;
use crate::error::Result;
use crate::format::header::Version;
use crate::format::snapshot::SnapshotEntry;
use crate::limits::L1_BYTES_MAX;

mod bitmaps;

/// Most unaligned L2 tables that are followed. Aligned ones cannot overlap, and so cost no more than the file's length;
/// these could make a small file cost hours.
const UNALIGNED_TABLES_MAX: u64 = 1024;

/// The references of an image.
pub(super) struct References {
    /// To each cluster of the file, but not above what a count of this image can tell.
    pub(super) counts: Counts,
    /// The L2 tables: their first bytes, and how often L1 tables name them.
    pub(super) tables: BTreeMap<u64, Uses>,
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
    let (snapshots, snapshot_table_len) = snapshots::read_table(target).await?;
    collector.count_fixed_places(snapshot_table_len);
    collector.walk_l1_tables(&snapshots).await?;
    let tables: BTreeMap<u64, Uses> = std::mem::take(&mut collector.tables).into_iter().collect();
    collector.walk_l2_tables(&tables).await?;
    collector.walk_bitmaps().await?;
    // Last, because a block that is anything else, too, is an error of its own.
    collector.count_refcount_blocks(stored);
    Ok(References { counts: collector.counts, tables })
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
        let aligned = self.target.geometry.is_cluster_aligned(offset);
        let inside = offset < self.target.file_len;
        if !aligned && inside {
            self.unaligned_tables += 1;
        }
        if !inside || (!aligned && self.unaligned_tables > UNALIGNED_TABLES_MAX) {
            if self.unaligned_tables == UNALIGNED_TABLES_MAX + 1 {
                self.tally.note(&Finding::TooManyUnalignedTables, 1);
            }
            self.count_table(offset, uses);
            return;
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

    fn scan_l2(&mut self, bytes: &[u8], uses: Uses) {
        let geometry = self.target.geometry;
        let version2 = self.target.header.version == Version::V2;
        let mut layout = Layout::default();
        for entry in words(bytes).filter(|&entry| entry != 0).map(LooseL2) {
            if entry.has_reserved_bits() {
                self.fault(Fault::L2ReservedBits { entry: entry.0 }, uses.total);
            }
            if version2 && entry.has_zero_flag() {
                self.fault(Fault::ZeroFlagInVersion2 { entry: entry.0 }, uses.total);
            }
            match entry.claim(geometry) {
                Claim::Nothing => {}
                Claim::Compressed { offset, len } => {
                    if super::loose::is_copied(entry.0) {
                        self.fault(Fault::CompressedCopied { offset }, uses.total);
                    }
                    layout.add_compressed();
                    self.count_region(offset, len, uses.total);
                }
                Claim::Cluster { offset, zero } => {
                    self.check_alignment(offset, zero, uses);
                    layout.add_cluster(offset, geometry);
                    self.count_region(offset, geometry.cluster_size(), uses.total);
                }
            }
        }
        let summary = &mut self.tally.summary;
        summary.allocated_clusters += layout.allocated * uses.active;
        summary.compressed_clusters += layout.compressed * uses.active;
        summary.fragmented_clusters += layout.fragmented * uses.active;
    }

    fn check_alignment(&mut self, offset: u64, zero: bool, uses: Uses) {
        if self.target.geometry.is_cluster_aligned(offset) {
            return;
        }
        let fault = if zero {
            Fault::PreallocatedUnaligned { offset }
        } else {
            Fault::DataUnaligned { offset }
        };
        self.fault(fault, uses.total);
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

    /// Counts `times` references to each cluster that `len` bytes at `offset` touch.
    fn count_region(&mut self, offset: u64, len: u64, times: u64) {
        if let Some(clusters) = self.clusters_of(offset, len, times) {
            self.count_clusters(clusters, times);
        }
    }

    /// As [`Self::count_region`] for each of `regions`, at a cost that does not grow where they overlap.
    fn count_regions(&mut self, regions: &[Used]) {
        let mut clusters = Vec::with_capacity(regions.len());
        for (range, uses) in regions {
            let touched = self.clusters_of(range.start, range.end - range.start, uses.total);
            clusters.extend(touched.map(|touched| (touched, *uses)));
        }
        for (clusters, uses) in disjoint(&clusters) {
            self.count_clusters(clusters, uses.total);
        }
    }

    /// The clusters that a region touches, unless it ends too far behind the end of the file: the last cluster may be
    /// there in part, but no more than that.
    fn clusters_of(&mut self, offset: u64, len: u64, times: u64) -> Option<Range<u64>> {
        let geometry = self.target.geometry;
        if len == 0 {
            return None;
        }
        let end = offset.saturating_add(len);
        if end.saturating_sub(self.target.file_len) >= geometry.cluster_size() {
            self.fault(Fault::PastEnd { offset, len }, times);
            return None;
        }
        Some(self.target.cluster_at(offset).get()..self.target.cluster_at(end - 1).get() + 1)
    }

    fn count_clusters(&mut self, clusters: Range<u64>, times: u64) {
        let geometry = self.target.geometry;
        for cluster in clusters.map(HostCluster::new) {
            let excess = self.counts.add(cluster, times, geometry.refcount_max());
            if excess > 0 {
                let offset = geometry.host_start(cluster).get();
                self.fault(Fault::CountOverflow { offset }, excess);
            }
        }
    }

    fn fault(&mut self, fault: Fault, times: u64) {
        self.tally.note(&Finding::Fault(fault), times);
    }
}

/// How the clusters of one L2 table lie in the file.
#[derive(Default)]
struct Layout {
    allocated: u64,
    compressed: u64,
    fragmented: u64,
    /// Where the last cluster ends.
    next: Option<u64>,
}

impl Layout {
    fn add_cluster(&mut self, offset: u64, geometry: Geometry) {
        self.allocated += 1;
        self.fragmented += u64::from(self.next.is_some_and(|next| next != offset));
        self.next = Some(offset + geometry.cluster_size());
    }

    /// Compressed clusters share sectors, so each of them costs a read of its own.
    fn add_compressed(&mut self) {
        self.allocated += 1;
        self.compressed += 1;
        self.fragmented += 1;
    }
}
