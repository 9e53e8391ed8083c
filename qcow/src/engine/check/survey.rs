//! All that an image says about its clusters, and what is wrong with that.

use super::compare;
use super::copied;
use super::counts::Counts;
use super::crew::Crew;
use super::mend::Mended;
use super::references::{self, Means, References};
use super::snapshots::{self, Snapshots};
use super::stored::{Block, StoredCounts};
use super::tally::{CheckSummary, Tally};
use super::target::Target;
use super::{Finding, Repair};
use crate::addr::HostCluster;
use crate::disk::Disk;
use crate::error::{Error, Result};

/// What an image says about its clusters.
pub(in crate::engine) struct Survey<'d, D> {
    pub(in crate::engine) target: Target<'d, D>,
    pub(in crate::engine) snapshots: Snapshots,
    pub(in crate::engine) references: References,
    pub(in crate::engine) stored: StoredCounts,
    /// Whether counts have been corrected since.
    pub(super) stored_changed: bool,
    crew: Crew,
}

impl<'d, D: Disk> Survey<'d, D> {
    /// Counts the references and holds them against the stored counts. `None` where something on the way cannot be read,
    /// which has been told. What is a matter of course for a `repair` to come is done at once.
    pub(super) async fn make(
        disk: &'d D,
        crew: Crew,
        repair: Repair,
        tally: &mut Tally<'_>,
    ) -> Result<Option<Self>> {
        let fix = repair == Repair::All;
        let mut target = Target::open(disk, repair == Repair::None).await?;
        tally.summary.total_clusters = target.geometry.clusters_for(target.header.virtual_size());
        let fix = fix && l1_is_lost(&target).is_none();
        let snapshots = snapshots::read(&mut target, fix, tally).await?;
        let Some(snapshots) = snapshots else { return Ok(None) };
        let mut stored = StoredCounts::read_table(&target).await?;
        if fix {
            stored.extend_file(&mut target).await?;
        }
        stored.read_singles(&target).await?;
        let means = Means { snapshots: &snapshots, stored: &stored, crew, fix };
        let references = references::collect(&target, &means, tally).await?;
        let Some(references) = references else { return Ok(None) };
        compare::compare(&target, &references.counts, &stored, tally).await?;
        Ok(Some(Self { target, snapshots, references, stored, stored_changed: false, crew }))
    }

    /// Surveys an image that is about to be changed, its COPIED flags included, and says what is wrong with it.
    pub(in crate::engine) async fn before_change(
        disk: &'d D,
        crew: Crew,
    ) -> Result<(Option<Self>, CheckSummary)> {
        let mut silent = |_: &Finding| ();
        let mut tally = Tally::new(&mut silent);
        let mut survey = Self::make(disk, crew, Repair::Leaks, &mut tally).await?;
        if let Some(survey) = &mut survey {
            survey.check_flags(false, &mut tally).await?;
        }
        Ok((survey, tally.summary))
    }

    /// Holds the COPIED flags against the stored counts; with `fix`, corrects them.
    pub(super) async fn check_flags(&mut self, fix: bool, tally: &mut Tally<'_>) -> Result<()> {
        let Self { target, references, stored, stored_changed, .. } = self;
        let in_doubt = |at| *stored_changed || references.flags_in_doubt.contains(&at);
        copied::check_flags(target, &references.tables, in_doubt, stored, fix, tally).await
    }

    /// Whether a cluster in use has no block to count it.
    pub(super) fn lacks_blocks(&self) -> bool {
        let (geometry, counts) = (self.target.geometry, &self.references.counts);
        (0..counts.len().div_ceil(geometry.refcounts_per_block())).any(|index| {
            let clusters = compare::clusters_of(geometry, index, counts.len());
            self.stored.block(index) == Block::Missing && counts.used_in(clusters).next().is_some()
        })
    }

    /// The references of the image with its tables mended, its old refcount structures included, and the first cluster
    /// behind all of it.
    pub(super) async fn references_of(&self, mended: &Mended) -> Result<(Counts, HostCluster)> {
        let disk = self.target.disk;
        let file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
        let target = Target::of(disk, mended.header.clone(), file_len, false)?;
        let mut silent = |_: &Finding| ();
        let mut tally = Tally::new(&mut silent);
        let (stored, crew) = (&self.stored, self.crew);
        let means = Means { snapshots: &mended.snapshots, stored, crew, fix: false };
        let found = references::collect(&target, &means, &mut tally).await?;
        let found = found.ok_or_else(|| Error::corrupt("the bitmaps cannot be read"))?;
        let end = target.clusters().max(found.counts.len()).max(self.references.counts.len());
        Ok((found.counts, HostCluster::new(end)))
    }
}

/// Why nothing can be repaired, if the header names no L1 table in the file: all that there is would be unused, and free to
/// be written over.
pub(super) fn l1_is_lost<D: Disk>(target: &Target<'_, D>) -> Option<String> {
    let (header, geometry) = (&target.header, target.geometry);
    let at = header.l1_table_offset.get();
    let inside = geometry.cluster_size()..target.file_len;
    let is_lost = header.l1_size > 0 && !inside.contains(&at);
    is_lost
        .then(|| format!("the header names no L1 table in the file (l1_table_offset is {at:#x})"))
}
