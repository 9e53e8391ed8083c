//! The COPIED flags of the active tables: set where the count is one, and only there.
//!
//! A flag too many lets a write change a cluster that somebody else uses, too. In the tables of snapshots the flag means
//! nothing.

use std::collections::BTreeMap;

use super::finding::Finding;
use super::loose::{Claim, L2Format, LooseL1, is_copied, with_copied};
use super::repair::{sync, write};
use super::stored::StoredCounts;
use super::tables::TableReader;
use super::tally::Tally;
use super::target::Target;
use super::uses::Uses;
use super::words;
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::error::Result;

/// Checks all flags against the stored counts; with `repair`, corrects them. `tables` are the L2 tables, of which only
/// those that are `in_doubt` are read.
pub(super) async fn check_flags<D: Disk>(
    target: &Target<'_, D>,
    tables: &BTreeMap<u64, Uses>,
    in_doubt: impl Fn(u64) -> bool,
    stored: &mut StoredCounts,
    repair: bool,
    tally: &mut Tally<'_>,
) -> Result<()> {
    let mut check = FlagCheck { target, stored, tally, repair };
    let mut reader = TableReader::new(target);
    let start = target.header.l1_table_offset.get();
    let l1 = start..start + u64::from(target.header.l1_size) * 8;
    for piece in TableReader::<D>::pieces(l1) {
        if let Some(bytes) = reader.read_piece(&piece).await? {
            check.check_l1((piece.start - start) / 8, piece.start, bytes).await?;
        }
    }
    // An L1 entry without an offset names no table here, even where it has other bits. A table whose own count cannot be
    // read is beyond judging.
    let is_judged = |at: u64| at != 0 && check.stored.is_readable(target.cluster_at(at));
    let active = tables.iter();
    let active = active.filter(|&(&at, uses)| uses.active > 0 && in_doubt(at) && is_judged(at));
    let active: Vec<(u64, u64)> = active.map(|(&at, uses)| (at, uses.active)).collect();
    let mut rest = active.into_iter().peekable();
    let len = target.geometry.cluster_size();
    while rest.peek().is_some() {
        let batch = rest.by_ref().take(TableReader::<D>::batch_for(len));
        let (offsets, times): (Vec<u64>, Vec<u64>) = batch.unzip();
        let read = reader.read(&offsets, len).await?;
        for ((at, times), bytes) in offsets.into_iter().zip(times).zip(read) {
            if let Some(bytes) = bytes {
                check.check_l2(at, bytes, times).await?;
            }
        }
    }
    if repair { sync(target).await } else { Ok(()) }
}

struct FlagCheck<'c, 'd, 'r, D> {
    target: &'c Target<'d, D>,
    stored: &'c mut StoredCounts,
    tally: &'c mut Tally<'r>,
    repair: bool,
}

/// An entry that names a place in the file.
struct Flag {
    /// Position of its word in its table.
    index: usize,
    entry: u64,
    offset: u64,
}

impl Flag {
    /// What is wrong with it, if its cluster has that count.
    fn judge(self, refcount: u64) -> Option<Wrong> {
        let Self { index, entry, .. } = self;
        ((refcount == 1) != is_copied(entry)).then_some(Wrong { index, entry, refcount })
    }
}

/// A flag that contradicts its cluster's count.
struct Wrong {
    /// Position of the entry's word in its table.
    index: usize,
    entry: u64,
    refcount: u64,
}

impl<D: Disk> FlagCheck<'_, '_, '_, D> {
    /// Checks a piece of the L1 table that lies at `at` and starts with entry `first`.
    async fn check_l1(&mut self, first: u64, at: u64, mut bytes: Vec<u8>) -> Result<()> {
        let named = words(&bytes).enumerate().filter_map(|(index, entry)| {
            let offset = Some(LooseL1(entry).offset()).filter(|&offset| offset != 0);
            Some(Flag { index, entry, offset: offset? })
        });
        let wrong = self.find_wrong(named).await?;
        for &Wrong { index, entry, refcount } in &wrong {
            let (l1_index, repaired) = (first + index as u64, self.repair);
            self.tally.note(&Finding::CopiedFlagOfTable { l1_index, entry, refcount, repaired }, 1);
        }
        self.correct(at, &mut bytes, &wrong, "L1 table").await
    }

    /// Checks an L2 table that lies at `at` and is used `times` times.
    async fn check_l2(&mut self, at: u64, mut bytes: Vec<u8>, times: u64) -> Result<()> {
        let format = L2Format::of(self.target);
        let words: Vec<u64> = words(&bytes).collect();
        let named = format.entries(&words).enumerate().filter_map(|(index, entry)| {
            let Claim::Cluster { offset, .. } = entry.claim(format) else { return None };
            Some(Flag { index: index * format.words(), entry: entry.word, offset })
        });
        let wrong = match format.data_file {
            // Nobody shares what lies there.
            true => named.filter_map(|flag| flag.judge(1)).collect(),
            false => self.find_wrong(named).await?,
        };
        // A corrected flag is right for all who use the table.
        let times = if self.repair { 1 } else { times };
        for &Wrong { entry, refcount, .. } in &wrong {
            let repaired = self.repair;
            self.tally.note(&Finding::CopiedFlagOfCluster { entry, refcount, repaired }, times);
        }
        self.correct(at, &mut bytes, &wrong, "L2 table").await
    }

    /// Those of `flags` that are wrong.
    async fn find_wrong(&mut self, flags: impl Iterator<Item = Flag>) -> Result<Vec<Wrong>> {
        let mut wrong = Vec::new();
        for flag in flags {
            let cluster = self.target.cluster_at(flag.offset);
            if self.stored.is_single(cluster) == Some(is_copied(flag.entry)) {
                continue;
            }
            if let Some(refcount) = self.refcount(cluster).await? {
                wrong.extend(flag.judge(refcount));
            }
        }
        Ok(wrong)
    }

    async fn refcount(&mut self, cluster: HostCluster) -> Result<Option<u64>> {
        self.stored.get(self.target, cluster).await
    }

    /// Writes the table back with its wrong flags turned round, where repairs are allowed.
    async fn correct(&self, at: u64, table: &mut [u8], wrong: &[Wrong], what: &str) -> Result<()> {
        if !self.repair || wrong.is_empty() {
            return Ok(());
        }
        for Wrong { index, entry, refcount } in wrong {
            let right = with_copied(*entry, *refcount == 1);
            table[index * 8..index * 8 + 8].copy_from_slice(&right.to_be_bytes());
        }
        write(self.target, HostOffset::new(at), table, what).await
    }
}
