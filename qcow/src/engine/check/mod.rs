//! `check`: whether an image agrees with itself, and the repair of what can be repaired safely.
//!
//! The steps, each a file: [`references`] walks all metadata and counts who points where; [`compare`] holds that against
//! the counts that the image stores; [`blocks`] makes refcount blocks that are missing; [`repair`] corrects counts;
//! [`copied`] checks the COPIED flags of the active tables against the stored counts. What is found is a [`Finding`],
//! told to the caller at once and added up in the [`CheckSummary`].
//!
//! Each step of a repair is durable before the next one that relies on it, and the dirty bit goes last. So a crash in
//! between leaves an image that is no worse than before, and that still says so.
//!
//! Everything counts as QEMU 10 counts. A hostile image costs no more than its file is worth: memory is bounded by the
//! clusters of the file, holes are not read, and a table that is named many times is read once and counted many times.

use std::path::Path;

use super::load::{read_header, see_medium};
use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::feature::Incompatible;
use crate::format::header::Header;

mod blocks;
mod compare;
mod copied;
mod counts;
mod fault;
mod finding;
pub(super) mod live;
mod loose;
mod mark;
mod references;
mod repair;
mod stored;
mod tables;
mod tally;
mod usage;
mod uses;

pub use fault::Fault;
pub use finding::{Finding, Severity};
pub use tally::CheckSummary;
pub use usage::{ImageUsage, Usage};

use loose::{Claim, LooseL2};
use references::References;
use stored::StoredCounts;
use tally::Tally;

/// Most clusters of a file that can be checked (QEMU's limit).
const CLUSTERS_MAX: ClusterCount = i32::MAX as ClusterCount;

/// What `check` may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: it only looks.
    None,
    /// Counts of clusters that fewer tables point to than the image says, which wastes space but endangers nothing; and,
    /// where nothing is wrong beyond that, COPIED flags, the dirty and corrupt bits, and the close mark.
    Leaks,
    /// All counts, the missing refcount blocks included, COPIED flags, and the dirty and corrupt bits - provided that
    /// nothing else is wrong. Otherwise nothing is changed: a damaged entry may have meant a cluster that looks unused
    /// now, and a table that is something else, too, is not to be written to.
    All,
}

/// Checks the qcow2 image in `disk`, the file at `path`, and repairs what `repair` allows. Nobody else may write to it
/// meanwhile. Findings go to `report` as they are made; one that applies several times is reported once and counted as
/// often as it applies.
///
/// After a repair the summary tells what was found and fixed; whether all is well now, a second check tells. An encrypted
/// image is checked without its key.
///
/// # Errors
/// The file cannot be read or, for a repair, written; the header or the snapshot table is so broken that nothing behind
/// it can be found; or the image uses a feature that is not supported yet. Whatever else is wrong is a finding.
pub async fn check<D: Disk>(
    disk: &D,
    path: &Path,
    repair: Repair,
    report: &mut dyn FnMut(&Finding),
) -> Result<CheckSummary> {
    check_unnamed(disk, repair, report).await.map_err(|e| e.in_file(path))
}

async fn check_unnamed<D: Disk>(
    disk: &D,
    repair: Repair,
    report: &mut dyn FnMut(&Finding),
) -> Result<CheckSummary> {
    if repair != Repair::None && !disk.is_writable() {
        return Err(Error::read_only("cannot be repaired: it is open read-only"));
    }
    if repair != Repair::None {
        // Clusters become free on the strength of what is read: it has to be what a power cut would leave.
        see_medium(disk).await?;
    }
    let mut tally = Tally::new(report);
    let skip_holes = repair == Repair::None;
    let mut survey = Survey::make(disk, skip_holes, &mut tally).await?;
    let is_hopeless = tally.rebuild_needed || repair == Repair::Leaks && tally.uncounted;
    if repair != Repair::None && is_hopeless {
        // Writing to blocks that are not trustworthy themselves would do harm.
        tally.note(&Finding::RebuildNeeded, 1);
        return Ok(tally.summary);
    }
    let is_counts_only = !tally.references_hidden && !survey.references.overlap_tables;
    let repair = if repair == Repair::All && !is_counts_only { Repair::None } else { repair };
    if repair == Repair::All && survey.add_missing_blocks().await? {
        let mut silent = |_: &Finding| ();
        let mut again = Tally::new(&mut silent);
        survey = Survey::make(disk, skip_holes, &mut again).await?;
        tally.restart_from(&again);
    }
    let Survey { target, references, mut stored } = survey;
    if repair != Repair::None {
        let (counts, raise) = (&references.counts, repair == Repair::All);
        repair::correct_counts(&target, counts, &mut stored, raise, &mut tally).await?;
    }
    let fix_flags = repair != Repair::None && tally.summary.is_clean();
    copied::check_flags(&target, &references.tables, &mut stored, fix_flags, &mut tally).await?;
    let is_sound = tally.summary.check_errors == 0 && tally.summary.corruptions == 0;
    if repair != Repair::None && is_sound {
        repair::clear_damage_bits(&target).await?;
        if tally.summary.is_clean() {
            mark::set_clean(&target, &stored, references.counts.len()).await?;
        }
    }
    Ok(tally.summary)
}

/// What an image says about its clusters.
struct Survey<'d, D> {
    target: Target<'d, D>,
    references: References,
    stored: StoredCounts,
}

impl<'d, D: Disk> Survey<'d, D> {
    /// Counts the references and holds them against the stored counts.
    async fn make(disk: &'d D, skip_holes: bool, tally: &mut Tally<'_>) -> Result<Self> {
        let target = Target::open(disk, skip_holes).await?;
        tally.summary.total_clusters = target.geometry.clusters_for(target.header.virtual_size());
        let mut stored = StoredCounts::read(&target).await?;
        let references = references::collect(&target, &stored, tally).await?;
        compare::compare(&target, &references.counts, &mut stored, tally).await?;
        Ok(Self { target, references, stored })
    }

    /// Makes the refcount blocks that clusters in use lack; says whether there were any to make.
    async fn add_missing_blocks(&self) -> Result<bool> {
        blocks::add_missing(&self.target, &self.references.counts, &self.stored).await
    }
}

/// The image under test.
struct Target<'d, D> {
    disk: &'d D,
    header: Header,
    geometry: Geometry,
    /// Bytes.
    file_len: u64,
    /// Whether a table that the host calls a hole is taken for zeros without a look. Not where clusters become free on the
    /// strength of that: hosts have been known to call data a hole that was just being written.
    skip_holes: bool,
}

impl<'d, D: Disk> Target<'d, D> {
    async fn open(disk: &'d D, skip_holes: bool) -> Result<Self> {
        let header = read_header(disk).await?;
        if header.incompatible.contains(Incompatible::EXTENDED_L2) {
            let what = "check does not support images with extended L2 entries yet";
            return Err(Error::unsupported(what));
        }
        let geometry = header.geometry();
        let file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
        let clusters = geometry.clusters_for(file_len);
        if clusters > CLUSTERS_MAX {
            return Err(Error::limit(format!(
                "the file has {clusters} clusters, and check handles at most {CLUSTERS_MAX}"
            )));
        }
        Ok(Self { disk, header, geometry, file_len, skip_holes })
    }

    /// Clusters of the file, the last one perhaps in part.
    fn clusters(&self) -> ClusterCount {
        self.geometry.clusters_for(self.file_len)
    }

    /// What the entries of an L2 table claim.
    fn claims<'b>(&self, table: &'b [u8]) -> impl Iterator<Item = Claim> + use<'b, D> {
        let geometry = self.geometry;
        words(table).map(move |entry| LooseL2(entry).claim(geometry))
    }

    /// The cluster that holds byte `offset`, aligned or not.
    fn cluster_at(&self, offset: u64) -> HostCluster {
        self.geometry.host_cluster(HostOffset::new(offset))
    }
}

/// The big-endian words of a table.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|&word| u64::from_be_bytes(word))
}
