//! Runs one case: requests in flight up to its depth, each checked against the history.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use qcow::disk::sim::{SimDisk, World};
use qcow::disk::{Buffer, Payload};
use qcow::engine::{CreateOptions, Discard, Format, Image, OpenOptions, create};
use qcow::exec::SlotPool;
use qcow::format::header::Version;
use qcow::gate::Gate;

use crate::case::{Case, Op, SECTOR};
use crate::history::History;

/// Hands out the image and its backing file.
struct SimGate {
    image: SimDisk,
    backing: Option<SimDisk>,
}

impl Gate for SimGate {
    type Disk = SimDisk;

    fn open_image(&self, _: &Path, _: bool) -> qcow::Result<SimDisk> {
        Ok(self.image.clone())
    }

    fn open_backing(&self, _: &Path, name: &OsStr) -> qcow::Result<(PathBuf, SimDisk)> {
        Ok((PathBuf::from(name), self.backing.clone().expect("only a case with a backing file")))
    }
}

/// Runs `case`, panics where the engine errs, and returns the image file it leaves.
pub fn run(case: &Case) -> Vec<u8> {
    let world = World::new(case.seed);
    let backing = case.backing.map(|sectors| {
        let stamps = (0..sectors).flat_map(|s| sector_bytes(backing_stamp(s)));
        world.add_file(&stamps.collect::<Vec<u8>>())
    });
    let gate = SimGate { image: world.add_file(&[]), backing };
    let below = case.backing.unwrap_or(0);
    let initial = |s| if s < below { backing_stamp(s) } else { 0 };
    let history = RefCell::new(History::new(case.size, initial));
    world.block_on(async {
        create(&gate.image, &case.create_options()).await.expect("create");
        let mut image = case.open(&gate).await;
        for (batch, ops) in case.ops.split(|op| matches!(op, Op::Reopen)).enumerate() {
            if batch > 0 {
                image.close().await.expect("close");
                image = case.open(&gate).await;
            }
            run_batch(case, &image, &history, batch, ops).await;
        }
        check_all(case, &image, &history).await;
        image.close().await.expect("close");
        check_all(case, &case.open(&gate).await, &history).await;
    });
    world.block_on(check_tables(&gate.image));
    gate.image.to_vec()
}

async fn check_tables(image: &SimDisk) {
    use qcow::engine::check::{Repair, check};
    let mut findings = Vec::new();
    let mut report = |finding: &qcow::engine::check::Finding| findings.push(finding.to_string());
    let summary = check(image, Path::new("image"), Repair::None, &mut report).await.expect("check");
    assert!(
        findings.is_empty() && summary.corruptions == 0 && summary.leaks == 0,
        "after a clean close: {findings:#?}"
    );
}

async fn run_batch(
    case: &Case,
    image: &Image<SimDisk>,
    history: &RefCell<History>,
    batch: usize,
    ops: &[Op],
) {
    let mut pool = SlotPool::new(case.depth);
    for (i, op) in ops.iter().enumerate() {
        if pool.is_full() {
            std::future::poll_fn(|context| pool.poll_next(context)).await;
        }
        let stamp = (batch as u64 + 1) << 48 | (i as u64 + 1) << 32;
        pool.insert(run_op(case, image, history, *op, stamp));
    }
    while !pool.is_empty() {
        std::future::poll_fn(|context| pool.poll_next(context)).await;
    }
}

async fn run_op(
    case: &Case,
    image: &Image<SimDisk>,
    history: &RefCell<History>,
    op: Op,
    stamp: u64,
) {
    match op {
        Op::Write { at, count } => {
            let value = |sector| stamp | sector;
            let write = history.borrow_mut().begin_write(at..at + count, value);
            let bytes: Vec<u8> = (at..at + count).flat_map(|s| sector_bytes(value(s))).collect();
            let payload = Buffer::from_bytes(&bytes).payload();
            image.write(at * SECTOR, &payload).await.expect("write");
            history.borrow_mut().end_write(write);
        }
        Op::Zero { at, count, unmap } => {
            let write = history.borrow_mut().begin_write(at..at + count, |_| 0);
            image.write_zeroes(at * SECTOR, count * SECTOR, unmap).await.expect("write zeroes");
            history.borrow_mut().end_write(write);
        }
        Op::Discard { at, count } => {
            let write = history.borrow_mut().begin_discard(case.whole_clusters(at, count));
            image.discard(at * SECTOR, count * SECTOR).await.expect("discard");
            history.borrow_mut().end_write(write);
        }
        Op::Read { at, count } => check_read(image, history, at, count).await,
        Op::Flush => image.flush().await.expect("flush"),
        Op::Reopen => unreachable!("batches end at a reopen"),
    }
}

async fn check_all(case: &Case, image: &Image<SimDisk>, history: &RefCell<History>) {
    check_read(image, history, 0, case.size).await;
}

async fn check_read(image: &Image<SimDisk>, history: &RefCell<History>, at: u64, count: u64) {
    let start = history.borrow_mut().begin_read();
    let buffer = Buffer::zeroed((count * SECTOR) as usize);
    let payload: Payload = buffer.payload();
    image.read(at * SECTOR, &payload).await.expect("read");
    let values: Vec<u64> = buffer.to_vec().chunks(SECTOR as usize).map(stamp_of).collect();
    history.borrow().check_read(start, at, &values);
}

impl Case {
    fn create_options(&self) -> CreateOptions {
        CreateOptions {
            size: self.size * SECTOR,
            version: if self.version3 { Version::V3 } else { Version::V2 },
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            backing: self.backing.map(|_| ("backing".into(), Some("raw".into()))),
            ..CreateOptions::default()
        }
    }

    async fn open(&self, gate: &SimGate) -> Image<SimDisk> {
        let options = OpenOptions {
            writable: true,
            format: Some(Format::Qcow2),
            l2_cache_bytes: self.cache,
            discard: Discard::Unmap,
            ..OpenOptions::default()
        };
        Image::open(gate, Path::new("image"), &options).await.expect("open")
    }

    /// The sectors that a discard of this range may change.
    fn whole_clusters(&self, at: u64, count: u64) -> std::ops::Range<u64> {
        let cluster = (1 << self.cluster_bits) / SECTOR;
        let first = at.next_multiple_of(cluster);
        let end = at + count;
        let end = if end == self.size { end } else { end / cluster * cluster };
        first..end.max(first)
    }
}

/// A sector that says on every byte whose it is.
fn sector_bytes(stamp: u64) -> impl Iterator<Item = u8> {
    std::iter::repeat_n(stamp.to_le_bytes(), SECTOR as usize / 8).flatten()
}

/// Whose the sector is; panics where it is torn between two.
fn stamp_of(sector: &[u8]) -> u64 {
    let words = || sector.chunks(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
    let first = words().next().expect("a sector is not empty");
    assert!(words().all(|w| w == first), "a torn sector: {:x?}", words().collect::<Vec<_>>());
    first
}

fn backing_stamp(sector: u64) -> u64 {
    0xbac0_0000_0000_0000 | sector
}
