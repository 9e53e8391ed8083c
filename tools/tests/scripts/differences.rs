//! What differs on purpose, each with its reason.

use crate::run::Said;
use crate::script::Step;

/// A deliberate difference.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    pub reason: &'static str,
    /// The sides are not alike from there on, so the script ends.
    pub ends: bool,
}

const fn ending(reason: &'static str) -> Difference {
    Difference { reason, ends: true }
}

const fn passing(reason: &'static str) -> Difference {
    Difference { reason, ends: false }
}

/// The deliberate difference, if that is one, between what both sides said to `step`.
pub fn find(step: &Step, ours: &Said, theirs: &Said) -> Option<Difference> {
    if theirs.code.is_none() {
        return Some(ending("QEMU's program dies of a failed assertion; ours does what was asked"));
    }
    if theirs.stderr.contains("Lost persistent bitmaps during inactivation") {
        return Some(ending("QEMU sees only as it closes an image that a bitmap cannot be stored"));
    }
    if theirs.stderr.contains("Image size is not a multiple of request alignment") {
        return Some(ending("ours does direct I/O on raw images of any length"));
    }
    if step.command() == "compare"
        && step.has("-s")
        && (ours.code, theirs.code) == (Some(1), Some(1))
    {
        return Some(passing(
            "compare -s: QEMU counts holes in a file that it takes for one laid out in advance",
        ));
    }
    if ours.stderr.contains("is too large for file format") && ours.code == theirs.code {
        return Some(passing(
            "a disk too large for its clusters: convert and dd advise what create advises",
        ));
    }
    if theirs.stderr.contains("Could not open backing file") && step.command() == "check" {
        return Some(passing("check looks at one file, and takes no backing file for that"));
    }
    if ours.stderr.contains("Cannot downgrade an image with persistent bitmaps") {
        return Some(ending(
            "amend compat=0.10 of an image with bitmaps: QEMU makes them unusable",
        ));
    }
    if ours.stderr.contains("cannot expand the zero clusters of internal snapshots yet") {
        return Some(ending("amend compat=0.10 of zero clusters in snapshots is refused"));
    }
    if theirs.stderr.contains("Repairing") && !ours.stderr.contains("Repairing") {
        return Some(ending(
            "lazy refcounts: ours never postpones counts, QEMU's leaves images to be repaired",
        ));
    }
    if ours.stderr.contains("Cannot change the option 'filename'") && step.has("-s") {
        return Some(ending("qemu-io -s: ours does not reopen a temporary image"));
    }
    if ours.stderr.contains("Failed to get shared \"write\" lock") && step.command() == "bitmap" {
        return Some(passing("bitmap -b with the raw image itself: ours sees that it is in use"));
    }
    if ours.stderr.contains("an external data file not supported") && theirs.code == Some(1) {
        return Some(ending(
            "convert -c into an external data file: QEMU says nothing where all is zeros, and leaves the target",
        ));
    }
    if step.command() == "measure" && without_required(ours) == without_required(theirs) {
        return Some(passing(
            "measure: a cluster that is written in part has a hole of the file in the rest, or not, as its writer chose",
        ));
    }
    let said = |said: &Said, what| said.stderr.contains(what);
    if said(theirs, "Could not create snapshot")
        && said(theirs, "Invalid argument")
        && ours.code == Some(0)
    {
        return Some(ending(
            "QEMU's shrinking leaves tables that hold nothing, which counts of one bit cannot share",
        ));
    }
    None
}

/// What `measure` said, but for the size that a conversion requires.
fn without_required(said: &Said) -> (Option<i32>, &str, Vec<&str>) {
    let lines = said.stdout.lines().filter(|line| !line.contains("required"));
    (said.code, &said.stderr, lines.collect())
}

/// The deliberate difference between what both sides left behind, although they said the same.
pub fn find_behind(step: &Step, said: &Said) -> Option<Difference> {
    if step.command() == "rebase" && said.stderr.contains("backing format must be specified") {
        return Some(ending(
            "a rebase that is refused has changed nothing; QEMU's has written data",
        ));
    }
    if step.command() == "bench" && said.code != Some(0) {
        return Some(ending(
            "a failed bench: QEMU ends without closing the image, its bitmaps stay in use",
        ));
    }
    None
}
