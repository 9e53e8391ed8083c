//! Changes to the image: counts that agree with the references, and a header that no longer tells of damage.
//!
//! Each change is safe on its own, so that a crash at any point leaves an image that is no worse than before.

use std::ops::Range;

use super::compare::{batches, clusters_of};
use super::counts::Counts;
use super::finding::Finding;
use super::stored::StoredCounts;
use super::tables::TableReader;
use super::tally::Tally;
use super::target::Target;
use crate::addr::{HostCluster, HostOffset};
use crate::disk::{Buffer, Disk};
use crate::engine::load::read_bytes;
use crate::error::{Error, Result};
use crate::format::feature::Incompatible;
use crate::format::header::Header;
use crate::limits::SECTOR_BYTES;
use crate::meta::refs::{read_count, set_count};

/// Lowers the counts of leaked clusters to their references, with `raise` also raises those that are too low, and makes
/// that durable. Counts without a block to hold them stay as they are.
pub(super) async fn correct_counts<D: Disk>(
    target: &Target<'_, D>,
    references: &Counts,
    stored: &mut StoredCounts,
    raise: bool,
    tally: &mut Tally<'_>,
) -> Result<()> {
    let summary = &tally.summary;
    if summary.leaks == 0 && (summary.corruptions == 0 || !raise) {
        return Ok(());
    }
    let geometry = target.geometry;
    let mut reader = TableReader::new(target);
    for batch in batches::<D>(geometry, references.len(), stored.table().len() as u64) {
        let blocks = batch.filter_map(|index| Some((index, stored.block(index).place()?)));
        let (indices, places): (Vec<u64>, Vec<u64>) = blocks.unzip();
        let read = reader.read(&places, geometry.cluster_size()).await?;
        for ((index, place), bytes) in indices.into_iter().zip(places).zip(read) {
            let clusters = clusters_of(geometry, index, references.len());
            // A block in a hole of the file holds zeros.
            let is_used = || raise && references.used_in(clusters.clone()).next().is_some();
            let zeros = || vec![0; geometry.cluster_size() as usize];
            let Some(mut bytes) = bytes.or_else(|| is_used().then(zeros)) else { continue };
            let count_max = geometry.refcount_max();
            let mut correction = Correction { references, count_max, stored, raise, tally };
            if correction.correct(geometry.refcount_order(), clusters, &mut bytes) {
                write(target, HostOffset::new(place), &bytes, "refcount block").await?;
            }
        }
    }
    stored.forget_sector();
    sync(target).await
}

struct Correction<'c, 'r> {
    references: &'c Counts,
    /// The largest count that the image can store.
    count_max: u64,
    stored: &'c mut StoredCounts,
    raise: bool,
    tally: &'c mut Tally<'r>,
}

impl Correction<'_, '_> {
    /// Corrects counts in a block; returns whether there were any to correct.
    fn correct(&mut self, order: u32, clusters: Range<u64>, block: &mut [u8]) -> bool {
        let mut changed = false;
        let repaired = true;
        for (index, cluster) in clusters.map(HostCluster::new).enumerate() {
            let refcount = read_count(block, order, index);
            let reference = self.references.get(cluster).min(self.count_max);
            let finding = if refcount > reference {
                Finding::Leaked { cluster, refcount, reference, repaired }
            } else if refcount < reference && self.raise {
                Finding::Undercounted { cluster, refcount, reference, repaired }
            } else {
                continue;
            };
            set_count(block, order, index, reference);
            self.stored.set_single(cluster, reference == 1);
            self.tally.note(&finding, 1);
            changed = true;
        }
        changed
    }
}

/// Takes the dirty and the corrupt bit out of the header of an image that has been found to be neither.
pub(super) async fn clear_damage_bits<D: Disk>(target: &Target<'_, D>) -> Result<()> {
    let damage = Incompatible::DIRTY.with(Incompatible::CORRUPT);
    let mut header = target.header.clone();
    header.incompatible = header.incompatible.without(damage);
    if header.incompatible == target.header.incompatible {
        return Ok(());
    }
    write_header(target, &header).await
}

/// Clears the autoclear bits that are not known here: what they vouch for is not kept up by a repair.
pub(in crate::engine) async fn clear_unknown_statements<D: Disk>(
    target: &mut Target<'_, D>,
) -> Result<()> {
    let mut header = target.header.clone();
    header.autoclear = header.autoclear.without(header.autoclear.unknown());
    if header.autoclear == target.header.autoclear {
        return Ok(());
    }
    write_header(target, &header).await?;
    target.header = header;
    Ok(())
}

/// Makes the fixed fields of `header` durable, all of them in one sector.
pub(in crate::engine) async fn write_header<D: Disk>(
    target: &Target<'_, D>,
    header: &Header,
) -> Result<()> {
    let at = HostOffset::new(0);
    let mut sector = read_bytes(target.disk, at, SECTOR_BYTES, "header").await?;
    header.patch_first_sector(&mut sector)?;
    write(target, at, &sector, "header").await?;
    sync(target).await
}

/// Writes `bytes` of `what` at `at`.
pub(in crate::engine) async fn write<D: Disk>(
    target: &Target<'_, D>,
    at: HostOffset,
    bytes: &[u8],
    what: &str,
) -> Result<()> {
    let written = target.disk.write(at, &Buffer::from_bytes(bytes).payload()).await;
    written.map_err(|e| Error::io(format!("Could not write {what} at {at}"), &e))
}

/// Makes all writes durable.
pub(in crate::engine) async fn sync<D: Disk>(target: &Target<'_, D>) -> Result<()> {
    target.disk.sync().await.map_err(|e| Error::io("Could not make the changes durable", &e))
}
