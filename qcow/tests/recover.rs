//! Leaks of a crash are given back while the image is in use, and nothing else is.
//!
//! A session of random requests is cut off between any two steps of its disk; what a killed process leaves. The image is
//! opened again, and the search for leaks and further requests run side by side. In the end everything reads as it was
//! written, and the check finds nothing. `RECOVER_SEED=N cargo test -p qcow --test recover` repeats one case,
//! `SOAK_FACTOR` multiplies the number of cases.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::task::Poll;

use qcow::disk::Buffer;
use qcow::disk::sim::{Random, SimDisk, World};
use qcow::engine::check::{CheckSummary, Repair, check};
use qcow::engine::{CreateOptions, Format, Image, OpenOptions, Recovery, RecoveryEnd, create};
use qcow::exec::SlotPool;
use qcow::format::header::Header;
use qcow::format::mark::MarkState;
use qcow::gate::OneFile;

const DEPTH: usize = 8;
/// Few, so that clusters are used again and again.
const CLUSTERS: u64 = 200;

/// What each half of a cluster may hold.
struct Model {
    /// Bytes of a half cluster.
    half: u64,
    halves: Vec<Half>,
    next_stamp: u64,
}

struct Half {
    /// What it held before, and what every request since has made of it; one request at a time.
    values: Vec<u64>,
    /// The oldest value that a crash may bring back: a flush has made it durable.
    durable: usize,
    /// Whether a request is at it.
    busy: bool,
}

impl Half {
    fn holding(value: u64) -> Self {
        Self { values: vec![value], durable: 0, busy: false }
    }

    /// Position of the value that the last completed request left.
    fn current(&self) -> usize {
        self.values.len() - 1 - usize::from(self.busy)
    }
}

impl Model {
    fn new(cluster_size: u64) -> Self {
        let halves = (0..2 * CLUSTERS).map(|_| Half::holding(0)).collect();
        Self { half: (cluster_size / 2).max(512), halves, next_stamp: 1 }
    }

    /// Begins to change halves, unless somebody is at it; a stamp for them.
    fn begin(&mut self, halves: Range<usize>, zero: bool) -> Option<u64> {
        if self.halves[halves.clone()].iter().any(|half| half.busy) {
            return None;
        }
        let stamp = if zero { 0 } else { self.next_stamp };
        self.next_stamp += 1;
        for half in &mut self.halves[halves] {
            half.values.push(stamp);
            half.busy = true;
        }
        Some(stamp)
    }

    fn end(&mut self, halves: Range<usize>) {
        self.halves[halves].iter_mut().for_each(|half| half.busy = false);
    }

    /// What a flush that begins now will make durable.
    fn begin_flush(&self) -> Vec<usize> {
        self.halves.iter().map(Half::current).collect()
    }

    fn end_flush(&mut self, durable: &[usize]) {
        for (half, durable) in self.halves.iter_mut().zip(durable) {
            half.durable = half.durable.max(*durable);
        }
    }

    /// Each half holds what its last request left; after a crash, that or anything since the last flush.
    async fn check(&mut self, image: &Image<SimDisk>, crashed: bool) {
        for index in 0..self.halves.len() {
            let at = index as u64 * self.half;
            let buffer = Buffer::zeroed(self.half as usize);
            image.read(at, &buffer.payload()).await.expect("read");
            let half = &mut self.halves[index];
            let oldest = if crashed { half.durable } else { half.values.len() - 1 };
            let stamps: Vec<u64> = buffer.to_vec().chunks(512).map(stamp_of).collect();
            for stamp in &stamps {
                let allowed = &half.values[oldest..];
                assert!(allowed.contains(stamp), "half {index} holds {stamp}: {allowed:?}");
            }
            *half = Half::holding(stamps[0]);
            // A write that was cut off may have reached some of its sectors.
            if stamps.iter().any(|&stamp| stamp != stamps[0]) {
                let fill = stamps[0].to_le_bytes().repeat(self.half as usize / 8);
                image.write(at, &Buffer::from_bytes(&fill).payload()).await.expect("write");
            }
        }
    }
}

/// Whose the sector is; panics where it is torn.
fn stamp_of(sector: &[u8]) -> u64 {
    let (words, _) = sector.as_chunks();
    assert!(words.iter().all(|word| *word == words[0]), "a torn sector");
    u64::from_le_bytes(words[0])
}

async fn open(file: &SimDisk, random: &mut Random) -> Image<SimDisk> {
    let options = OpenOptions {
        writable: true,
        format: Some(Format::Qcow2),
        l2_cache_bytes: Some(if random.below(2) == 0 { 0 } else { 1 << 20 }),
        ..OpenOptions::default()
    };
    Image::open(&OneFile(file.clone()), Path::new("image"), &options).await.expect("open")
}

/// One random request; it does nothing where another one has its place.
async fn request(image: &Image<SimDisk>, model: &RefCell<Model>, kind: u64, at: usize) {
    let size = model.borrow().half;
    let pair = at / 2 * 2..at / 2 * 2 + 2;
    let (halves, zero) = match kind {
        0..6 => (at..at + 1, false),
        6 => (at..at + 1, true),
        7..10 => (pair, true),
        _ => {
            let durable = model.borrow().begin_flush();
            image.flush().await.expect("flush");
            return model.borrow_mut().end_flush(&durable);
        }
    };
    let Some(stamp) = model.borrow_mut().begin(halves.clone(), zero) else { return };
    let (start, len) = (halves.start as u64 * size, halves.len() as u64 * size);
    match kind {
        0..6 => {
            let bytes = Buffer::from_bytes(&stamp.to_le_bytes().repeat(size as usize / 8));
            image.write(start, &bytes.payload()).await.expect("write");
        }
        6 => image.write_zeroes(start, len, true).await.expect("write zeroes"),
        _ => image.discard(start, len).await.expect("discard"),
    }
    model.borrow_mut().end(halves);
}

async fn requests(image: &Image<SimDisk>, model: &RefCell<Model>, random: &mut Random, count: u64) {
    let mut pool = SlotPool::new(DEPTH);
    for _ in 0..count {
        if pool.is_full() {
            poll_fn(|context| pool.poll_next(context)).await;
        }
        let at = random.below(model.borrow().halves.len() as u64) as usize;
        pool.insert(request(image, model, random.below(12), at));
    }
    while !pool.is_empty() {
        poll_fn(|context| pool.poll_next(context)).await;
    }
}

/// Runs `future` for so many polls and no further.
async fn cut_off(future: impl Future, polls: u64) {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| match left {
        0 => Poll::Ready(()),
        _ => {
            left -= 1;
            future.as_mut().poll(context).map(drop)
        }
    })
    .await;
}

async fn checked(file: &SimDisk) -> (CheckSummary, Vec<String>) {
    let mut findings = Vec::new();
    let mut report = |finding: &_| findings.push(format!("{finding}"));
    let summary = check(file, Path::new("image"), Repair::None, &mut report).await.expect("check");
    (summary, findings)
}

fn mark_of(file: &SimDisk) -> MarkState {
    let bytes = file.to_vec();
    let bits = Header::cluster_bits_of(&bytes).expect("an image");
    let header = Header::parse(&bytes[..1 << bits], bytes.len() as u64).expect("a header");
    header.extensions.mark.expect("a mark").state()
}

/// Cuts a session off, then recovers while the next one runs; the leaks that were found, and the image in the end.
fn crash_and_recover(
    bytes: Option<&[u8]>,
    model: Model,
    options: &CreateOptions,
    seed: u64,
) -> (u64, Vec<u8>) {
    let mut random = Random::new(seed);
    let world = World::new(seed);
    let file = world.add_file(bytes.unwrap_or_default());
    let mut model = RefCell::new(model);
    world.block_on(async {
        if bytes.is_none() {
            create(&file, options).await.expect("create");
        }
        let image = open(&file, &mut random).await;
        let polls = 50 + random.below(2000);
        cut_off(requests(&image, &model, &mut random, 1000), polls).await;
    });
    // Another world, where nothing of the killed process is under way any more.
    let world = World::new(seed);
    let file = world.add_file(&file.to_vec());
    let leaks = world.block_on(async {
        let (summary, findings) = checked(&file).await;
        assert_eq!(summary.corruptions, 0, "after the crash: {findings:#?}");
        let image = open(&file, &mut random).await;
        let crashed = image.needs_recovery();
        assert!(crashed || summary.leaks == 0, "leaks without a mark");
        model.get_mut().check(&image, true).await;
        let never = AtomicBool::new(false);
        let count = random.below(400);
        let recovery = {
            let load = requests(&image, &model, &mut random, count);
            side_by_side(image.recover_leaks(&never), load).await.expect("recover")
        };
        assert_eq!(recovery.end, RecoveryEnd::Complete);
        assert!(recovery.clusters >= summary.leaks, "{recovery:?} of {}", summary.leaks);
        model.get_mut().check(&image, false).await;
        image.close().await.expect("close");
        let (after, findings) = checked(&file).await;
        assert!(findings.is_empty() && after.is_clean(), "after the recovery: {findings:#?}");
        assert_eq!(mark_of(&file), MarkState::Clean);
        // What was given back is used again, and never beside somebody else.
        let image = open(&file, &mut random).await;
        assert!(!image.needs_recovery());
        requests(&image, &model, &mut random, 200).await;
        model.get_mut().check(&image, false).await;
        image.close().await.expect("close");
        let (after, findings) = checked(&file).await;
        assert!(findings.is_empty() && after.is_clean(), "in the end: {findings:#?}");
        summary.leaks
    });
    (leaks, file.to_vec())
}

async fn side_by_side<T>(first: impl Future<Output = T>, second: impl Future<Output = ()>) -> T {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut value, mut done) = (None, false);
    poll_fn(|context| {
        if value.is_none()
            && let Poll::Ready(ready) = first.as_mut().poll(context)
        {
            value = Some(ready);
        }
        done = done || second.as_mut().poll(context).is_ready();
        if done && value.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    value.expect("both have ended")
}

fn seeds(count: u64) -> Vec<u64> {
    if let Some(seed) = std::env::var("RECOVER_SEED").ok().and_then(|s| s.parse().ok()) {
        return vec![seed];
    }
    let factor: u64 = std::env::var("SOAK_FACTOR").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    (0..count * factor).collect()
}

/// Tells the seed if the case fails.
struct SeedReport(u64);

impl Drop for SeedReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with: RECOVER_SEED={} cargo test -p qcow --test recover", self.0);
        }
    }
}

#[test]
fn after_any_crash_leaks_are_given_back_under_load() {
    let mut leaks = 0;
    for seed in seeds(150) {
        let _report = SeedReport(seed);
        // The widest counts in the smallest clusters: refcount blocks and their table grow all the time.
        let (cluster_bits, refcount_order) = [(9, 6), (9, 0), (12, 4), (16, 4)][seed as usize % 4];
        let model = Model::new(1 << cluster_bits);
        let size = model.half * model.halves.len() as u64;
        let options =
            CreateOptions { size, cluster_bits, refcount_order, ..CreateOptions::default() };
        leaks += crash_and_recover(None, model, &options, seed).0;
    }
    println!("{leaks} leaks");
    assert!(leaks > 0 || seeds(2).len() == 1, "no crash has leaked anything: nothing was tested");
}

#[test]
fn clusters_that_snapshots_and_compressed_data_share_are_counted_down_and_not_freed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    let image = path.to_str().expect("text");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, "800k"]);
    let io = ["-c", "write -q -c -P 0 0 200k", "-c", "write -q -P 0 200k 400k", image];
    qemu("qemu-io", &io);
    qemu("qemu-img", &["snapshot", "-c", "one", image]);
    qemu("qemu-io", &["-c", "write -q -P 0 100k 60k", "-c", "write -q -P 0 500k 8k", image]);
    qemu("qemu-img", &["snapshot", "-c", "two", image]);
    let bytes = std::fs::read(&path).expect("read");
    for seed in seeds(60) {
        let _report = SeedReport(seed);
        let model = Model::new(4096);
        let (_, after) = crash_and_recover(Some(&bytes), model, &CreateOptions::default(), seed);
        if seed % 10 == 0 {
            std::fs::write(&path, after).expect("write");
            qemu("qemu-img", &["check", "-q", image]);
            for snapshot in ["one", "two"] {
                let raw = directory.path().join("raw");
                let raw = raw.to_str().expect("text");
                qemu("qemu-img", &["convert", "-l", snapshot, "-O", "raw", image, raw]);
                assert!(std::fs::read(raw).expect("read").iter().all(|&byte| byte == 0));
            }
        }
    }
}

fn qemu(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect("these tests need QEMU's tools");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
}

/// An image that was left open, with the counts of `leaked` clusters set to one.
fn left_open(leaked: Range<u64>) -> (World, SimDisk) {
    let world = World::new(1);
    let file = world.add_file(&[]);
    world.block_on(async {
        let options = CreateOptions { size: 1 << 20, cluster_bits: 12, ..CreateOptions::default() };
        create(&file, &options).await.expect("create");
        let image = open(&file, &mut Random::new(1)).await;
        image.write(0, &Buffer::from_bytes(&[7; 4096]).payload()).await.expect("write");
        image.flush().await.expect("flush");
    });
    let mut bytes = file.to_vec();
    // The file may have been made longer than what is used of it.
    while bytes.ends_with(&[0; 4096]) {
        bytes.truncate(bytes.len() - 4096);
    }
    for cluster in leaked {
        // The only refcount block lies in cluster 2.
        bytes[2 * 4096 + 2 * cluster as usize + 1] = 1;
    }
    let file = world.add_file(&bytes);
    (world, file)
}

async fn recover(file: &SimDisk, stop: bool) -> Recovery {
    let image = open(file, &mut Random::new(1)).await;
    assert!(image.needs_recovery());
    let recovery = image.recover_leaks(&AtomicBool::new(stop)).await.expect("recover");
    image.close().await.expect("close");
    recovery
}

#[test]
fn clusters_past_the_end_of_the_file_are_given_back_too() {
    let (world, file) = left_open(10..1000);
    assert!((file.to_vec().len() as u64) < 10 * 4096);
    world.block_on(async {
        let recovery = recover(&file, false).await;
        assert_eq!(recovery, Recovery { clusters: 990, end: RecoveryEnd::Complete });
    });
    assert!(file.to_vec()[2 * 4096 + 20..3 * 4096].iter().all(|&byte| byte == 0));
    assert_eq!(mark_of(&file), MarkState::Clean);
}

#[test]
fn a_repair_leaves_the_mark_where_it_could_not_see_all_leaks() {
    let (world, file) = left_open(10..1000);
    world.block_on(async {
        let repaired = check(&file, Path::new("image"), Repair::Leaks, &mut |_| {}).await;
        assert!(repaired.expect("check").is_clean());
    });
    assert_eq!(mark_of(&file), MarkState::Unclean);
}

#[test]
fn a_search_that_is_stopped_leaves_the_mark() {
    let (world, file) = left_open(10..20);
    world.block_on(async {
        let recovery = recover(&file, true).await;
        assert_eq!(recovery, Recovery { clusters: 0, end: RecoveryEnd::Stopped });
        assert_eq!(mark_of(&file), MarkState::Unclean);
        assert_eq!(recover(&file, false).await.clusters, 10);
        assert_eq!(mark_of(&file), MarkState::Clean);
    });
}

#[test]
fn where_anything_is_counted_too_low_nothing_is_freed() {
    let (_, sound) = left_open(10..20);
    // The counts of the L1 table, of the L2 table and of the data.
    for cluster in [3, 4, 5] {
        let mut bytes = sound.to_vec();
        bytes[2 * 4096 + 2 * cluster + 1] = 0;
        let world = World::new(1);
        let file = world.add_file(&bytes);
        let recovery = world.block_on(recover(&file, false));
        assert_eq!(recovery, Recovery { clusters: 0, end: RecoveryEnd::Corrupt }, "{cluster}");
        assert!(file.to_vec() == bytes);
    }
}

#[test]
fn a_cluster_in_use_that_would_need_its_flag_set_is_left_to_the_repair() {
    let (world, file) = left_open(10..20);
    let mut bytes = file.to_vec();
    let place = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let l1 = place(40) as usize;
    let l2 = (place(l1) & !(1 << 63)) as usize;
    let data = place(l2) & !(1 << 63);
    // Counted twice, named once, and so not marked as this image's own.
    bytes[l2..l2 + 8].copy_from_slice(&data.to_be_bytes());
    bytes[2 * 4096 + 2 * (data / 4096) as usize + 1] = 2;
    let file = world.add_file(&bytes);
    world.block_on(async {
        let recovery = recover(&file, false).await;
        assert_eq!(recovery, Recovery { clusters: 10, end: RecoveryEnd::Doubtful(1) });
        assert_eq!(mark_of(&file), MarkState::Unclean);
        let (summary, findings) = checked(&file).await;
        assert_eq!((summary.corruptions, summary.leaks), (0, 1), "{findings:?}");
    });
}

#[test]
fn in_damaged_images_nothing_gets_worse() {
    let (_, sound) = left_open(10..20);
    let sound = sound.to_vec();
    for seed in seeds(3000) {
        let _report = SeedReport(seed);
        let mut random = Random::new(seed);
        let mut bytes = sound.clone();
        for _ in 0..1 + random.below(4) {
            // The header's fields, or the tables behind it.
            let at =
                [random.below(13), 512 + random.below(5 * 512)][random.below(5).min(1) as usize];
            let value = match random.below(4) {
                0 => random.below(8),
                1 => random.below(30) << 12 | random.below(2) << 63,
                2 => 1 << random.below(64),
                _ => u64::MAX >> random.below(64),
            };
            bytes[at as usize * 8..][..8].copy_from_slice(&value.to_be_bytes());
        }
        recover_damaged(&bytes, seed);
    }
}

/// Recovers where the image can be opened at all, then compares what the check says with what it said before.
fn recover_damaged(bytes: &[u8], seed: u64) {
    let world = World::new(seed);
    let file = world.add_file(bytes);
    world.block_on(async {
        let options = OpenOptions { writable: true, backing: false, ..OpenOptions::default() };
        let image = Image::open(&OneFile(file.clone()), Path::new("image"), &options).await;
        let Ok(image) = image else { return };
        let mut ignore = |_: &_| {};
        let before = check(&file, Path::new("image"), Repair::None, &mut ignore).await;
        let never = AtomicBool::new(false);
        let recovered = image.recover_leaks(&never).await;
        if image.close().await.is_err() {
            return;
        }
        let after = check(&file, Path::new("image"), Repair::None, &mut ignore).await;
        let (Ok(before), Ok(after)) = (before, after) else { return };
        println!("seed {seed}: {recovered:?}");
        assert!(after.corruptions <= before.corruptions, "{before:?}, then {after:?}");
        if recovered.is_ok_and(|recovery| recovery.end == RecoveryEnd::Corrupt) {
            assert_eq!(after.leaks, before.leaks);
        }
    });
}
