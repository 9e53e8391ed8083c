//! What becomes of counts and COPIED flags when all that an L1 table leads to gains or loses a reference at once: a snapshot
//! is taken, applied or deleted.
//!
//! [`trees`] tells which L2 tables are concerned, [`blocks`] holds the counts while they change by the million, and this
//! file goes through the entries of one L2 table.

use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::error::{Error, Result};
use crate::format::entry::{COMPRESSED, COPIED, CompressedExtent, L2Entry, Mapping, OFFSET_MASK};

pub mod blocks;
pub mod trees;

/// What an L2 entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Nothing,
    /// A whole cluster, whose count decides about the entry's COPIED flag.
    Cluster(HostCluster),
    Compressed(CompressedExtent),
}

impl Named {
    #[inline]
    fn by(entry: u64, geometry: Geometry) -> Result<Self> {
        if entry & COMPRESSED != 0 {
            return Self::compressed(entry, geometry);
        }
        match entry & OFFSET_MASK {
            0 => Ok(Self::Nothing),
            offset if geometry.is_cluster_aligned(offset) => {
                Ok(Self::Cluster(geometry.host_cluster(HostOffset::new(offset))))
            }
            offset => Err(unaligned(offset)),
        }
    }

    fn compressed(entry: u64, geometry: Geometry) -> Result<Self> {
        match L2Entry(entry).parse(geometry, false)? {
            Mapping::Compressed(extent) => Ok(Self::Compressed(extent)),
            _ => Ok(Self::Nothing),
        }
    }
}

/// Visits the clusters that the entries of an L2 table name, in order: the first of a row, and how many. Compressed data
/// names each cluster that it touches.
///
/// # Errors
/// An entry is damaged; or what `visit` fails with.
pub fn for_each_named(
    geometry: Geometry,
    table: &[u8],
    mut visit: impl FnMut(HostCluster, ClusterCount) -> Result<()>,
) -> Result<()> {
    let (mut first, mut count) = (HostCluster::new(0), 0);
    // What an entry says, but for its flags, where it goes on with the row: almost all do.
    let mut expected = u64::MAX;
    for entry in descriptors(geometry, table) {
        if entry & (COMPRESSED | OFFSET_MASK) == expected {
            expected = next_offset(geometry, expected);
            count += 1;
            continue;
        }
        let (next, more) = match Named::by(entry, geometry)? {
            Named::Nothing => continue,
            Named::Cluster(cluster) => (cluster, 1),
            Named::Compressed(extent) => geometry.host_span(extent.offset, extent.len),
        };
        if count > 0 {
            visit(first, count)?;
        }
        (first, count) = (next, more);
        expected = match entry & COMPRESSED {
            0 => next_offset(geometry, entry & OFFSET_MASK),
            _ => u64::MAX,
        };
    }
    if count > 0 { visit(first, count) } else { Ok(()) }
}

/// Sets the COPIED flag of each entry of an L2 table that names a whole cluster to what `is_single` says of the cluster.
/// Whether that changed anything.
///
/// # Errors
/// An entry is damaged.
pub fn set_flags(
    geometry: Geometry,
    table: &mut [u8],
    mut is_single: impl FnMut(HostCluster) -> bool,
) -> Result<bool> {
    let mut changed = false;
    for bytes in table.chunks_exact_mut(geometry.l2_entry_bytes() as usize) {
        let entry = descriptor(bytes);
        let place = entry & (COMPRESSED | OFFSET_MASK);
        if place == 0 || place & COMPRESSED != 0 {
            continue;
        }
        if !geometry.is_cluster_aligned(place) {
            return Err(unaligned(place));
        }
        let single = is_single(geometry.host_cluster(HostOffset::new(place)));
        if single != (entry & COPIED != 0) {
            bytes[..8].copy_from_slice(&(entry ^ COPIED).to_be_bytes());
            changed = true;
        }
    }
    Ok(changed)
}

fn unaligned(offset: u64) -> Error {
    Error::corrupt(format!("Cluster allocation offset {offset:#x} unaligned"))
}

/// What follows `offset` in a row of clusters; nothing does at the end of all that can be addressed.
#[inline]
fn next_offset(geometry: Geometry, offset: u64) -> u64 {
    match offset + geometry.cluster_size() {
        next if next & OFFSET_MASK == next => next,
        _ => u64::MAX,
    }
}

/// The words of a table's entries that say where a cluster lies.
fn descriptors(geometry: Geometry, table: &[u8]) -> impl Iterator<Item = u64> + '_ {
    table.chunks_exact(geometry.l2_entry_bytes() as usize).map(descriptor)
}

/// The first of an entry's words; an extended entry has another one.
#[inline]
fn descriptor(entry: &[u8]) -> u64 {
    entry.first_chunk().map_or(0, |&word| u64::from_be_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn entries_name_their_clusters_and_compressed_ones_all_that_they_touch() {
        let geometry = Geometry::new(16, 4);
        let extent = CompressedExtent { offset: HostOffset::new(0x5_fe00), len: 1024 };
        let compressed = L2Entry::from_mapping(geometry, Mapping::Compressed(extent)).0;
        let table = bytes(&[0, 0x9_0000, COPIED | 0x3_0000, 1, 0x4_0001, compressed]);
        let mut named = Vec::new();
        let visit = |first: HostCluster, count| {
            named.push((first.get(), count));
            Ok(())
        };
        for_each_named(geometry, &table, visit).expect("sound");
        assert_eq!(named, [(9, 1), (3, 2), (5, 2)], "neighbours go together");
        for_each_named(geometry, &bytes(&[0x200]), |_, _| Ok(())).expect_err("unaligned");
    }

    #[test]
    fn flags_follow_the_counts_and_nothing_else_changes() {
        let geometry = Geometry::new(16, 4).with_extended_l2(true);
        let bitmap = COPIED | 0x2_0000;
        let mut table = bytes(&[COPIED | 0x2_0000, bitmap, 0x3_0000, bitmap, 0, bitmap]);
        let changed = set_flags(geometry, &mut table, |cluster| cluster.get() == 3);
        assert!(changed.expect("sound"));
        assert_eq!(table, bytes(&[0x2_0000, bitmap, COPIED | 0x3_0000, bitmap, 0, bitmap]));
        let again = set_flags(geometry, &mut table, |cluster| cluster.get() == 3);
        assert!(!again.expect("sound"));
    }
}
