//! Who points where: walks all metadata and counts the references to each cluster of the file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::counts::Counts;
use super::crew::Crew;
use super::fault::{Fault, Growth};
use super::finding::Finding;
use super::loose::{L2Format, LooseL1};
use super::snapshots::Snapshots;
use super::stored::StoredCounts;
use super::tables::TableReader;
use super::tally::{Abort, Tally};
use super::target::Target;
use super::uses::{Used, Uses, disjoint};
use super::words;
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::error::Result;
use crate::format::header::Version;
use crate::format::snapshot::SnapshotEntry;
use crate::limits::L1_BYTES_MAX;

mod bitmaps;
mod counter;
mod l2;
mod walk;

pub(super) use counter::Counter;
use l2::L2Rules;

/// Most unaligned L2 tables that are followed. Aligned ones cannot overlap, and so cost no more than the file's length;
/// these could make a small file cost hours.
const UNALIGNED_TABLES_MAX: u64 = 1024;

/// The references of an image.
pub(in crate::engine) struct References {
    /// To each cluster of the file.
    pub(in crate::engine) counts: Counts,
    /// The L2 tables: their first bytes, and how often L1 tables name them.
    pub(in crate::engine) tables: BTreeMap<u64, Uses>,
    /// Those of them with COPIED flags that may contradict the stored counts.
    pub(super) flags_in_doubt: BTreeSet<u64>,
    /// A table that a repair would write to is something else, too.
    pub(super) overlap_tables: bool,
    /// The bitmaps cannot be followed, and a repair is to let go of them.
    pub(super) broken_bitmaps: bool,
}

/// How references are collected.
#[derive(Clone, Copy)]
pub(super) struct Means<'m> {
    pub(super) snapshots: &'m Snapshots,
    pub(super) stored: &'m StoredCounts,
    pub(super) crew: Crew,
    /// Whether a repair of all that is found follows: what QEMU repairs as it finds it is told as repaired.
    pub(super) fix: bool,
}

/// Counts the references in the image. `None` where a bitmap cannot be followed, which has been told.
pub(super) async fn collect<D: Disk>(
    target: &Target<'_, D>,
    means: &Means<'_>,
    tally: &mut Tally<'_>,
) -> Result<Option<References>> {
    let counts = Counts::new(target.clusters());
    let mut collector = Collector {
        target,
        tally,
        reader: TableReader::new(target),
        counter: Counter::new(target, &counts),
        tables: HashMap::new(),
        unaligned_tables: 0,
    };
    collector.count_fixed_places(means.snapshots.table_len);
    collector.walk_l1_tables(&means.snapshots.entries).await?;
    let tables: BTreeMap<u64, Uses> = std::mem::take(&mut collector.tables).into_iter().collect();
    let rules = L2Rules {
        format: L2Format::of(target),
        version2: target.header.version == Version::V2,
        fix: means.fix,
    };
    let flags_in_doubt =
        walk::l2_tables(target, &tables, &counts, rules, means, collector.tally).await?;
    let broken_bitmaps = !collector.walk_bitmaps().await?;
    if broken_bitmaps && !means.fix {
        collector.tally.summary.aborted = Some(Abort::Invalid);
        return Ok(None);
    }
    // Last, because a block that is anything else, too, is an error of its own.
    collector.count_refcount_blocks(means.stored, means.fix);
    let overlap_tables = collector.finds_overlap(&tables);
    Ok(Some(References { counts, tables, flags_in_doubt, overlap_tables, broken_bitmaps }))
}

struct Collector<'c, 'd, 'r, D> {
    target: &'c Target<'d, D>,
    tally: &'c mut Tally<'r>,
    reader: TableReader<'c, 'd, D>,
    counter: Counter<'c>,
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
        if self.target.has_data_file() && !snapshots.is_empty() {
            let count = snapshots.len() as u64;
            self.fault(Fault::SnapshotsWithDataFile { count }, 1);
        }
        let header = &self.target.header;
        let active = header.l1_table_offset.get();
        let mut l1_tables = vec![(active..active + u64::from(header.l1_size) * 8, Uses::ACTIVE)];
        for snapshot in snapshots {
            match snapshot_l1(self.target, snapshot) {
                Ok(range) => l1_tables.push((range, Uses::OTHER)),
                Err(fault) => self.fault(fault, 1),
            }
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
        let is_aligned = self.target.geometry.is_cluster_aligned(offset);
        if offset < self.target.file_len && !is_aligned {
            self.unaligned_tables += 1;
            if self.unaligned_tables == UNALIGNED_TABLES_MAX + 1 {
                self.tally.note(&Finding::TooManyUnalignedTables, 1);
            }
        }
        let is_followed = is_aligned || self.unaligned_tables <= UNALIGNED_TABLES_MAX;
        if offset < self.target.file_len && is_followed {
            self.tables.insert(offset, uses);
        } else {
            self.counter.count_table(offset, uses);
            self.tell();
        }
    }

    fn count_refcount_blocks(&mut self, stored: &StoredCounts, fix: bool) {
        let geometry = self.target.geometry;
        for (index, entry) in (0..).zip(stored.table()) {
            let offset = entry.offset();
            let cluster = self.target.cluster_at(offset);
            if entry.has_reserved_bits() {
                self.fault(Fault::RefcountTableReservedBits { index }, 1);
            } else if !geometry.is_cluster_aligned(offset) {
                self.fault(Fault::RefcountBlockUnaligned { index }, 1);
            } else if cluster.get() >= self.counter.counts().len() {
                let growth = if fix { Growth::Refused } else { Growth::NotTried };
                self.fault(Fault::RefcountBlockOutside { index, growth }, 1);
            } else if offset != 0 {
                if stored.was_extended_for(index) {
                    let growth = Growth::Done;
                    self.fault(Fault::RefcountBlockOutside { index, growth }, 1);
                }
                self.count_region(offset, geometry.cluster_size(), 1);
                // A count that passes its width has been told of already.
                let reference = self.counter.counts().get(cluster).min(geometry.refcount_max());
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
        let counts = self.counter.counts();
        let is_shared = |cluster: HostCluster, uses: u64| {
            cluster.get() < counts.len() && counts.get(cluster) > uses
        };
        fixed.into_iter().any(|(at, len)| {
            let (first, count) = geometry.host_span(at, len);
            (0..count).any(|i| is_shared(first.plus(i), 1))
        }) || tables
            .iter()
            .filter(|(_, uses)| uses.active > 0)
            .any(|(&at, uses)| is_shared(self.target.cluster_at(at), uses.total))
    }

    fn count_region(&mut self, offset: u64, len: u64, times: u64) {
        self.counter.count_region(offset, len, times);
        self.tell();
    }

    fn count_regions(&mut self, regions: &[Used]) {
        self.counter.count_regions(regions);
        self.tell();
    }

    fn fault(&mut self, fault: Fault, times: u64) {
        self.tally.note(&Finding::Fault(fault), times);
    }

    /// Tells what the counter has found.
    fn tell(&mut self) {
        self.tally.note_all(self.counter.take_found());
    }
}

/// The bytes of a snapshot's L1 table, unless they cannot be one.
pub(in crate::engine) fn snapshot_l1<D: Disk>(
    target: &Target<'_, D>,
    snapshot: &SnapshotEntry,
) -> Result<Range<u64>, Fault> {
    let (offset, entries) = (snapshot.l1_table_offset.get(), snapshot.l1_size);
    let (id, name) = snapshot_names(snapshot);
    let len = u64::from(entries) * 8;
    if !target.geometry.is_cluster_aligned(offset) {
        return Err(Fault::SnapshotL1Unaligned { id, name, offset });
    }
    if len > L1_BYTES_MAX {
        return Err(Fault::SnapshotL1TooLarge { id, name, entries });
    }
    let end = offset.checked_add(len).filter(|&end| i64::try_from(end).is_ok());
    end.map(|end| offset..end).ok_or(Fault::PastEnd { offset, len })
}

/// A snapshot's identifier and name, for people.
pub(super) fn snapshot_names(snapshot: &SnapshotEntry) -> (String, String) {
    (snapshot.id.to_string_lossy().into_owned(), snapshot.name.to_string_lossy().into_owned())
}
