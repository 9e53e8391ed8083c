//! Checking authenticated images, which are opened for that.

use std::path::Path;

use qcow::disk::uring::block_on;
use qcow::engine::check::{CheckSummary, Repair};
use qcow::format::sealed::root::RootTag;

use super::{CHECK_FAILED, Report, print_repairs, tell};
use crate::failure::{self, Failure, Outcome};
use crate::image::{HostImage, Opening};

/// Checks one authenticated image.
pub struct SealedChecker<'c> {
    /// How it is opened for a repair.
    pub opening: Opening<'c>,
    /// Its file.
    pub path: &'c Path,
    /// Whether all data is read.
    pub scrub: bool,
    /// The root that it must have, or a later one.
    pub root: Option<RootTag>,
}

impl SealedChecker<'_> {
    /// Checks the image, repairs what can be and may be, and checks it again.
    ///
    /// # Errors
    /// It cannot be opened, or the host failed.
    pub fn check_and_repair(&self, repair: Repair, quiet: bool) -> Outcome<Report> {
        let before = self.check()?;
        if repair == Repair::None || before.is_clean() {
            return Ok(Report { summary: before, leaks_fixed: 0, corruptions_fixed: 0 });
        }
        self.repair()?;
        let after = self.check()?;
        let leaks_fixed = before.leaks.saturating_sub(after.leaks);
        let corruptions_fixed = before.corruptions.saturating_sub(after.corruptions);
        if leaks_fixed + corruptions_fixed > 0 && !quiet {
            print_repairs(leaks_fixed, corruptions_fixed);
        }
        Ok(Report { summary: after, leaks_fixed, corruptions_fixed })
    }

    fn check(&self) -> Outcome<CheckSummary> {
        let image = self.open(false)?;
        let checked = block_on(image.check_authenticated(self.scrub, &mut tell));
        let mut summary = checked.map_err(|e| check_failed(&e))?;
        if let (Some(earlier), Some(now)) = (&self.root, image.root_tag())
            && !now.may_follow(earlier)
        {
            failure::tell_plain(&format!(
                "ERROR the image has root {now}, which does not follow {earlier}: an older state of the file, or another one, \
                 is in its place"
            ));
            summary.corruptions += 1;
        }
        Ok(summary)
    }

    /// Copies of the root are mended as the image is opened for writing; what is in use for nothing is given back.
    fn repair(&self) -> Outcome {
        let image = self.open(true)?;
        let repaired = block_on(async {
            if let Err(e) = image.sweep_authenticated().await {
                // What does not open may have led anywhere: then nothing is given back.
                failure::tell_plain(&format!("ERROR nothing is given back: {e}"));
            }
            image.close().await
        });
        repaired.map_err(|e| check_failed(&e))
    }

    fn open(&self, writable: bool) -> Outcome<HostImage> {
        let opening = Opening { writable, backing: false, ..self.opening };
        opening.open(self.path).map_err(|e| e.with_code(CHECK_FAILED))
    }
}

fn check_failed(error: &qcow::Error) -> Failure {
    Failure::new(format!("Check failed: {error}")).with_code(CHECK_FAILED)
}
