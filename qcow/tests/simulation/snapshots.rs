//! Internal snapshots under power cuts: at every event of writes and of snapshots that come, go and become the disk, and
//! again while the image that is found is being opened, repaired and closed.
//!
//! One request at a time, each made durable before the next. So what is found is known to the sector: all that was before
//! the request under way, or all that is after it; of a write, each sector the one or the other.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::sim::{Random, SimDisk, World};
use qcow::engine::check::{Finding, Repair, check};
use qcow::engine::{Format, FoundRedo, Image, OpenOptions, SnapshotChoice};
use qcow::format::header::Header;
use qcow::format::mark::MarkState;

use crate::case::{Case, SECTOR, Shape, Start};
use crate::cut::Cut;
use crate::drive::{SimGate, open, read};
use crate::hunt::{message_of, wanted};
use crate::memory::Memory;
use crate::recover::check_tables;
use crate::start::{Files, files, initial, key, sectors};

/// Cases for each change, and in a long run.
const CASES: u64 = 80;
const CASES_SOAK: u64 = 20_000;
/// On authenticated images.
const SEALED_CASES: u64 = 8;
/// Cases that a seeded bug may take to be found.
#[cfg(feature = "seeded-bugs")]
const BUG_CASES: u64 = 400;
/// Most requests of a case.
const STEPS_MAX: u64 = 10;
/// States of a moment that are looked at, at most.
const STATES: u64 = 6;
/// One event in so many is looked at again while a state is being used.
const AGAIN_ONE_IN: u64 = 16;
/// One state in so many is shown to QEMU.
const QEMU_ONE_IN: u64 = 1500;
/// Most snapshots of an image: with refcounts of two bits, more could not be counted.
const SNAPSHOTS_MAX: usize = 2;

/// All that an image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    disk: Vec<u64>,
    snapshots: Vec<Vec<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Write { at: u64, count: u64 },
    Discard { at: u64, count: u64 },
    Resize(u64),
    Create,
    Apply(usize),
    Delete(usize),
}

/// The request under way, and what the image holds before and after it.
#[derive(Clone, Debug)]
pub struct Moment {
    step: Option<Step>,
    before: Content,
    after: Content,
}

impl Moment {
    pub fn at_rest(content: Content) -> Self {
        Self { step: None, before: content.clone(), after: content }
    }

    /// Panics unless `found` may be found now.
    pub fn check(&self, found: &Content) {
        if *found == self.before || *found == self.after {
            return;
        }
        let in_part = matches!(self.step, Some(Step::Write { .. } | Step::Discard { .. }));
        let alike = found.snapshots == self.before.snapshots
            && found.disk.len() == self.before.disk.len()
            && found
                .disk
                .iter()
                .zip(self.before.disk.iter().zip(&self.after.disk))
                .all(|(found, (before, after))| found == before || found == after);
        // A disk that shrinks loses what lies behind its end before it has its new size.
        let shrinks = matches!(self.step, Some(Step::Resize(size)) if {
            let size = size as usize;
            found.snapshots == self.before.snapshots
                && found.disk.len() == self.before.disk.len()
                && size < found.disk.len()
                && found.disk[..size] == self.before.disk[..size]
        });
        assert!(in_part && alike || shrinks, "{:?}: {found:x?} of {self:x?}", self.step);
    }

    /// Whether `found` shows that a snapshot has come or has become the disk.
    fn has_switched(&self, found: &Content) -> bool {
        let comes = matches!(self.step, Some(Step::Create | Step::Apply(_)));
        comes && *found == self.after && self.before != self.after
    }
}

fn shape_of(random: &mut Random) -> Shape {
    let pick = |random: &mut Random, of: &[u64]| of[random.below(of.len() as u64) as usize];
    let start = match random.below(5) {
        0 => Start::Empty,
        1 => Start::Backing(12),
        2 => Start::Snapshot,
        3 => Start::Compressed,
        _ => Start::Filled,
    };
    let version3 = random.below(3) > 0;
    let refcount_order = if version3 { pick(random, &[4, 3, 2, 6]) as u32 } else { 4 };
    let extended = version3 && random.below(12) == 0;
    let cluster_bits = if extended { 14 } else { pick(random, &[9, 9, 10, 12]) as u32 };
    let size = pick(random, &[16, 57]);
    Shape { size, cluster_bits, refcount_order, version3, extended, start }
}

/// An authenticated image.
fn sealed_shape_of(random: &mut Random) -> Shape {
    let start = match random.below(3) {
        0 => Start::Checksummed(9),
        1 => Start::Sealed(600),
        _ => Start::SealedBacking(12),
    };
    let size = [16, 57, 640][random.below(3) as usize];
    Shape { size, cluster_bits: 12, ..Case::plain(start).shape }
}

fn step_of(random: &mut Random, shape: &Shape, now: &Content) -> Step {
    let count = now.snapshots.len();
    let size = now.disk.len() as u64;
    let at = random.below(size);
    let len = 1 + random.below(9).min(size - at - 1);
    match random.below(10) {
        0..=2 => Step::Write { at, count: len },
        3 => Step::Discard { at, count: len },
        4 if shape.version3 => Step::Resize(8 + random.below(100)),
        5 | 6 if count < SNAPSHOTS_MAX => Step::Create,
        _ if count == 0 => Step::Write { at, count: len },
        7 | 8 => Step::Apply(random.below(count as u64) as usize),
        _ => Step::Delete(random.below(count as u64) as usize),
    }
}

fn after(step: Step, shape: &Shape, now: &Content, stamp: u64) -> Content {
    let mut next = now.clone();
    match step {
        Step::Write { at, count } => {
            (at..at + count).for_each(|s| next.disk[s as usize] = stamp | s);
        }
        Step::Discard { at, count } => {
            let sectors = shape.whole_clusters(at, count, now.disk.len() as u64);
            let bare = shape.backing().is_some() && !shape.version3;
            for sector in sectors.filter(|_| !bare) {
                next.disk[sector as usize] = 0;
            }
        }
        Step::Resize(size) => next.disk.resize(size as usize, 0),
        Step::Create => next.snapshots.push(now.disk.clone()),
        Step::Apply(index) => next.disk = now.snapshots[index].clone(),
        Step::Delete(index) => drop(next.snapshots.remove(index)),
    }
    next
}

/// Carries a step out; a write or a discard without making it durable.
async fn carry_out(image: &Image<SimDisk>, step: Step, stamp: u64) -> qcow::Result<()> {
    match step {
        Step::Write { at, count } => {
            let bytes = sectors((at..at + count).map(|s| stamp | s));
            image.write(at * SECTOR, &Buffer::from_bytes(&bytes).payload()).await
        }
        Step::Discard { at, count } => image.discard(at * SECTOR, count * SECTOR).await,
        Step::Resize(size) => image.resize(size * SECTOR, true).await,
        Step::Create => {
            image.create_snapshot("name".as_ref(), Duration::from_secs(1)).await.map(drop)
        }
        Step::Apply(index) => image.apply_snapshot(&nth(image, index).await?).await,
        Step::Delete(index) => image.delete_snapshot(&nth(image, index).await?).await,
    }
}

async fn nth(image: &Image<SimDisk>, index: usize) -> qcow::Result<SnapshotChoice> {
    Ok(SnapshotChoice::Id(image.snapshots().await?[index].id.clone()))
}

/// Everything that can be read of the image, by somebody who does not change it.
pub async fn content_of(gate: &SimGate) -> Content {
    let keys = vec![Some(key())];
    let options = OpenOptions { format: Some(Format::Qcow2), keys, ..OpenOptions::default() };
    let whole = async |options: &OpenOptions| {
        let image = Image::open(gate, Path::new("image"), options).await.expect("open to read");
        let values = read(&image, 0, image.virtual_size() / SECTOR).await.expect("read");
        (image, values)
    };
    let (image, disk) = whole(&options).await;
    let mut snapshots = Vec::new();
    for snapshot in image.snapshots().await.expect("the snapshots") {
        let snapshot = Some(SnapshotChoice::Id(snapshot.id));
        snapshots.push(whole(&OpenOptions { snapshot, ..options.clone() }).await.1);
    }
    Content { disk, snapshots }
}

/// The case of a seed: an image, and what is done to it.
pub struct Scene {
    seed: u64,
    shape: Shape,
    pub world: World,
    pub gate: SimGate,
    pub moment: RefCell<Moment>,
    /// Where the redo log is, if there is one. Then not every step is made durable.
    pub memory: Option<Memory>,
}

impl Scene {
    pub fn new(seed: u64) -> Self {
        Self::of(seed, shape_of(&mut Random::new(seed ^ 0x5a9)))
    }

    /// The same on an authenticated image.
    pub fn sealed(seed: u64) -> Self {
        Self::of(seed, sealed_shape_of(&mut Random::new(seed ^ 0x5a9)))
    }

    fn of(seed: u64, shape: Shape) -> Self {
        let world = World::new(seed);
        let gate = files(&shape).put_into(&world);
        let disk: Vec<u64> = (0..shape.size).map(|sector| initial(&shape, sector)).collect();
        let snapshots =
            if shape.start == Start::Snapshot { vec![disk.clone()] } else { Vec::new() };
        let moment = RefCell::new(Moment::at_rest(Content { disk, snapshots }));
        Self { seed, shape, world, gate, moment, memory: None }
    }

    /// The same with a redo log.
    pub fn with_redo(seed: u64) -> Self {
        Self { memory: Some(Memory::new(1 + seed % 9)), ..Self::new(seed) }
    }

    /// Does up to `count_max` things to the image, one after the other, and closes it.
    ///
    /// # Errors
    /// The first one that the image tells of.
    pub async fn play(&self, count_max: u64) -> qcow::Result<()> {
        let mut random = Random::new(self.seed ^ 0x57e9);
        let mut image = self.open().await?;
        for number in 1..=1 + random.below(count_max) {
            self.do_one(&image, &mut random, number << 32).await?;
            if random.below(4) == 0 {
                image.close().await?;
                image = self.open().await?;
            }
        }
        image.close().await
    }

    async fn open(&self) -> qcow::Result<Image<SimDisk>> {
        let image = open(&self.gate, 1 << 20).await?;
        if let Some(memory) = &self.memory {
            image.attach_redo_log(memory.share(), FoundRedo::Replay).await?;
        }
        Ok(image)
    }

    async fn do_one(
        &self,
        image: &Image<SimDisk>,
        random: &mut Random,
        stamp: u64,
    ) -> qcow::Result<()> {
        let now = self.moment.borrow().before.clone();
        let step = step_of(random, &self.shape, &now);
        *self.moment.borrow_mut() =
            Moment { step: Some(step), after: after(step, &self.shape, &now, stamp), before: now };
        let mut after = self.moment.borrow().after.clone();
        let flushes = self.memory.is_none() || (stamp >> 32).is_multiple_of(4);
        let done = match carry_out(image, step, stamp).await {
            Ok(()) if flushes => image.flush().await,
            other => other,
        };
        match done {
            Ok(()) => {}
            // Compressed clusters share a cluster of the file, and narrow counts cannot count them all.
            Err(e) if e.kind() == ErrorKind::Invalid && self.shape.refcount_order < 4 => {
                after = self.moment.borrow().before.clone();
            }
            Err(e) => return Err(e.context(format!("{step:?}"))),
        }
        after.disk = read(image, 0, image.virtual_size() / SECTOR).await?;
        self.moment.borrow().check(&after);
        *self.moment.borrow_mut() = Moment::at_rest(after);
        Ok(())
    }

    pub fn looker(&self, qemu: bool) -> Looker {
        let random = RefCell::new(Random::new(self.seed));
        Looker { shape: self.shape, qemu, states: Cell::new(0), random }
    }

    /// Panics unless the image, which was closed, is clean and holds what it is to hold.
    pub fn expect_closed(&self) {
        let found = self.world.block_on(content_of(&self.gate));
        self.moment.borrow().check(&found);
        expect_clean(&self.world, &self.gate);
    }
}

/// Runs the case of `seed` with power cuts at every event; how many states were looked at.
fn run(scene: &Scene, qemu: bool) -> u64 {
    let looker = scene.looker(qemu);
    let observe = || looker.cut(&scene.gate, &scene.moment.borrow(), true);
    let played = scene.world.run(scene.play(STEPS_MAX), observe);
    played.expect("nothing hangs").unwrap_or_else(|e| panic!("{e}"));
    scene.expect_closed();
    looker.states.get()
}

pub struct Looker {
    shape: Shape,
    qemu: bool,
    states: Cell<u64>,
    random: RefCell<Random>,
}

impl Looker {
    /// Looks at what a power cut at this moment may leave.
    pub fn cut(&self, gate: &SimGate, moment: &Moment, first: bool) {
        let cut = Cut::now(gate);
        let wanted = if first { STATES } else { 1 };
        for index in 0..cut.count().min(wanted) {
            let state = match cut.count() <= wanted {
                true => cut.state(index),
                false => cut.sample(&mut self.random.borrow_mut()),
            };
            self.examine(&cut.files(&state), moment, first);
        }
    }

    /// Looks at an image that was left like that: it is opened, repaired and closed, and keeps what it holds.
    pub fn examine(&self, files: &Files, moment: &Moment, first: bool) {
        self.states.set(self.states.get() + 1);
        let world = World::new(self.states.get());
        let gate = files.clone().put_into(&world);
        let found = world.block_on(content_of(&gate));
        moment.check(&found);
        self.check_tables(&world, &gate, moment, &found);
        if self.qemu && self.states.get().is_multiple_of(QEMU_ONE_IN) {
            show_qemu(files, &found, self.shape.version3);
        }
        let rest = Moment::at_rest(found.clone());
        let reopened = async {
            let image = open(&gate, 1 << 20).await.expect("open");
            image.recover_leaks(&AtomicBool::new(false)).await.expect("recover");
            image.close().await.expect("close");
        };
        let observe = || {
            if first && self.random.borrow_mut().below(AGAIN_ONE_IN) == 0 {
                self.cut(&gate, &rest, false);
            }
        };
        world.run(reopened, observe).expect("nothing hangs");
        assert_eq!(world.block_on(content_of(&gate)), found, "after it was opened and closed");
        expect_clean(&world, &gate);
    }

    /// Nothing but leaks may be wrong, unless the image itself says that counts and flags are behind. In version 2 no count
    /// may ever be too low, nor a flag claim for one what is shared.
    fn check_tables(&self, world: &World, gate: &SimGate, moment: &Moment, found: &Content) {
        if self.shape.is_authenticated() {
            return expect_clean(world, gate);
        }
        let bytes = gate.image.to_vec();
        let dirty = self.shape.version3 && bytes[79] & 1 == 1;
        let header = Header::parse(&bytes[..1 << self.shape.cluster_bits], bytes.len() as u64);
        let mark = header.expect("a header").extensions.mark.map(|mark| mark.state());
        let unsettled = mark == Some(MarkState::Unsettled);
        assert!(!unsettled || !self.shape.version3, "only version 2 needs the mark for that");
        let switched = moment.has_switched(found);
        let mut wrong = Vec::new();
        let mut report = |finding: &Finding| match finding {
            Finding::Leaked { .. } => {}
            Finding::CopiedFlagOfTable { entry, .. }
            | Finding::CopiedFlagOfCluster { entry, .. }
                if unsettled && !(switched && entry >> 63 == 1) => {}
            other => wrong.push(other.to_string()),
        };
        world
            .block_on(check(&gate.image, Path::new("image"), Repair::None, &mut report))
            .expect("check");
        assert!(dirty || wrong.is_empty(), "{:?}: {wrong:#?}", moment.step);
    }
}

pub fn expect_clean(world: &World, gate: &SimGate) {
    let (_, wrong) = world.block_on(check_tables(gate));
    assert!(wrong.is_empty(), "after a clean close: {wrong:#?}");
}

/// QEMU repairs the image, by `check` or by opening it for writing, and then finds nothing wrong and reads the same.
fn show_qemu(files: &Files, found: &Content, version3: bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    if let Some(backing) = &files.backing {
        std::fs::write(path("backing"), backing.to_vec()).expect("write");
    }
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).current_dir(directory.path()).args(arguments).output();
        let output = output.expect(program);
        (
            output.status.code(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    std::fs::write(path("opened"), files.image.to_vec()).expect("write");
    std::fs::write(path("checked"), files.image.to_vec()).expect("write");
    let opened = run("qemu-io", &["-f", "qcow2", "-c", "flush", "opened"]);
    assert_eq!(opened.0, Some(0), "qemu-io: {}", opened.1);
    run("qemu-img", &["check", "-f", "qcow2", "-r", "all", "checked"]);
    for name in ["opened", "checked"] {
        let check = run("qemu-img", &["check", "-f", "qcow2", name]);
        // QEMU repairs what it opens only where the dirty bit asks for it, and so may leave leaks.
        let allowed = if name == "opened" { [Some(0), Some(3)] } else { [Some(0); 2] };
        let repaired = version3 || name == "checked";
        let clean = allowed.contains(&check.0) || !repaired;
        assert!(clean, "qemu-img check of what was {name}: {}", check.1);
        let convert = run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", name, "raw"]);
        assert_eq!(convert.0, Some(0), "qemu-img convert: {}", convert.1);
        let read = std::fs::read(path("raw")).expect("what QEMU read");
        assert!(read == sectors(found.disk.iter().copied()), "QEMU reads other bytes");
    }
}

#[test]
fn no_power_cut_leaves_half_a_snapshot() {
    hunt("no_power_cut_leaves_half_a_snapshot", CASES, |seed| run(&Scene::new(seed), true));
}

#[test]
fn no_power_cut_leaves_half_a_snapshot_of_an_authenticated_image() {
    let test = "no_power_cut_leaves_half_a_snapshot_of_an_authenticated_image";
    hunt(test, SEALED_CASES, |seed| run(&Scene::sealed(seed), false));
}

/// Runs the cases of `test`, so many for each change; each says how many states were looked at.
fn hunt(test: &str, cases: u64, case: impl Fn(u64) -> u64) {
    let first =
        std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let (start, mut states) = (Instant::now(), 0);
    for seed in first..first + wanted(cases, CASES_SOAK) {
        if let Some(message) = message_of(|| states += case(seed)) {
            panic!(
                "{message}\nrepeat it with: SIMULATION_SEED={seed} SIMULATION_SHARE={cases} cargo test -p qcow --test \
                 simulation -- --exact snapshots::{test}"
            );
        }
    }
    println!("{test}: {states} states in {:.1?}", start.elapsed());
}

/// What shows `bug`, if anything does.
#[cfg(feature = "seeded-bugs")]
pub fn find(bug: qcow::seeded_bugs::Bug, attempt: u64, sealed: bool) -> Option<String> {
    let first = attempt * BUG_CASES;
    (first..first + BUG_CASES).find_map(|seed| {
        message_of(|| {
            let scene = if sealed { Scene::sealed(seed) } else { Scene::new(seed) };
            bug.seeded(|| run(&scene, false));
        })
    })
}
