//! What both sides say differently on purpose, each with its reason. What they leave behind differently stands in
//! `behind.rs`.

use crate::run::Said;
use crate::script::Step;

/// A deliberate difference.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    pub reason: &'static str,
    /// The sides are not alike from there on, so the script ends.
    pub ends: bool,
    /// It comes of the files: of the same files both say the same.
    of_files: bool,
}

pub const fn ending(reason: &'static str) -> Difference {
    Difference { reason, ends: true, of_files: false }
}

const fn passing(reason: &'static str) -> Difference {
    Difference { reason, ends: false, of_files: false }
}

const fn of_files(reason: &'static str) -> Difference {
    Difference { reason, ends: false, of_files: true }
}

/// What both sides said to a command.
struct Seen<'a> {
    step: &'a Step,
    ours: &'a Said,
    theirs: &'a Said,
}

type Rule = (fn(&Seen<'_>) -> bool, Difference);

const RULES: &[Rule] = &[
    (
        |seen| seen.theirs.code.is_none(),
        ending("QEMU's program dies of a failed assertion, or hangs; ours does what was asked"),
    ),
    (
        |seen| seen.they_say("Lost persistent bitmaps during inactivation"),
        ending("QEMU sees only as it closes an image that a bitmap cannot be stored"),
    ),
    (
        |seen| seen.they_say("Image size is not a multiple of request alignment"),
        ending("ours does direct I/O on raw images of any length"),
    ),
    (
        |seen| seen.is("compare") && [seen.ours, seen.theirs].into_iter().all(has_same_content),
        of_files(
            "compare -s: which parts of a cluster are holes of the file is its writer's choice",
        ),
    ),
    (
        |seen| seen.we_say("is too large for file format") && seen.end_alike(),
        passing("a disk too large for its clusters: convert and dd advise what create advises"),
    ),
    (
        |seen| seen.is("check") && seen.they_say("Could not open backing file"),
        passing("check looks at one file, and takes no backing file for that"),
    ),
    (
        |seen| seen.we_say("Cannot downgrade an image with persistent bitmaps"),
        ending("amend compat=0.10 of an image with bitmaps: QEMU makes them unusable"),
    ),
    (
        |seen| seen.we_say("cannot expand the zero clusters of internal snapshots yet"),
        ending("amend compat=0.10 of zero clusters in snapshots is refused"),
    ),
    (
        |seen| seen.they_say("Repairing") && !seen.we_say("Repairing"),
        ending("lazy refcounts: ours never postpones counts, QEMU's leaves images to be repaired"),
    ),
    (
        |seen| seen.step.has("-s") && seen.we_say("Cannot change the option 'filename'"),
        ending("qemu-io -s: ours does not reopen a temporary image"),
    ),
    (
        |seen| seen.is("bitmap") && seen.we_say("Failed to get shared \"write\" lock"),
        passing("bitmap -b with the raw image itself: ours sees that it is in use"),
    ),
    (
        |seen| seen.we_say("an external data file not supported") && seen.theirs.code == Some(1),
        ending(
            "convert -c into an external data file: QEMU says nothing where all is zeros, and leaves the target",
        ),
    ),
    (
        |seen| seen.is("measure") && without_required(seen.ours) == without_required(seen.theirs),
        of_files(
            "measure: a cluster that is written in part has a hole of the file in the rest, or not, as its writer chose",
        ),
    ),
    (
        |seen| seen.is("measure") && seen.step.has("-l") && seen.succeeds(),
        passing("measure -l: ours measures the snapshot with its own size, QEMU with the disk's"),
    ),
    (
        |seen| {
            seen.ours.code == Some(0)
                && seen.they_say("Could not create snapshot")
                && seen.they_say("Invalid argument")
        },
        ending(
            "QEMU's shrinking leaves tables that hold nothing, which counts of one bit cannot share",
        ),
    ),
    (
        |seen| {
            seen.is("convert")
                && seen.step.has("-l")
                && seen.we_say("Bitmaps are of different sizes")
                && seen.theirs.code == Some(0)
        },
        ending(
            "convert -l --bitmaps: ours gives the target the snapshot's own size, and the bitmaps have the disk's",
        ),
    ),
    (
        |seen| {
            seen.is("rebase")
                && seen.step.has("-c")
                && seen.ours.code == Some(0)
                && seen.they_say("Error while writing to COW image: Input/output error")
        },
        ending("rebase -c: ours writes plainly into clusters that have a place, where QEMU fails"),
    ),
    (
        |seen| seen.is("snapshot") && seen.step.has("-a") && repeats_warning(seen),
        passing("snapshot -a of a raw image: QEMU opens it once more, and warns again"),
    ),
    (
        |seen| seen.is("amend") && seen.end_alike() && tell_of_counts(seen),
        passing("amend refcount_bits: where the cluster lies that has too large a count"),
    ),
    (
        |seen| seen.end_alike() && says_why(&seen.ours.stderr, &seen.theirs.stderr),
        passing("ours says why a cluster cannot be compressed, QEMU has a word of the host for it"),
    ),
    (
        |seen| seen.is("convert") && seen.step.has("-W") && tells_of_more(seen),
        ending("convert -W: QEMU tells of all writes under way that failed, ours of the first"),
    ),
];

impl Seen<'_> {
    fn is(&self, command: &str) -> bool {
        self.step.command() == command
    }

    fn we_say(&self, what: &str) -> bool {
        self.ours.stderr.contains(what)
    }

    fn they_say(&self, what: &str) -> bool {
        self.theirs.stderr.contains(what)
    }

    fn succeeds(&self) -> bool {
        [self.ours, self.theirs].into_iter().all(|said| said.code == Some(0))
    }

    fn end_alike(&self) -> bool {
        self.ours.code == self.theirs.code
    }
}

/// The deliberate difference, if that is one, between what both sides said to `step`.
pub fn find(step: &Step, ours: &Said, theirs: &Said) -> Option<Difference> {
    let seen = Seen { step, ours, theirs };
    RULES.iter().find(|(applies, _)| applies(&seen)).map(|&(_, difference)| difference)
}

/// As [`find`], where both sides looked at the same files; one of them may be an `external` data file, for whose holes QEMU
/// looks where the image's own file has many, and ours does not.
pub fn find_of_same_files(
    step: &Step,
    ours: &Said,
    theirs: &Said,
    external: bool,
) -> Option<Difference> {
    find(step, ours, theirs).filter(|difference| external || !difference.of_files)
}

/// What `measure` said, but for the size that a conversion requires.
fn without_required(said: &Said) -> (Option<i32>, &str, Vec<&str>) {
    let lines = said.stdout.lines().filter(|line| !line.contains("required"));
    (said.code, &said.stderr, lines.collect())
}

/// Whether `compare -s` found nothing else than parts that one image has and the other has not.
fn has_same_content(said: &Said) -> bool {
    // There may be progress around it.
    let differ = said.stdout.contains("Strict mode: Offset ")
        && said.stdout.contains("block status mismatch!\n");
    said.code == Some(0) || said.code == Some(1) && differ
}

/// Whether theirs is ours with its warning in front once more.
fn repeats_warning(seen: &Seen<'_>) -> bool {
    let again = seen.theirs.stderr.strip_suffix(&seen.ours.stderr);
    again.is_some_and(|again| again.starts_with("WARNING: ") && seen.ours.stderr.starts_with(again))
        && seen.end_alike()
        && seen.ours.stdout == seen.theirs.stdout
}

/// Whether both say that a count is too large for the new width, only not where.
fn tell_of_counts(seen: &Seen<'_>) -> bool {
    let without_place = |stderr: &str| {
        let (width, place) = stderr.split_once(" bits: Cluster at offset 0x")?;
        let (_, count) = place.split_once(' ')?;
        Some((width.to_owned(), count.to_owned()))
    };
    let [ours, theirs] = [seen.ours, seen.theirs].map(|said| without_place(&said.stderr));
    ours.is_some() && ours == theirs
}

/// Whether both failed to write, and theirs tells of that at several places, one of which is ours.
fn tells_of_more(seen: &Seen<'_>) -> bool {
    let place = |line: &str| {
        let (place, _) =
            line.strip_prefix("qemu-img: error while writing at byte ")?.split_once(':')?;
        Some(place.to_owned())
    };
    let [ours, theirs] = [seen.ours, seen.theirs]
        .map(|said| said.stderr.lines().map(place).collect::<Option<Vec<_>>>().unwrap_or_default());
    seen.end_alike() && ours.len() == 1 && theirs.contains(&ours[0])
}

/// Whether `ours` gives a reason of its own where `theirs` has the host's word.
fn says_why(ours: &str, theirs: &str) -> bool {
    let reasons = [
        ("over data that is there\n", "Input/output error\n"),
        ("an external data file has no compressed clusters\n", "Operation not supported\n"),
    ];
    reasons.into_iter().any(|(reason, word)| {
        let Some(start) = theirs.strip_suffix(word) else { return false };
        ours.ends_with(reason) && (ours.starts_with(start) || names_cluster(ours, start))
    })
}

/// Whether `ours`, which tells where the stretch starts that could not be written, names the cluster that `theirs` tells.
fn names_cluster(ours: &str, theirs: &str) -> bool {
    let place = theirs.strip_prefix("qemu-img: error while writing at byte ");
    let place = place.and_then(|place| place.strip_suffix(": ")?.parse::<u64>().ok());
    place.is_some_and(|place| ours.contains(&format!(" a compressed write at {place:#x} over ")))
}
