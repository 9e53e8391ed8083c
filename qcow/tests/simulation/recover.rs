//! What must hold of an image that is found after a crash: the oracle.

use std::cell::RefCell;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;

use qcow::disk::Buffer;
use qcow::disk::sim::{SimDisk, World};
use qcow::engine::check::{CheckSummary, Repair, check};
use qcow::engine::{Format, Image, OpenOptions, RecoveryEnd};
use qcow::exec::join_all;
use qcow::format::sealed::header::{HEADER_LEN, SealedHeader};

use crate::case::{SECTOR, Shape, Start};
use crate::drive::{SimGate, open, read};
use crate::history::History;
use crate::start::{Files, initial, key, sectors};

/// Sectors that a disk grows by once it has been found.
const GROWTH: u64 = 64;
/// One state in so many is.
const GROW_ONE_IN: u64 = 8;

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Clusters that are counted although nothing refers to them.
    pub leaks: u64,
    pub allocated_clusters: u64,
    /// What each sector held.
    pub values: Vec<u64>,
}

/// Panics unless the disk may hold these values.
pub type Allowed<'a> = &'a dyn Fn(&[u64]);

/// Opens the image, checks it, compares it, writes all of it and closes it clean. Panics where anything is not as it must
/// be.
///
/// Calls `observe` with every event after the look at what there is.
pub fn recover(
    shape: &Shape,
    files: Files,
    seed: u64,
    allowed: Allowed<'_>,
    mut observe: impl FnMut(&SimGate, &History),
) -> Found {
    let world = World::new(seed);
    let gate = files.put_into(&world);
    let found = world.block_on(look(shape, &gate));
    expect_raw_data(shape, &gate, &found.values);
    allowed(&found.values);
    let values = found.values.clone();
    let size = values.len() as u64;
    let history = RefCell::new(History::new(size, |sector| values[sector as usize]));
    let used =
        world.run(use_again(shape, &gate, seed, &history), || observe(&gate, &history.borrow()));
    used.expect("nothing hangs without a fault");
    found
}

/// What the image holds, as it is found.
async fn look(shape: &Shape, gate: &SimGate) -> Found {
    let (summary, findings) = check_tables(gate).await;
    assert!(
        summary.corruptions == 0 && summary.check_errors == 0,
        "the image is corrupt: {findings:#?}"
    );
    let image = read_only(gate, gate.image.clone()).await;
    if shape.is_secret() {
        expect_no_clear_text(&gate.image);
    }
    let values = read(&image, 0, image.virtual_size() / SECTOR).await.expect("read");
    Found { leaks: summary.leaks, allocated_clusters: summary.allocated_clusters, values }
}

/// Goes on with the image as if nothing had happened.
async fn use_again(shape: &Shape, gate: &SimGate, seed: u64, history: &RefCell<History>) {
    let image = open(gate, 1 << 20).await.expect("open");
    go_on(shape, gate, seed, history, &image).await;
}

/// Goes on with an open image until it is closed clean.
pub async fn go_on(
    shape: &Shape,
    gate: &SimGate,
    seed: u64,
    history: &RefCell<History>,
    image: &Image<SimDisk>,
) {
    let size = image.virtual_size() / SECTOR;
    let write_all = async |stamp: u64, step: u64| {
        for at in (0..size).step_by(step as usize) {
            let range = at..(at + step).min(size);
            let write = history.borrow_mut().begin_write(range.clone(), |s| stamp | s);
            let bytes = sectors(range.map(|s| stamp | s));
            image.write(at * SECTOR, &Buffer::from_bytes(&bytes).payload()).await.expect("write");
            history.borrow_mut().end_write(&write, true);
        }
        let flush = history.borrow_mut().begin_now();
        image.flush().await.expect("flush");
        history.borrow_mut().end_flush(flush, size);
    };
    // Leaks are given back while the disk is in use, and what was in doubt then is looked at again.
    let stop = AtomicBool::new(false);
    let recovery = async {
        image.recover_leaks(&stop).await.expect("recover");
    };
    let writing = write_all(0xaaaa << 48, size.div_ceil(2));
    let both: [Pin<Box<dyn Future<Output = ()> + '_>>; 2] = [Box::pin(recovery), Box::pin(writing)];
    join_all(both).await;
    let recovery = image.recover_leaks(&stop).await.expect("recover");
    assert_eq!(recovery.end, RecoveryEnd::Complete, "nothing disturbs the recovery now");
    let values = read(image, 0, size).await.expect("read");
    assert!((0..).zip(&values).all(|(s, &value)| value == 0xaaaa << 48 | s), "a write is lost");
    expect_raw_data(shape, gate, &values);
    if seed.is_multiple_of(GROW_ONE_IN) && !shape.keeps_size() {
        grow(image, size + GROWTH, history).await;
    }
    image.close().await.expect("close");
    expect_clean(shape, gate).await;
}

/// Makes the disk larger: whatever a resize that was cut off has left behind its end, the new sectors read as zeros.
async fn grow(image: &Image<SimDisk>, size: u64, history: &RefCell<History>) {
    let resize = history.borrow_mut().begin_resize(size, |_| None);
    image.resize(size * SECTOR, false).await.expect("grow");
    history.borrow_mut().end_resize(&resize, true);
    let start = history.borrow_mut().begin_now();
    let values = read(image, 0, size).await.expect("read");
    history.borrow().check_whole(start, &values);
}

/// After a clean close nothing is wrong, not even a leak, and a snapshot holds what it held.
pub async fn expect_clean(shape: &Shape, gate: &SimGate) {
    let (summary, findings) = check_tables(gate).await;
    assert!(
        findings.is_empty() && summary.corruptions == 0 && summary.leaks == 0,
        "after a clean close: {findings:#?}"
    );
    if shape.start == Start::Snapshot {
        let snapshot = read_only(gate, snapshot_of(shape, gate)).await;
        let values = read(&snapshot, 0, shape.size).await.expect("read the snapshot");
        let differs = (0..).zip(values).find(|&(s, value)| value != initial(shape, s));
        assert_eq!(differs, None, "the snapshot has changed");
    }
}

/// No sector of an encrypted image's file says whose it is.
fn expect_no_clear_text(image: &SimDisk) {
    let is_stamp = |sector: &[u8]| {
        let (words, _) = sector.as_chunks::<8>();
        let first = u64::from_le_bytes(words[0]);
        // Those of requests, of this test, and of the beginning; tables repeat their words, too, but none of these.
        let known = matches!(first >> 32, 1..=0xffff) || matches!(first >> 48, 0xaaaa | 0xf111);
        known && words.iter().all(|word| *word == words[0])
    };
    let bytes = image.to_vec();
    let found = bytes.chunks_exact(SECTOR as usize).position(is_stamp);
    assert_eq!(found, None, "clear text in a sector of the file");
}

/// A raw external data file holds `values`, those of the whole disk, wherever it is looked at.
fn expect_raw_data(shape: &Shape, gate: &SimGate, values: &[u64]) {
    let (Start::RawExternal(_), Some(data)) = (shape.start, &gate.data) else { return };
    let mut bytes = data.to_vec();
    bytes.resize(values.len() * SECTOR as usize, 0);
    let differs = bytes.chunks(SECTOR as usize).zip(values).map(|(a, &b)| (a, sectors([b])));
    let first = differs.enumerate().find(|(_, (a, b))| a != b).map(|(sector, _)| sector);
    assert_eq!(first, None, "the raw data file is not the disk");
}

pub async fn check_tables(gate: &SimGate) -> (CheckSummary, Vec<String>) {
    let mut findings = Vec::new();
    let mut report = |finding: &qcow::engine::check::Finding| findings.push(finding.to_string());
    let mut prefix = [0; HEADER_LEN];
    gate.image.content().read(0, &mut prefix);
    let summary = if SealedHeader::is_at(&prefix) {
        let image = read_only(gate, gate.image.clone()).await;
        image.check_authenticated(true, &mut report).await
    } else {
        check(&gate.image, Path::new("image"), Repair::None, &mut report).await
    };
    (summary.expect("check"), findings)
}

async fn read_only(gate: &SimGate, image: SimDisk) -> Image<SimDisk> {
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        keys: vec![Some(key())],
        ..OpenOptions::default()
    };
    let gate = SimGate { image, ..gate.clone() };
    Image::open(&gate, Path::new("image"), &options).await.expect("open to read")
}

/// The image as its first snapshot sees it: with the snapshot's L1 table instead of the active one, and of its size.
fn snapshot_of(shape: &Shape, gate: &SimGate) -> SimDisk {
    let mut bytes = gate.image.to_vec();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let table = word(64) as usize;
    let (offset, len) = (word(table), bytes[table + 8..table + 12].to_vec());
    bytes[24..32].copy_from_slice(&(shape.size * SECTOR).to_be_bytes());
    bytes[36..40].copy_from_slice(&len);
    bytes[40..48].copy_from_slice(&offset.to_be_bytes());
    gate.world.add_file(&bytes)
}
