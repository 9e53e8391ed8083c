//! Random scripts: both programs take turns on one image, write to it and change its bitmaps; after each turn its bitmaps
//! are what the model says, for both to read, and the image is clean.
//!
//! A failure names its seed; `BITMAP_SEED=N cargo test -p qcow --test bitmap scripts` repeats it alone.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use qcow::disk::Buffer;
use qcow::disk::sim::Random;
use qcow::disk::uring::{UringDisk, block_on};
use qcow::engine::Image;

use crate::model::Model;
use crate::place::{Place, expect_clean, list, marked, open, qemu_img, qemu_io, read, text};

/// Scripts of one run.
const SCRIPTS: u64 = 10;
/// Turns of a script.
const TURNS: u64 = 7;
/// Changes of one turn.
const CHANGES: u64 = 7;
const SECTOR: u64 = 512;
const NAMES: [&str; 3] = ["b0", "another one", "z"];

#[test]
fn both_engines_agree_on_scripts() {
    if let Ok(seed) = std::env::var("BITMAP_SEED") {
        return Script::new(seed.parse().expect("BITMAP_SEED is a number")).run();
    }
    let factor: u64 = std::env::var("SOAK_FACTOR").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    for seed in 0..SCRIPTS * factor {
        let ran = catch_unwind(AssertUnwindSafe(|| Script::new(seed).run()));
        assert!(
            ran.is_ok(),
            "repeat with: BITMAP_SEED={seed} cargo test -p qcow --test bitmap scripts"
        );
    }
}

/// One change.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Add(&'static str, u64, bool),
    Remove(&'static str),
    Clear(&'static str),
    Enable(&'static str, bool),
    Merge(&'static str, &'static str),
    Resize(u64),
}

struct Script {
    random: Random,
    place: Place,
    path: PathBuf,
    model: Model,
}

impl Script {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let place = Place::new();
        let cluster = 512 << random.below(6);
        let size = (1 + random.below(6000)) * SECTOR;
        let refcount = 1 << random.below(7);
        let path =
            place.make("image", &format!("cluster_size={cluster},refcount_bits={refcount}"), size);
        println!("seed {seed}: clusters of {cluster}, counts of {refcount} bits, {size} bytes");
        Self { random, place, path, model: Model::new(size) }
    }

    fn run(&mut self) {
        for _ in 0..TURNS {
            let steps: Vec<Step> =
                (0..1 + self.random.below(CHANGES)).map(|_| self.step()).collect();
            let ours = self.random.below(3) > 0;
            println!("{} {steps:x?}", if ours { "ours" } else { "theirs" });
            if ours {
                block_on(self.by_us(&steps));
            } else {
                self.by_qemu(&steps);
            }
            self.check();
        }
    }

    /// A step that makes sense now; the model takes it.
    fn step(&mut self) -> Step {
        loop {
            let step = self.any_step();
            if self.apply(&step) {
                return step;
            }
        }
    }

    fn any_step(&mut self) -> Step {
        let name = NAMES[self.random.below(3) as usize];
        let sectors = self.model.size / SECTOR;
        let at = self.random.below(sectors);
        let longest = [8, 300, 6000][self.random.below(3) as usize].min(sectors - at);
        let len = (1 + self.random.below(longest)) * SECTOR;
        let flag = self.random.below(2) == 0;
        match self.random.below(20) {
            0..6 => Step::Write(at * SECTOR, len),
            6..8 => Step::Zero(at * SECTOR, len, flag),
            8..10 => Step::Discard(at * SECTOR, len),
            10..13 => Step::Add(name, 512 << self.random.below(9), self.random.below(4) > 0),
            13 => Step::Remove(name),
            14 => Step::Clear(name),
            15..17 => Step::Enable(name, flag),
            17..19 => Step::Merge(name, NAMES[self.random.below(3) as usize]),
            _ => Step::Resize((1 + self.random.below(6000)) * SECTOR),
        }
    }

    fn apply(&mut self, step: &Step) -> bool {
        let model = &mut self.model;
        let there = |name: &str| model.bitmaps.contains_key(name);
        match *step {
            Step::Write(at, len) | Step::Zero(at, len, _) | Step::Discard(at, len) => {
                model.change(at, len);
            }
            Step::Add(name, granularity, enabled) if !there(name) => {
                model.add(name, granularity, enabled);
            }
            Step::Remove(name) if there(name) => drop(model.bitmaps.remove(name)),
            Step::Clear(name) if there(name) => {
                model.bitmaps.get_mut(name).expect("there").marked.fill(false);
            }
            Step::Enable(name, enable) if there(name) => {
                model.bitmaps.get_mut(name).expect("there").enabled = enable;
            }
            Step::Merge(to, from) if there(to) && there(from) => model.merge(to, from),
            Step::Resize(size) => model.resize(size),
            _ => return false,
        }
        true
    }

    async fn by_us(&self, steps: &[Step]) {
        let image = open(&self.path).await;
        for step in steps {
            carry_out(&image, step).await.unwrap_or_else(|e| panic!("{step:?}: {e}"));
        }
        image.close().await.expect("close");
    }

    fn by_qemu(&self, steps: &[Step]) {
        let image = text(&self.path);
        let bitmap = |options: &[&str], name| {
            qemu_img(&[&["bitmap", "-f", "qcow2"], options, &[image, name]].concat());
        };
        for step in steps {
            match *step {
                Step::Write(at, len) => qemu_io(&self.path, &[format!("write -q {at} {len}")]),
                Step::Zero(at, len, unmap) => {
                    let unmap = if unmap { "-u " } else { "" };
                    qemu_io(&self.path, &[format!("write -q -z {unmap}{at} {len}")]);
                }
                Step::Discard(at, len) => qemu_io(&self.path, &[format!("discard -q {at} {len}")]),
                Step::Add(name, granularity, enabled) => {
                    let granularity = granularity.to_string();
                    let enable = if enabled { "--enable" } else { "--disable" };
                    bitmap(&["--add", "-g", &granularity, enable], name);
                }
                Step::Remove(name) => bitmap(&["--remove"], name),
                Step::Clear(name) => bitmap(&["--clear"], name),
                Step::Enable(name, true) => bitmap(&["--enable"], name),
                Step::Enable(name, false) => bitmap(&["--disable"], name),
                Step::Merge(to, from) => bitmap(&["--merge", from], to),
                Step::Resize(size) => {
                    let size = size.to_string();
                    qemu_img(&["resize", "-q", "-f", "qcow2", "--shrink", image, &size]);
                }
            }
        }
    }

    fn check(&self) {
        let found = list(&self.path);
        let seen = |info: &qcow::engine::bitmap::BitmapInfo| {
            assert!(info.usable, "{info:?}");
            (info.name.to_string_lossy().into_owned(), info.granularity, info.enabled)
        };
        let mut found: Vec<_> = found.iter().map(seen).collect();
        found.sort();
        let wanted = self.model.bitmaps.iter();
        let wanted: Vec<_> =
            wanted.map(|(name, b)| (name.clone(), b.granularity, b.enabled)).collect();
        assert_eq!(found, wanted);
        for (name, bitmap) in &self.model.bitmaps {
            let ours = marked(&read(&self.path, name).expect("read"), bitmap.granularity);
            assert_eq!(ours, bitmap.marked, "what we read of '{name}'");
            let theirs =
                self.place.read_by_qemu(&self.path, name, self.model.size, bitmap.granularity);
            assert_eq!(theirs, bitmap.marked, "what QEMU reads of '{name}'");
        }
        expect_clean(&self.path);
    }
}

async fn carry_out(image: &Image<UringDisk>, step: &Step) -> qcow::Result<()> {
    match *step {
        Step::Write(at, len) => {
            image.write(at, &Buffer::from_bytes(&vec![0xb1; len as usize]).payload()).await
        }
        Step::Zero(at, len, unmap) => image.write_zeroes(at, len, unmap).await,
        Step::Discard(at, len) => image.discard(at, len).await,
        Step::Add(name, granularity, enabled) => {
            image.add_bitmap(OsStr::new(name), Some(granularity), enabled).await
        }
        Step::Remove(name) => image.remove_bitmap(OsStr::new(name)).await,
        Step::Clear(name) => image.clear_bitmap(OsStr::new(name)).await,
        Step::Enable(name, enable) => image.enable_bitmap(OsStr::new(name), enable).await,
        Step::Merge(to, from) => {
            let bits = image.read_bitmap(OsStr::new(from)).await?;
            image.merge_bitmap(OsStr::new(to), &bits).await
        }
        Step::Resize(size) => image.resize(size, true).await,
    }
}
