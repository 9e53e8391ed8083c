//! Reading tables of pointers one after the other, and writing back what changes in them.

use std::ops::Range;

use super::moves::Moves;
use crate::addr::{HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::check::parts::{
    Claim, L2Format, LooseL1, LooseL2, TableReader, Target, words, write,
};
use crate::error::Result;
use crate::format::entry::OFFSET_MASK;
use crate::limits::SECTOR_BYTES;

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

/// Lets a table of `what`, which lies in `range`, name clusters where they have moved to. The entries of all tables but L2
/// tables hold offsets in the same bits.
pub(super) async fn point_to_tables<D: Disk>(
    target: &Target<'_, D>,
    range: Range<u64>,
    what: &str,
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
        write_changes(target, piece.start, &old, &bytes_of(&new), what).await?;
    }
    Ok(())
}

/// A list of entries that start with the place of a table and are of different lengths.
pub(super) struct List {
    what: &'static str,
    /// Bytes that every entry has.
    fixed_len: usize,
    /// Where in them the lengths of the rest stand.
    lens: &'static [Range<usize>],
}

/// The snapshot table: identifiers, names, extra data.
pub(super) const SNAPSHOTS: List =
    List { what: "snapshot table", fixed_len: 40, lens: &[12..14, 14..16, 36..40] };
/// The bitmap directory: names, extra data.
pub(super) const BITMAPS: List =
    List { what: "bitmap directory", fixed_len: 24, lens: &[18..20, 20..24] };

/// Lets the `count` entries of the list in `range` name tables where they have moved to.
pub(super) async fn point_to_listed<D: Disk>(
    target: &Target<'_, D>,
    list: &List,
    range: Range<u64>,
    count: u32,
    moves: &Moves,
) -> Result<()> {
    let geometry = target.geometry;
    let old = target.read(range.start, range.end - range.start, list.what).await?;
    let mut new = old.clone();
    let mut at = 0;
    for _ in 0..count {
        let Some(entry) = new.get_mut(at..at + list.fixed_len) else { break };
        let field = |bytes: Range<usize>| {
            entry[bytes].iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let len: u64 = list.lens.iter().cloned().map(field).sum();
        let table = geometry.host_cluster(HostOffset::new(field(0..8)));
        if let Some(place) = moves.place_of(table.get()) {
            let place = geometry.host_start(HostCluster::new(place)).get();
            entry[..8].copy_from_slice(&place.to_be_bytes());
        }
        at = (at + list.fixed_len + len as usize).next_multiple_of(8);
    }
    write_changes(target, range.start, &old, &new, list.what).await
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
