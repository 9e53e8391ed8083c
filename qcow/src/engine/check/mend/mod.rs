//! The repair of tables: entries that break a rule, and tables that are something else, too.
//!
//! No table is changed where it lies, since what looks like a table may be a guest's data. It is written anew behind the
//! end of the file, and so is every table that names it, up to the header - which becomes that of the image only together
//! with new refcount structures ([`super::rebuild`]). Until then the image is the old one, to the byte.
//!
//! What can be read stays what it is. An entry that names no possible place for data becomes one that reads as zeros; an
//! entry that names no possible place for a table becomes empty; both are told.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::finding::{EntryChange, Finding};
use super::loose::{L2Format, LooseL1, LooseL2};
use super::references::{References, snapshot_l1, snapshot_names};
use super::repair::write;
use super::snapshots::Snapshots;
use super::tables::TableReader;
use super::tally::Tally;
use super::target::Target;
use super::uses::Uses;
use super::words;
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::feature::Autoclear;
use crate::format::header::{Header, Version};
use crate::format::snapshot::{SnapshotEntry, encode_table};

mod l2;

use l2::{L2Repair, Verdict};

/// A repair writes no more than the file is long, so often, and [`WRITTEN_SLACK`]: tables of snapshots that overlap could
/// ask for any number of bytes.
const WRITTEN_FACTOR: u64 = 2;
const WRITTEN_SLACK: u64 = 64 << 20;
/// Entries that may name the same cluster of zeros: fewer than its count can tell.
const ZEROS_SHARED_MAX: u64 = 1 << 15;

/// An image with its tables mended, but for the refcount structures.
pub(super) struct Mended {
    pub(super) header: Header,
    pub(super) snapshots: Snapshots,
}

/// Writes new tables where the old ones are wrong. Nothing on disk names them yet.
///
/// # Errors
/// It would take too much space, or the file cannot be read or written.
pub(super) async fn mend<D: Disk>(
    target: &Target<'_, D>,
    snapshots: &Snapshots,
    references: &References,
    tally: &mut Tally<'_>,
) -> Result<Mended> {
    let header = &target.header;
    let repair = L2Repair {
        format: L2Format::of(target),
        version2: header.version == Version::V2,
        file_len: target.file_len,
    };
    let next = HostCluster::new(target.clusters().max(references.counts.len()));
    let left = target.file_len.saturating_mul(WRITTEN_FACTOR).saturating_add(WRITTEN_SLACK);
    let moved = HashMap::new();
    let zeros = None;
    let mut mender = Mender { target, references, repair, tally, next, left, moved, zeros };
    mender.mend_l2_tables().await?;
    let mut header = header.clone();
    mender.mend_active_l1(&mut header).await?;
    let snapshots = mender.mend_snapshots(snapshots, &mut header).await?;
    if references.broken_bitmaps {
        mender.tally.note(&Finding::BitmapsDropped, 1);
        header.autoclear = header.autoclear.without(Autoclear::BITMAPS);
        header.extensions.bitmaps = None;
    }
    Ok(Mended { header, snapshots })
}

struct Mender<'m, 'd, 'r, D> {
    target: &'m Target<'d, D>,
    references: &'m References,
    repair: L2Repair,
    tally: &'m mut Tally<'r>,
    /// Where the next new table goes.
    next: HostCluster,
    /// Bytes that may still be written.
    left: u64,
    /// L2 tables: where they were, and where they are now.
    moved: HashMap<u64, u64>,
    /// A cluster of zeros, and how many entries name it.
    zeros: Option<(u64, u64)>,
}

impl<D: Disk> Mender<'_, '_, '_, D> {
    async fn mend_l2_tables(&mut self) -> Result<()> {
        let target = self.target;
        let len = target.geometry.cluster_size();
        let mut reader = TableReader::new(target);
        let tables: &BTreeMap<u64, Uses> = &self.references.tables;
        let sound: Vec<(u64, Uses)> = tables
            .iter()
            .map(|(&at, &uses)| (at, uses))
            .filter(|&(at, _)| self.can_be_table(at))
            .collect();
        for batch in sound.chunks(TableReader::<D>::batch_for(len)) {
            let offsets: Vec<u64> = batch.iter().map(|&(at, _)| at).collect();
            let read = reader.read(&offsets, len).await?;
            for (&(at, uses), bytes) in batch.iter().zip(read) {
                let Some(bytes) = bytes else { continue };
                let mended = self.mend_l2(at, &bytes).await?;
                let is_written_to = uses.active > 0 && self.is_shared(at, len, uses.total);
                let bytes = mended.or(is_written_to.then_some(bytes));
                if let Some(bytes) = bytes {
                    let now = self.append(&bytes, "L2 table").await?;
                    self.moved.insert(at, now.get());
                }
            }
        }
        Ok(())
    }

    /// Whether an L2 table can lie at `at`.
    fn can_be_table(&self, at: u64) -> bool {
        let geometry = self.target.geometry;
        let end = at.saturating_add(geometry.cluster_size());
        at != 0 && geometry.is_cluster_aligned(at) && !self.target.is_past_end(end)
    }

    /// Whether any cluster of a table is used more often than `uses`.
    fn is_shared(&self, at: u64, len: u64, uses: u64) -> bool {
        let counts = &self.references.counts;
        let (first, count) = self.target.geometry.host_span(HostOffset::new(at), len);
        let clusters = (0..count).map(|i| first.plus(i));
        clusters.take_while(|c| c.get() < counts.len()).any(|c| counts.get(c) > uses)
    }

    /// The table at `at` as it should be; `None` where it is.
    async fn mend_l2(&mut self, at: u64, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
        let format = self.repair.format;
        let mut words: Vec<u64> = words(bytes).collect();
        let entries: Vec<LooseL2> = format.entries(&words).collect();
        let mut changed = false;
        for (index, entry) in entries.into_iter().enumerate() {
            let now = match self.repair.judge(entry) {
                Verdict::Sound => continue,
                Verdict::Becomes(now) => now,
                Verdict::Lost => self.lost(entry).await?,
            };
            let first = index * format.words();
            let index = index as u64;
            let change = EntryChange { table: "L2", at, index, old: entry.word, new: now.word };
            self.tally.note(&Finding::EntryChanged(change), 1);
            words[first] = now.word;
            if format.extended {
                words[first + 1] = now.bitmap;
            }
            changed = true;
        }
        Ok(changed.then(|| bytes_of(&words)))
    }

    /// What takes the place of an entry whose data cannot be anywhere.
    async fn lost(&mut self, entry: LooseL2) -> Result<LooseL2> {
        if !self.repair.version2 {
            return Ok(entry.as_zeros(self.repair.format));
        }
        if self.target.header.backing_name.is_none() {
            return Ok(LooseL2::UNALLOCATED);
        }
        // Version 2 has no flag for zeros, and what the backing file has there is old.
        let (zeros, uses) = match self.zeros {
            Some((zeros, uses)) if uses < ZEROS_SHARED_MAX => (zeros, uses + 1),
            _ => {
                let zeros = vec![0; self.target.geometry.cluster_size() as usize];
                (self.append(&zeros, "zeros").await?.get(), 1)
            }
        };
        self.zeros = Some((zeros, uses));
        Ok(LooseL2 { word: zeros, bitmap: 0 })
    }

    async fn mend_active_l1(&mut self, header: &mut Header) -> Result<()> {
        let at = header.l1_table_offset.get();
        let range = at..at + u64::from(header.l1_size) * 8;
        let is_written_to = self.is_shared(at, range.end - at, 1);
        let Some(mut words) = self.mend_l1(range, is_written_to).await? else { return Ok(()) };
        // What lies behind the entries that the disk needs was taken for entries, but means nothing.
        let needed = self.target.geometry.l1_entries_for(header.size).max(1);
        words.truncate(needed as usize);
        header.l1_size = words.len() as u32;
        header.l1_table_offset = self.append(&bytes_of(&words), "L1 table").await?;
        Ok(())
    }

    /// The L1 table in `range` as it should be; `None` where it is, and need not be written to either.
    async fn mend_l1(
        &mut self,
        range: Range<u64>,
        is_written_to: bool,
    ) -> Result<Option<Vec<u64>>> {
        let (at, len) = (range.start, range.end - range.start);
        self.reserve(len)?;
        let bytes = self.target.read(at, len, "L1 table").await?;
        let mut words: Vec<u64> = words(&bytes).collect();
        let mut changed = is_written_to || self.target.is_past_end(range.end);
        for (index, word) in words.iter_mut().enumerate().filter(|(_, word)| **word != 0) {
            let old = *word;
            let entry = LooseL1(old).without_reserved_bits();
            let table = entry.offset();
            *word = match self.can_be_table(table) {
                true => entry.to(self.moved.get(&table).copied().unwrap_or(table)).0,
                false => 0,
            };
            changed |= *word != old;
            if entry.0 != old || *word == 0 {
                let change = EntryChange { table: "L1", at, index: index as u64, old, new: *word };
                self.tally.note(&Finding::EntryChanged(change), 1);
            }
        }
        Ok(changed.then_some(words))
    }

    async fn mend_snapshots(&mut self, old: &Snapshots, header: &mut Header) -> Result<Snapshots> {
        let mut entries = Vec::with_capacity(old.entries.len());
        let mut known: HashMap<(u64, u64), Option<HostOffset>> = HashMap::new();
        for snapshot in &old.entries {
            let usable = snapshot_l1(self.target, snapshot).ok();
            let Some(range) = usable.filter(|_| !self.target.has_data_file()) else {
                self.drop_snapshot(snapshot);
                continue;
            };
            let key = (range.start, range.end);
            let place = match known.get(&key) {
                Some(place) => *place,
                None => {
                    let place = match self.mend_l1(range, false).await? {
                        Some(words) => Some(self.append(&bytes_of(&words), "L1 table").await?),
                        None => None,
                    };
                    known.insert(key, place);
                    place
                }
            };
            let l1_table_offset = place.unwrap_or(snapshot.l1_table_offset);
            entries.push(SnapshotEntry { l1_table_offset, ..snapshot.clone() });
        }
        let is_same = !old.is_outdated && entries == old.entries;
        if is_same && !self.target.is_past_end(header.snapshots_offset.get() + old.table_len) {
            return Ok(Snapshots { entries, table_len: old.table_len, is_outdated: false });
        }
        let table = encode_table(&entries)?;
        header.snapshot_count = entries.len() as u32;
        header.snapshots_offset = match table.is_empty() {
            true => HostOffset::new(0),
            false => self.append(&table, "snapshot table").await?,
        };
        Ok(Snapshots { entries, table_len: table.len() as u64, is_outdated: false })
    }

    fn drop_snapshot(&mut self, snapshot: &SnapshotEntry) {
        let (id, name) = snapshot_names(snapshot);
        self.tally.note(&Finding::SnapshotDropped { id, name }, 1);
    }

    /// Writes a new table, or whatever else, behind all that is there.
    async fn append(&mut self, bytes: &[u8], what: &str) -> Result<HostOffset> {
        self.reserve(bytes.len() as u64)?;
        let geometry = self.target.geometry;
        let at = geometry.host_start(self.next);
        let clusters = geometry.clusters_for(bytes.len() as u64);
        let mut padded = bytes.to_vec();
        padded.resize(geometry.bytes(clusters) as usize, 0);
        write(self.target, at, &padded, what).await?;
        self.next = self.next.plus(clusters);
        Ok(at)
    }

    /// Takes `bytes` from what a repair may write, or read to that end.
    fn reserve(&mut self, bytes: u64) -> Result<()> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| {
            Error::limit(
                "cannot be repaired: its tables overlap so much that they would not fit apart",
            )
        })?;
        Ok(())
    }
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
