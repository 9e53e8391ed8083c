//! Our `check` and QEMU's on images of many kinds, damaged at random in any field and any cluster: the same exit code and
//! the same figures. After our repair of all that is wrong, both call the image clean, and what could be read through an
//! entry that makes sense is where it was, to the byte.
//!
//! `AGREEMENT_IMAGES` replaces the number of images, `AGREEMENT_FIRST` is the first seed; a failure tells its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use qcow::disk::sim::Random;
use qcow::engine::check::{Abort, Fault, Finding, Repair};
use tempfile::TempDir;

use crate::{Ours, each_seed, our_check};

mod anatomy;
mod damage;
mod kinds;
mod peer;
mod survivors;

use kinds::{KINDS, Sound};
use peer::{Peer, Verdict};
use survivors::Survivors;

/// Images for each change; `make soak` tries more than 5,000.
const IMAGES: u64 = 400;

/// Why an image is judged or repaired in another way than QEMU's, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// QEMU's check does not mind the zero flag in a version 2 image, although it cannot read the image there.
    ZeroFlagInVersion2,
    /// QEMU crashes, hangs, or asks for more memory than there is.
    QemuDies,
    /// A snapshot's L1 table is said to lie where no file reaches. QEMU gives up.
    SnapshotBeyondFiles,
    /// The header names no L1 table in the file. QEMU frees all that there is.
    L1IsLost,
    /// The header names no place for the snapshot table. QEMU forgets all snapshots, and frees what only they hold.
    SnapshotsAreLost,
}

#[test]
fn damaged_images_are_judged_alike_and_repaired_wholly() {
    let directory = TempDir::new().unwrap();
    let sound: Vec<Sound> = KINDS.iter().map(|kind| kind.make(directory.path())).collect();
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let first = number("AGREEMENT_FIRST").unwrap_or(0);
    let count = number("AGREEMENT_IMAGES").unwrap_or(IMAGES);
    let tally: Mutex<BTreeMap<String, u64>> = Mutex::default();
    each_seed(count, |seed| {
        let outcome = Case::make(&sound, directory.path(), first + seed).run();
        *tally.lock().unwrap().entry(outcome).or_default() += 1;
    });
    println!("{:#?}", tally.lock().unwrap());
}

struct Case<'s> {
    seed: u64,
    sound: &'s Sound,
    /// A directory of its own, with all files that the image needs.
    directory: PathBuf,
    image: Vec<u8>,
}

impl<'s> Case<'s> {
    fn make(sound: &'s [Sound], directory: &Path, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let sound = &sound[random.below(sound.len() as u64) as usize];
        let mut image = sound.image.clone();
        let damage = damage::damage(&mut image, sound.data_is_elsewhere(), &mut random);
        println!("seed {seed}, {}: {damage:#?}", sound.name);
        let directory = directory.join(format!("case-{seed}"));
        std::fs::create_dir(&directory).unwrap();
        for (name, bytes) in &sound.others {
            std::fs::write(directory.join(name), bytes).unwrap();
        }
        Self { seed, sound, directory, image }
    }

    /// Runs it; says how it went, in a word.
    fn run(self) -> String {
        let ours_path = self.put("ours");
        let ours = our_check(&ours_path, Repair::None);
        let theirs = Peer::check(&self.directory, "ours", &[]);
        println!("ours: {ours:?}\ntheirs: {theirs:?}");
        let mut difference = self.compare(&ours, &theirs);
        assert!(std::fs::read(&ours_path).unwrap() == self.image, "a check wrote to the image");
        let what = if exit_of(&ours) == 1 { "not checked" } else { "checked" };
        if exit_of(&ours) != 0 {
            difference = difference.or(self.repair(&ours_path));
        }
        std::fs::remove_dir_all(&self.directory).unwrap();
        match difference {
            Some(difference) => format!("{what}, {difference:?}"),
            None => what.into(),
        }
    }

    fn put(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::write(&path, &self.image).unwrap();
        path
    }

    fn compare(&self, ours: &Ours, theirs: &Verdict) -> Option<Difference> {
        let stricter = |f: &Finding| matches!(f, Finding::Fault(Fault::ZeroFlagInVersion2 { .. }));
        if ours.findings.iter().any(stricter) {
            return Some(Difference::ZeroFlagInVersion2);
        }
        let Verdict::Told { exit, figures } = theirs else { return Some(Difference::QemuDies) };
        let far = |f: &Finding| match f {
            Finding::Fault(Fault::PastEnd { offset, .. }) => i64::try_from(*offset).is_err(),
            _ => false,
        };
        if *exit == 1 && ours.findings.iter().any(far) {
            return Some(Difference::SnapshotBeyondFiles);
        }
        assert_eq!(exit_of(ours), *exit, "exit code");
        let (Ok(summary), Some(figures)) = (&ours.outcome, figures) else { return None };
        for (name, figure) in crate::figures(summary) {
            let expected = figures.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
            assert_eq!(figure, expected, "{name}");
        }
        None
    }

    /// Repairs the image, and looks at what is left of it.
    fn repair(&self, ours_path: &Path) -> Option<Difference> {
        let before = Survivors::of(&self.image, self.sound.data_is_elsewhere());
        let ours = our_check(ours_path, Repair::All);
        println!("our repair: {ours:?}");
        let refused = |f: &Finding| matches!(f, Finding::NotRepaired { .. });
        if ours.findings.iter().any(refused) {
            assert!(std::fs::read(ours_path).unwrap() == self.image, "it was changed all the same");
            return Some(Difference::L1IsLost);
        }
        let theirs_path = self.put("theirs");
        let Ok(summary) = &ours.outcome else {
            // What is not recognised as an image at all.
            let theirs = Peer::check(&self.directory, "theirs", &["-r", "all"]);
            println!("their repair: {theirs:?}");
            assert!(theirs.failed(), "QEMU repairs it");
            return None;
        };
        let lost = |f: &Finding| matches!(f, Finding::SnapshotTableUnusable { .. });
        if ours.findings.iter().any(lost) && summary.aborted == Some(Abort::Invalid) {
            assert!(std::fs::read(ours_path).unwrap() == self.image, "it was changed all the same");
            return Some(Difference::SnapshotsAreLost);
        }
        if summary.aborted == Some(Abort::Invalid) {
            let theirs = Peer::check(&self.directory, "theirs", &["-r", "all"]);
            assert!(theirs.failed(), "QEMU repairs it");
            return None;
        }
        let repaired = std::fs::read(ours_path).unwrap();
        let again = our_check(ours_path, Repair::None);
        println!("again: {again:?}");
        assert!(again.outcome.as_ref().unwrap().is_clean(), "it is not clean to us");
        let theirs = Peer::check(&self.directory, "ours", &[]);
        println!("theirs of ours: {theirs:?}");
        assert_eq!(theirs.exit(), Some(0), "it is not clean to QEMU");
        before.must_be_in(
            &Survivors::of(&repaired, self.sound.data_is_elsewhere()),
            &self.image,
            &repaired,
        );
        if self.seed.is_multiple_of(4) {
            self.compare_contents(&theirs_path, &before);
        }
        None
    }

    /// What survives reads the same in QEMU's repair.
    fn compare_contents(&self, theirs_path: &Path, before: &Survivors) {
        let repaired = Peer::check(&self.directory, "theirs", &["-r", "all"]);
        println!("their repair: {repaired:?}");
        if !matches!(repaired.exit(), Some(0 | 2 | 3)) {
            return;
        }
        let theirs = Peer::content(&self.directory, theirs_path.file_name().unwrap());
        let ours = Peer::content(&self.directory, "ours".as_ref());
        let (Some(ours), Some(theirs)) = (ours, theirs) else { return };
        for guest in before.active_offsets() {
            let range = guest.start.min(ours.len())..guest.end.min(ours.len());
            assert!(ours[range.clone()] == theirs[range], "the disk differs at {:#x}", guest.start);
        }
    }
}

fn exit_of(ours: &Ours) -> i32 {
    match &ours.outcome {
        Ok(summary) if summary.aborted.is_some() => 1,
        _ => ours.exit(),
    }
}
