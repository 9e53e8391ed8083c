//! Adds up what a check finds.

use super::finding::{Finding, Severity};
use crate::addr::ClusterCount;

/// The figures of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckSummary {
    /// Contradictions that endanger data, not counting those that were fixed.
    pub corruptions: u64,
    /// Clusters that are counted higher than they are used, not counting those that were fixed.
    pub leaks: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// Things that could not be checked or repaired.
    pub check_errors: u64,
    /// Clusters of the virtual disk.
    pub total_clusters: ClusterCount,
    /// Clusters of the virtual disk that have a place in the file.
    pub allocated_clusters: ClusterCount,
    /// Allocated clusters that are compressed.
    pub compressed_clusters: ClusterCount,
    /// Allocated clusters that do not lie right behind the one before; compressed ones always count.
    pub fragmented_clusters: ClusterCount,
    /// Where the last cluster in use ends, in bytes of the file.
    pub image_end_offset: u64,
    /// Why the check did not get to its end: the figures are only those of its beginning.
    pub aborted: Option<Abort>,
}

/// Why a check cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// The snapshot table is larger than any image needs.
    TooLarge,
    /// The snapshot table or a bitmap breaks a rule without which nothing behind it can be found.
    Invalid,
    /// The refcount structures are so damaged that what was asked for cannot be done.
    NeedsRebuild,
}

impl std::fmt::Display for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "File too large",
            Self::Invalid => "Invalid argument",
            Self::NeedsRebuild => "Input/output error",
        })
    }
}

impl CheckSummary {
    /// Whether nothing is wrong, or nothing any more.
    pub fn is_clean(&self) -> bool {
        let found = self.corruptions + self.leaks + self.check_errors;
        found == 0 && self.aborted.is_none()
    }
}

/// A summary in the making, and who wants to hear of findings.
pub(super) struct Tally<'r> {
    pub(super) summary: CheckSummary,
    /// The refcount structures cannot be repaired in place.
    pub(super) rebuild_needed: bool,
    /// A cluster in use counts zero.
    pub(super) uncounted: bool,
    /// Not every reference is known for sure.
    pub(super) references_hidden: bool,
    /// Something is wrong beyond counts and flags.
    pub(super) has_faults: bool,
    pub(super) report: &'r mut dyn FnMut(&Finding),
}

impl<'r> Tally<'r> {
    pub(super) fn new(report: &'r mut dyn FnMut(&Finding)) -> Self {
        Self {
            summary: CheckSummary::default(),
            rebuild_needed: false,
            uncounted: false,
            references_hidden: false,
            has_faults: false,
            report,
        }
    }

    /// Goes on from what another survey says now, after the refcount structures have changed.
    pub(super) fn restart_from(&mut self, now: CheckSummary) {
        let before = self.summary;
        self.summary = now;
        self.summary.corruptions_fixed =
            before.corruptions_fixed + before.corruptions.saturating_sub(now.corruptions);
        self.summary.leaks_fixed = before.leaks_fixed + before.leaks.saturating_sub(now.leaks);
    }

    /// Reports findings, each with how often it applies.
    pub(super) fn note_all(&mut self, findings: impl IntoIterator<Item = (Finding, u64)>) {
        for (finding, times) in findings {
            self.note(&finding, times);
        }
    }

    /// Reports `finding`, which applies `times` times.
    pub(super) fn note(&mut self, finding: &Finding, times: u64) {
        if times == 0 {
            return;
        }
        (self.report)(finding);
        self.rebuild_needed |= finding.needs_rebuild();
        self.uncounted |= matches!(finding, Finding::Undercounted { refcount: 0, .. });
        self.references_hidden |= finding.hides_references();
        self.has_faults |= finding.is_fault();
        let summary = &mut self.summary;
        let figure = match finding.severity() {
            Severity::Corruption => &mut summary.corruptions,
            Severity::Leak => &mut summary.leaks,
            Severity::CheckError => &mut summary.check_errors,
            Severity::Step => return,
            Severity::CorruptionFixed => {
                if matches!(finding, Finding::Undercounted { .. }) {
                    // It was found first and fixed later; flags are fixed as they are found.
                    summary.corruptions -= times;
                }
                &mut summary.corruptions_fixed
            }
            Severity::LeakFixed => {
                // It was found first and fixed later.
                summary.leaks -= times;
                &mut summary.leaks_fixed
            }
        };
        *figure = figure.saturating_add(times);
    }
}
