//! What becomes of counts and COPIED flags when all that an L1 table leads to gains or loses a reference at once: a snapshot
//! is taken, applied or deleted.
//!
//! [`trees`] tells which L2 tables are concerned, [`rows`] what they name, [`blocks`] holds the counts while they change by the million, and this
//! file goes through the entries of one L2 table.

use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::error::{Error, Result};
use crate::format::entry::{COMPRESSED, COPIED, CompressedExtent, L2Entry, Mapping, OFFSET_MASK};

pub mod blocks;
pub mod rows;
pub mod trees;

/// The COPIED flag in the first byte of an entry.
const COPIED_BYTE: u8 = (COPIED >> 56) as u8;

/// Entries that are compared at once.
const STRIDE: usize = 32;

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
    let size = geometry.l2_entry_bytes() as usize;
    let (mut first, mut count) = (HostCluster::new(0), 0);
    let mut rest = table;
    while !rest.is_empty() {
        let entry = descriptor(rest);
        let (next, more, entries) = match Named::by(entry, geometry)? {
            Named::Nothing => (first, 0, 1),
            Named::Cluster(cluster) => {
                let row = row_len(geometry, entry & OFFSET_MASK, rest);
                (cluster, row, row as usize)
            }
            Named::Compressed(extent) => {
                let (next, more) = geometry.host_span(extent.offset, extent.len);
                (next, more, 1)
            }
        };
        rest = &rest[entries * size..];
        if more == 0 {
            continue;
        }
        if count > 0 && first.plus(count) == next && entry & COMPRESSED == 0 {
            count += more;
            continue;
        }
        if count > 0 {
            visit(first, count)?;
        }
        (first, count) = (next, more);
    }
    if count > 0 { visit(first, count) } else { Ok(()) }
}

/// Sets the COPIED flag of each entry of an L2 table that names a whole cluster to what `fate` says of the cluster: of how
/// many of a row, one at least, and what. Whether that changed anything.
///
/// # Errors
/// An entry is damaged.
pub fn set_flags(
    geometry: Geometry,
    table: &mut [u8],
    mut fate: impl FnMut(HostCluster, ClusterCount) -> (ClusterCount, bool),
) -> Result<bool> {
    let size = geometry.l2_entry_bytes() as usize;
    let mut rest = table;
    let mut changed = false;
    while let Some(entry) = rest.first_chunk() {
        let place = u64::from_be_bytes(*entry) & (COMPRESSED | OFFSET_MASK);
        if place == 0 || place & COMPRESSED != 0 {
            rest = &mut rest[size..];
            continue;
        }
        if !geometry.is_cluster_aligned(place) {
            return Err(unaligned(place));
        }
        let row = row_len(geometry, place, rest);
        let (count, single) = fate(geometry.host_cluster(HostOffset::new(place)), row);
        let (part, behind) = rest.split_at_mut(count as usize * size);
        changed |= flag_entries(part, size, single);
        rest = behind;
    }
    Ok(changed)
}

/// How many entries from the first one on, which names what lies at `place`, name clusters in a row.
fn row_len(geometry: Geometry, place: u64, table: &[u8]) -> ClusterCount {
    match geometry.l2_entry_bytes() {
        8 => row_len_of::<8>(geometry.cluster_size(), place, table),
        _ => row_len_of::<16>(geometry.cluster_size(), place, table),
    }
}

fn row_len_of<const SIZE: usize>(cluster_size: u64, place: u64, table: &[u8]) -> ClusterCount {
    let (entries, _) = table.as_chunks::<SIZE>();
    // No place that can be addressed has the bits that an offset behind all of them would need.
    let differs = |(expected, entry): (u64, &[u8; SIZE])| {
        descriptor(entry) & (COMPRESSED | OFFSET_MASK) ^ expected
    };
    let expected = |index: usize| place + index as u64 * cluster_size;
    let mut start = 0;
    for stride in entries.chunks(STRIDE) {
        // Without a way out halfway, many are looked at in one go.
        let all = (start..).map(expected).zip(stride);
        if all.fold(0, |any, pair| any | differs(pair)) != 0 {
            break;
        }
        start += stride.len();
    }
    let rest = (start..).map(expected).zip(&entries[start..]);
    (start + rest.take_while(|&pair| differs(pair) == 0).count()) as u64
}

/// Sets the COPIED flag of entries of `size` bytes. Whether that changed anything.
fn flag_entries(entries: &mut [u8], size: usize, single: bool) -> bool {
    let flag = if single { COPIED_BYTE } else { 0 };
    entries.chunks_exact_mut(size).fold(false, |changed, entry| {
        let flagged = entry[0] & !COPIED_BYTE | flag;
        changed | (std::mem::replace(&mut entry[0], flagged) != flagged)
    })
}

fn unaligned(offset: u64) -> Error {
    Error::corrupt(format!("Cluster allocation offset {offset:#x} unaligned"))
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
        let third = |cluster: HostCluster, _| (1, cluster.get() == 3);
        assert!(set_flags(geometry, &mut table, third).expect("sound"));
        assert_eq!(table, bytes(&[0x2_0000, bitmap, COPIED | 0x3_0000, bitmap, 0, bitmap]));
        assert!(!set_flags(geometry, &mut table, third).expect("sound"));
    }

    #[test]
    fn rows_get_their_flags_at_once() {
        let geometry = Geometry::new(16, 4);
        let mut table = bytes(&[0x2_0000, COPIED | 0x3_0000, 0x4_0000, 0, 0x5_0000, 0x9_0000]);
        let mut asked = Vec::new();
        let fate = |first: HostCluster, count: ClusterCount| {
            asked.push((first.get(), count));
            (count.min(2), first.get() < 4)
        };
        assert!(set_flags(geometry, &mut table, fate).expect("sound"));
        assert_eq!(asked, [(2, 3), (4, 1), (5, 1), (9, 1)]);
        let expected = [COPIED | 0x2_0000, COPIED | 0x3_0000, 0x4_0000, 0, 0x5_0000, 0x9_0000];
        assert_eq!(table, bytes(&expected));
        set_flags(geometry, &mut bytes(&[0x200]), |_, n| (n, true)).expect_err("unaligned");
    }
}
