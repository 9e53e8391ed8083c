//! Learning where all metadata of an image lies, before it is written to for the first time.

use std::path::Path;

use super::load::read_words;
use crate::addr::{Geometry, HostCluster};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::entry::L1Entry;
use crate::format::header::Header;
use crate::format::snapshot::SnapshotEntry;
use crate::limits::SNAPSHOT_L1_BYTES_READ_MAX;
use crate::meta::Meta;
use crate::meta::regions::{Kind, Regions};

/// Enters the header, all tables and the snapshots with their tables into `meta.regions`.
///
/// # Errors
/// A table is damaged, lies past the end of the file, or shares a cluster with another one; or the host failed.
pub(super) async fn map_regions<D: Disk>(
    disk: &D,
    path: &Path,
    header: &Header,
    snapshots: &(Vec<SnapshotEntry>, u64),
    meta: &mut Meta,
) -> Result<()> {
    let geometry = header.geometry();
    let mut regions = meta.own_regions(geometry)?;
    let check_inside = |table| meta.check_inside(geometry, Kind::L2, table);
    add_snapshots(disk, path, header, snapshots, &mut regions, check_inside).await?;
    *meta.regions_mut() = regions;
    Ok(())
}

/// Enters the snapshots with their tables into `regions`; `check_inside` says whether a table lies inside the file.
///
/// # Errors
/// As [`map_regions`].
pub(super) async fn add_snapshots<D: Disk>(
    disk: &D,
    path: &Path,
    header: &Header,
    (snapshots, table_len): &(Vec<SnapshotEntry>, u64),
    regions: &mut Regions,
    check_inside: impl Fn(HostCluster) -> Result<()>,
) -> Result<()> {
    let geometry = header.geometry();
    if *table_len > 0 {
        let (first, count) = geometry.host_span(header.snapshots_offset, *table_len);
        regions.add(Kind::SnapshotTable, first, count)?;
    }
    let file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
    for snapshot in snapshots {
        snapshot.check_l1(geometry, file_len)?;
        let (first, count) = geometry.host_span(snapshot.l1_table_offset, l1_len(snapshot));
        // No two tables share a cluster: what is read below is read once.
        regions.add(Kind::SnapshotL1, first, count)?;
    }
    let mut left = SNAPSHOT_L1_BYTES_READ_MAX;
    for snapshot in snapshots {
        let Some(rest) = left.checked_sub(l1_len(snapshot)) else {
            tracing::warn!(
                "{}: its snapshots have more than {SNAPSHOT_L1_BYTES_READ_MAX} bytes of L1 tables: \
                 the L2 tables of some are guarded by their refcounts alone",
                path.display()
            );
            break;
        };
        left = rest;
        let added = add_tables(disk, geometry, snapshot, regions, &check_inside).await;
        added.map_err(|e| e.context(format!("snapshot '{}'", snapshot.name.display())))?;
    }
    Ok(())
}

/// Bytes of a snapshot's L1 table.
fn l1_len(snapshot: &SnapshotEntry) -> u64 {
    u64::from(snapshot.l1_size) * 8
}

/// Enters the L2 tables of `snapshot`. While it exists, so do they: nobody takes these uses back.
async fn add_tables<D: Disk>(
    disk: &D,
    geometry: Geometry,
    snapshot: &SnapshotEntry,
    regions: &mut Regions,
    check_inside: impl Fn(HostCluster) -> Result<()>,
) -> Result<()> {
    let at = snapshot.l1_table_offset;
    let words = read_words(disk, at, snapshot.l1_size.into(), "Snapshot L1 table").await?;
    for (index, word) in words.into_iter().enumerate() {
        let table = L1Entry(word).parse(geometry);
        let table = table.map_err(|e| e.context(format!("entry {index}")))?;
        if let Some(table) = table {
            check_inside(table.cluster)?;
            regions.add(Kind::L2, table.cluster, 1)?;
        }
    }
    Ok(())
}
