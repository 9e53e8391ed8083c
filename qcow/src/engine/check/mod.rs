//! `check`: whether an image agrees with itself, and its repair.
//!
//! A [`survey`] walks all metadata and counts who points where ([`references`]), and holds that against the counts that the
//! image stores ([`compare`]). [`repair`] corrects counts in place; [`mend`] writes tables anew that break a rule, and
//! [`rebuild`] refcount structures; [`copied`] checks the COPIED flags of the active tables against the stored counts.
//! What is found is a [`Finding`], told to the caller at once and added up in the [`CheckSummary`].
//!
//! Each step of a repair is durable before the next one that relies on it, and the dirty bit goes last. So a crash in
//! between leaves an image that is no worse than before, and that still says so.
//!
//! Everything counts as QEMU 10 counts. A hostile image costs no more than its file is worth: memory is bounded by the
//! clusters of the file, holes are not read, and a table that is named many times is read once and counted many times.

use std::path::Path;

use super::load::{probe, read_header_cluster, see_medium};
use super::options::Format;
use super::sealed::{is_sealed, read_sealed_header};
use crate::addr::{ClusterCount, HostCluster};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::header::Header;

mod bits;
mod compare;
mod copied;
mod counts;
mod crew;
mod fault;
mod finding;
pub(super) mod live;
mod loose;
mod mark;
mod mend;
mod rebuild;
mod references;
mod repair;
mod snapshots;
mod stored;
mod survey;
mod tables;
mod tally;
mod target;
mod usage;
mod uses;
mod width;

pub use crew::{Crew, Work};
pub use fault::{Fault, Growth};
pub use finding::{EntryChange, Finding, Severity};
pub use tally::{Abort, CheckSummary};
pub use usage::{ImageUsage, Usage};
pub use width::change_refcount_width;

use survey::Survey;
use tally::Tally;

/// What [`super::compact`] is made of, too.
pub(super) mod parts {
    pub(in crate::engine) use super::bits::Bits;
    pub(in crate::engine) use super::counts::Counts;
    pub(in crate::engine) use super::loose::{Claim, L2Format, LooseL1, LooseL2};
    pub(in crate::engine) use super::mark::set_clean;
    pub(in crate::engine) use super::rebuild::encode_block;
    pub(in crate::engine) use super::references::snapshot_l1;
    pub(in crate::engine) use super::repair::{
        clear_unknown_statements, sync, write, write_header,
    };
    pub(in crate::engine) use super::stored::StoredCounts;
    pub(in crate::engine) use super::survey::Survey;
    pub(in crate::engine) use super::tables::TableReader;
    pub(in crate::engine) use super::target::Target;
    pub(in crate::engine) use super::words;
}

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
    /// now, and a table that is something else, too, is not to be written to. What is due before an image is written to
    /// that was not closed cleanly.
    Counts,
    /// Everything. Whatever can be read stays as it is. What cannot be found any more - the data of an entry that names no
    /// possible place, what a lost table told of - reads as zeros, or as the backing file, from then on.
    All,
}

/// The format of the file in `disk`, which is taken to be `format` if that is given. A qcow2 image is one that [`check`]
/// can look at.
///
/// # Errors
/// The file cannot be read, or the header is so broken that nothing behind it can be found.
pub async fn examine<D: Disk>(disk: &D, path: &Path, format: Option<Format>) -> Result<Format> {
    let examined = async {
        let format = match format {
            Some(format) => format,
            None => probe(disk).await?,
        };
        if format == Format::Qcow2 && is_sealed(disk).await? {
            read_sealed_header(disk).await?;
        } else if format == Format::Qcow2 {
            let (cluster0, file_len) = read_header_cluster(disk).await?;
            Header::parse_damaged(&cluster0, file_len)?;
        }
        Ok(format)
    };
    examined.await.map_err(|e: Error| e.in_file(path))
}

/// Whether the qcow2 image in `disk` is an authenticated one, which is to be opened and
/// [checked](super::Image::check_authenticated) as a whole.
///
/// # Errors
/// The file cannot be read.
pub async fn is_authenticated<D: Disk>(disk: &D) -> Result<bool> {
    is_sealed(disk).await
}

/// Checks the qcow2 image in `disk`, the file at `path`, and repairs what `repair` allows. Nobody else may write to it
/// meanwhile. Findings go to `report` as they are made; one that applies several times is reported once and counted as
/// often as it applies.
///
/// After a repair the summary tells what was found and fixed; whether all is well now, a second check tells. An encrypted
/// image is checked without its key, and an external data file is not looked at.
///
/// # Errors
/// The file cannot be read or, for a repair, written; or the header is so broken that nothing behind it can be found.
/// Whatever else is wrong is a finding.
pub async fn check<D: Disk>(
    disk: &D,
    path: &Path,
    repair: Repair,
    report: &mut dyn FnMut(&Finding),
) -> Result<CheckSummary> {
    check_by(Crew::ALONE, disk, path, repair, report).await
}

/// As [`check`], by the threads of `crew`.
///
/// # Errors
/// As [`check`].
pub async fn check_by<D: Disk>(
    crew: Crew,
    disk: &D,
    path: &Path,
    repair: Repair,
    report: &mut dyn FnMut(&Finding),
) -> Result<CheckSummary> {
    let mut tally = Tally::new(report);
    let checked = Check { disk, crew, repair }.run(&mut tally).await;
    checked.map_err(|e| e.in_file(path))?;
    Ok(tally.summary)
}

struct Check<'d, D> {
    disk: &'d D,
    crew: Crew,
    repair: Repair,
}

impl<D: Disk> Check<'_, D> {
    async fn run(&self, tally: &mut Tally<'_>) -> Result<()> {
        if self.repair != Repair::None {
            if !self.disk.is_writable() {
                return Err(Error::read_only("cannot be repaired: it is open read-only"));
            }
            // Clusters become free on the strength of what is read: it has to be what a power cut would leave.
            see_medium(self.disk).await?;
        }
        let survey = Survey::make(self.disk, self.crew, self.repair, tally).await?;
        let Some(mut survey) = survey else { return Ok(()) };
        if self.repair != Repair::None {
            repair::clear_unknown_statements(&mut survey.target).await?;
        }
        let Some(survey) = self.repair_tables(survey, tally).await? else { return Ok(()) };
        self.repair_flags(survey, tally).await
    }

    /// Repairs all but flags and marks, as far as that is allowed. `None` where the check ends with that.
    async fn repair_tables<'d>(
        &'d self,
        survey: Survey<'d, D>,
        tally: &mut Tally<'_>,
    ) -> Result<Option<Survey<'d, D>>> {
        if self.repair == Repair::None {
            return Ok(Some(survey));
        }
        // What has been told as repaired by now is repaired with the tables.
        let is_told_repaired = tally.summary.corruptions_fixed > 0 || survey.snapshots.is_outdated;
        if tally.summary.is_clean() && !survey.references.broken_bitmaps && !is_told_repaired {
            return Ok(Some(survey));
        }
        if let Some(reason) = survey::l1_is_lost(&survey.target) {
            tally.note(&Finding::NotRepaired { reason }, 1);
            return Ok(None);
        }
        mark::forget_session(&survey.target).await?;
        let is_sound = !tally.references_hidden && !survey.references.overlap_tables;
        match self.repair {
            Repair::Leaks if tally.rebuild_needed || tally.uncounted => self.give_up(tally),
            Repair::Counts if tally.has_faults || !is_sound => Ok(None),
            Repair::Counts if survey.lacks_blocks() => self.rebuild(survey, false, tally).await,
            Repair::All if !is_sound || is_told_repaired => self.rebuild(survey, true, tally).await,
            Repair::All if tally.rebuild_needed || tally.uncounted => {
                self.rebuild(survey, false, tally).await
            }
            _ => self.correct_counts(survey, tally).await,
        }
    }

    /// Writing to blocks that are not trustworthy themselves would do harm.
    fn give_up<'d>(&self, tally: &mut Tally<'_>) -> Result<Option<Survey<'d, D>>> {
        tally.note(&Finding::RebuildNeeded, 1);
        tally.summary.aborted = Some(Abort::NeedsRebuild);
        Ok(None)
    }

    async fn correct_counts<'d>(
        &self,
        mut survey: Survey<'d, D>,
        tally: &mut Tally<'_>,
    ) -> Result<Option<Survey<'d, D>>> {
        let Survey { target, references, stored, .. } = &mut survey;
        let raise = self.repair != Repair::Leaks;
        repair::correct_counts(target, &references.counts, stored, raise, tally).await?;
        survey.stored_changed = true;
        Ok(Some(survey))
    }

    /// Makes the refcount structures anew, and, with `mend`, all tables that are wrong. What it leaves is surveyed again.
    async fn rebuild<'d>(
        &'d self,
        survey: Survey<'d, D>,
        mend: bool,
        tally: &mut Tally<'_>,
    ) -> Result<Option<Survey<'d, D>>> {
        // Where QEMU does the same, it says so.
        let is_told = self.repair == Repair::All && (tally.rebuild_needed || tally.uncounted);
        if is_told {
            tally.note(&Finding::Rebuilding, 1);
        }
        if mend {
            let mended =
                mend::mend(&survey.target, &survey.snapshots, &survey.references, tally).await?;
            let (counts, end) = survey.references_of(&mended).await?;
            // Nothing that is there is written over: what no table names may be what a damaged one meant.
            rebuild::rebuild(&survey.target, mended.header, counts, end, tally).await?;
        } else {
            let header = survey.target.header.clone();
            let floor = HostCluster::new(0);
            rebuild::rebuild(&survey.target, header, survey.references.counts, floor, tally)
                .await?;
        }
        let report = &mut *tally.report;
        let mut tell_steps = |finding: &Finding| match finding {
            Finding::Leaked { repaired, .. } if !repaired || !is_told => (),
            _ => report(finding),
        };
        let mut again = Tally::new(&mut tell_steps);
        let survey = Survey::make(self.disk, self.crew, Repair::Leaks, &mut again).await?;
        // The old structures are leaks now, which were not found but made.
        let survey = match survey {
            Some(survey) => self.correct_counts(survey, &mut again).await?,
            None => None,
        };
        let now = again.summary;
        tally.restart_from(now);
        Ok(survey)
    }

    async fn repair_flags(&self, mut survey: Survey<'_, D>, tally: &mut Tally<'_>) -> Result<()> {
        let fix = match self.repair {
            Repair::None => false,
            Repair::Leaks | Repair::Counts => tally.summary.is_clean(),
            Repair::All => true,
        };
        survey.check_flags(fix, tally).await?;
        let Survey { target, references, stored, .. } = survey;
        let is_sound = tally.summary.check_errors == 0 && tally.summary.corruptions == 0;
        if self.repair != Repair::None && is_sound {
            repair::clear_damage_bits(&target).await?;
            if tally.summary.is_clean() {
                mark::set_clean(&target, &stored, references.counts.len()).await?;
            }
        }
        Ok(())
    }
}

/// The big-endian words of a table.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|&word| u64::from_be_bytes(word))
}
