//! Reading tables of pointers one after the other, and writing back what changes in them.

use super::moves::Moves;
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::check::parts::{
    Claim, L2Format, LooseL1, LooseL2, TableReader, Target, words, write,
};
use crate::error::Result;
use crate::format::entry::OFFSET_MASK;
use crate::limits::SECTOR_BYTES;
use std::ops::Range;

/// Bytes of a snapshot table entry in front of its extra data.
const SNAPSHOT_FIXED_BYTES: usize = 40;

/// Shows the words of each L2 table to `visit`; `tables` are their clusters.
pub(super) async fn visit_l2_tables<D: Disk>(
    target: &Target<'_, D>,
    tables: &[u64],
    mut visit: impl FnMut(u64, &[u64]),
) -> Result<()> {
    change_l2_tables(target, tables, |table, words| visit(table, words)).await
}

/// Lets the L2 tables name clusters where they have moved to; `tables` are the tables' clusters.
pub(super) async fn point_to_data<D: Disk>(
    target: &Target<'_, D>,
    tables: &[u64],
    moves: &Moves,
) -> Result<()> {
    let format = L2Format::of(target);
    change_l2_tables(target, tables, |_, words| {
        for entry in words.chunks_exact_mut(format.words()) {
            let bitmap = entry.get(1).copied().unwrap_or(0);
            if let Some(word) = moved_entry(LooseL2 { word: entry[0], bitmap }, format, moves) {
                entry[0] = word;
            }
        }
    })
    .await
}

/// The first word of `entry` as it is after the moves, if they change it.
fn moved_entry(entry: LooseL2, format: L2Format, moves: &Moves) -> Option<u64> {
    let geometry = format.geometry;
    let place_of = |offset| {
        let place = moves.place_of(geometry.host_cluster(HostOffset::new(offset)).get())?;
        Some(geometry.host_start(HostCluster::new(place)).get())
    };
    match entry.claim(format) {
        Claim::Nothing => None,
        Claim::Cluster { offset, .. } => Some(entry.word & !OFFSET_MASK | place_of(offset)?),
        Claim::Compressed { offset, .. } => {
            // It keeps its distance from the start of the cluster, and so the number of its sectors.
            let moved = place_of(offset)? + geometry.in_host_cluster(HostOffset::new(offset));
            Some(entry.word - offset + moved)
        }
    }
}

async fn change_l2_tables<D: Disk>(
    target: &Target<'_, D>,
    tables: &[u64],
    mut change: impl FnMut(u64, &mut [u64]),
) -> Result<()> {
    let len = target.geometry.cluster_size();
    let mut reader = TableReader::new(target);
    for batch in tables.chunks(TableReader::<D>::batch_for(len)) {
        let start = |&table: &u64| target.geometry.host_start(HostCluster::new(table)).get();
        let offsets: Vec<u64> = batch.iter().map(start).collect();
        let read = reader.read(&offsets, len).await?;
        for ((&table, at), old) in batch.iter().zip(offsets).zip(read) {
            let Some(old) = old else { continue };
            let mut new: Vec<u64> = words(&old).collect();
            change(table, &mut new);
            write_changes(target, at, &old, &bytes_of(&new), "L2 table").await?;
        }
    }
    Ok(())
}

/// Lets an L1 table, which lies in `range`, name L2 tables where they have moved to.
pub(super) async fn point_to_tables<D: Disk>(
    target: &Target<'_, D>,
    range: Range<u64>,
    moves: &Moves,
) -> Result<()> {
    let geometry = target.geometry;
    let mut reader = TableReader::new(target);
    for piece in TableReader::<D>::pieces(range) {
        let Some(old) = reader.read_piece(&piece).await? else { continue };
        let moved = |word| {
            let entry = LooseL1(word);
            let table = geometry.host_cluster(HostOffset::new(entry.offset()));
            match moves.place_of(table.get()) {
                Some(place) => entry.to(geometry.host_start(HostCluster::new(place)).get()).0,
                None => word,
            }
        };
        let new: Vec<u64> = words(&old).map(moved).collect();
        write_changes(target, piece.start, &old, &bytes_of(&new), "L1 table").await?;
    }
    Ok(())
}

/// Lets the snapshot table of `len` bytes name L1 tables where they have moved to.
pub(super) async fn point_to_snapshot_l1<D: Disk>(
    target: &Target<'_, D>,
    len: u64,
    moves: &Moves,
) -> Result<()> {
    let (header, geometry) = (&target.header, target.geometry);
    let at = header.snapshots_offset.get();
    let old = target.read(at, len, "snapshot table").await?;
    let mut new = old.clone();
    let mut entry = 0;
    for _ in 0..header.snapshot_count {
        let Some(fixed) = new.get_mut(entry..entry + SNAPSHOT_FIXED_BYTES) else { break };
        let field = |at: usize, len: usize| {
            fixed[at..at + len].iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let len = field(12, 2) + field(14, 2) + field(36, 4);
        let l1 = geometry.host_cluster(HostOffset::new(field(0, 8)));
        if let Some(place) = moves.place_of(l1.get()) {
            let place = geometry.host_start(HostCluster::new(place)).get();
            fixed[..8].copy_from_slice(&place.to_be_bytes());
        }
        entry = (entry + SNAPSHOT_FIXED_BYTES + len as usize).next_multiple_of(8);
    }
    write_changes(target, at, &old, &new, "snapshot table").await
}

/// Writes what differs between `old`, which lies at `at`, and `new`, in whole sectors.
async fn write_changes<D: Disk>(
    target: &Target<'_, D>,
    at: u64,
    old: &[u8],
    new: &[u8],
    what: &str,
) -> Result<()> {
    let sector = SECTOR_BYTES as usize;
    let differs = |index: &usize| {
        let range = index * sector..new.len().min((index + 1) * sector);
        old[range.clone()] != new[range]
    };
    let mut sectors = (0..new.len().div_ceil(sector)).filter(differs);
    let Some(first) = sectors.next() else { return Ok(()) };
    let last = sectors.next_back().unwrap_or(first);
    let range = first * sector..new.len().min((last + 1) * sector);
    let place = HostOffset::new(at + range.start as u64);
    write(target, place, &new[range], what).await
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
