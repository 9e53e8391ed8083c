//! Carries out one case: requests in flight up to its depth, each recorded in the history and checked against it.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::sim::{Fault, Random, SimDisk, World};
use qcow::engine::{Discard, Format, FoundRedo, Image, OpenOptions, RecoveryEnd};
use qcow::exec::SlotPool;
use qcow::gate::Gate;

use crate::case::{Case, Op, SECTOR};
use crate::history::{Began, History};
use crate::memory::Memory;
use crate::start::{Files, files, initial, key, sectors};

/// Hands out the image, its backing file and its external data file.
#[derive(Clone, Debug)]
pub struct SimGate {
    pub world: World,
    pub image: SimDisk,
    pub backing: Option<SimDisk>,
    pub data: Option<SimDisk>,
}

impl SimGate {
    /// What the next who opens the image finds if nothing is lost.
    pub fn files(&self) -> Files {
        let content = |disk: &SimDisk| disk.content();
        Files {
            image: self.image.content(),
            backing: self.backing.as_ref().map(content),
            data: self.data.as_ref().map(content),
        }
    }
}

impl Gate for SimGate {
    type Disk = SimDisk;

    fn open_image(&self, _: &Path, _: bool) -> qcow::Result<SimDisk> {
        Ok(self.image.clone())
    }

    fn open_backing(&self, _: &Path, name: &OsStr) -> qcow::Result<(PathBuf, SimDisk)> {
        Ok((PathBuf::from(name), self.backing.clone().expect("only a case with a backing file")))
    }

    fn open_data(&self, _: &Path, name: &OsStr, _: bool) -> qcow::Result<(PathBuf, SimDisk)> {
        Ok((PathBuf::from(name), self.data.clone().expect("only a case with a data file")))
    }
}

/// Opens the image for writing.
pub async fn open(gate: &SimGate, cache: u64) -> qcow::Result<Image<SimDisk>> {
    let options = OpenOptions {
        writable: true,
        format: Some(Format::Qcow2),
        l2_cache_bytes: Some(cache),
        discard: Discard::Unmap,
        keys: vec![Some(key())],
        ..OpenOptions::default()
    };
    Image::open(gate, Path::new("image"), &options).await
}

/// The stamps of `count` sectors from `at` on.
pub async fn read(image: &Image<SimDisk>, at: u64, count: u64) -> qcow::Result<Vec<u64>> {
    // What is not filled in must not look like zeros.
    let buffer = Buffer::from_bytes(&vec![0xee; (count * SECTOR) as usize]);
    image.read(at * SECTOR, &buffer.payload()).await?;
    Ok(buffer.to_vec().chunks(SECTOR as usize).map(stamp_of).collect())
}

/// Whose the sector is; panics where it is torn between two.
fn stamp_of(sector: &[u8]) -> u64 {
    let words = || sector.chunks(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
    let first = words().next().expect("a sector is not empty");
    assert!(words().all(|w| w == first), "a torn sector: {:x?}", words().collect::<Vec<_>>());
    first
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The image was closed, with the leaks of all kills given back.
    Closed,
    /// The image was closed, but a fault kept leaks from being given back.
    Leaky,
    /// The last close failed, because of a fault.
    Failed,
    /// Something waits for an operation that never ends.
    Stuck,
}

/// A case under way.
#[derive(Debug)]
pub struct Drive<'c> {
    pub case: &'c Case,
    pub world: World,
    pub gate: SimGate,
    pub history: RefCell<History>,
    /// Where the redo log is, of cases that have one.
    pub memory: Option<Memory>,
    /// Whether requests may fail.
    faulty: Cell<bool>,
    syncs_lost: Cell<u64>,
    in_flight: RefCell<Vec<Op>>,
}

impl<'c> Drive<'c> {
    /// The case's image, in a world of its own.
    pub fn new(case: &'c Case) -> Self {
        let world = World::new(case.seed);
        let gate = files(&case.shape).put_into(&world);
        let history = History::new(case.shape.size, |sector| initial(&case.shape, sector));
        Self {
            case,
            world,
            gate,
            history: RefCell::new(history),
            memory: (case.redo > 0).then(|| Memory::new(case.redo)),
            faulty: Cell::new(false),
            syncs_lost: Cell::new(0),
            in_flight: RefCell::default(),
        }
    }

    /// Lets `fault` befall an operation.
    pub fn inject(&self, operation: u64, fault: Fault) {
        self.faulty.set(true);
        self.world.inject(operation, fault);
    }

    /// Carries the case out, and calls `observe` after every event.
    pub fn run(&self, mut observe: impl FnMut(&Self)) -> Ending {
        let ended = self.world.run(self.requests(), || {
            self.notice_lost_sync();
            observe(self);
        });
        self.history.borrow_mut().cut_off();
        ended.unwrap_or(Ending::Stuck)
    }

    /// The process dies. Mappings that no flush has written die with it, unless a redo log has them. Only a fault makes one
    /// void.
    pub fn kill(&self) {
        self.world.kill();
        let mut history = self.history.borrow_mut();
        history.cut_off();
        let is_void = self.memory.as_ref().is_none_or(Memory::is_void);
        assert!(!is_void || self.memory.is_none() || self.faulty.get(), "a log is void by a fault");
        if is_void {
            history.lose_unflushed();
        }
    }

    /// A failed sync may have lost what was written since the last one that succeeded.
    fn notice_lost_sync(&self) {
        let lost = self.world.failed_syncs();
        if lost > self.syncs_lost.replace(lost) {
            self.history.borrow_mut().lose_unflushed();
        }
    }

    async fn requests(&self) -> Ending {
        let mut image = self.open().await;
        let mut random = Random::new(self.case.seed ^ 0x5eed);
        let mut pool = self.pool(&mut random);
        for (index, op) in self.case.ops.iter().enumerate() {
            let ends_session = matches!(op, Op::Reopen | Op::Kill);
            while pool.is_full() || !pool.is_empty() && self.has_to_wait(&image, *op) {
                std::future::poll_fn(|context| pool.poll_next(context)).await;
            }
            if !ends_session {
                // A resize that failed may have left another size than the case was made for.
                let op = op.inside(image.virtual_size() / SECTOR);
                self.in_flight.borrow_mut().push(op);
                pool.insert(self.request(image.clone(), index as u64, op));
                continue;
            }
            if *op == Op::Kill || self.close(&image).await.is_err() {
                pool = self.pool(&mut random);
                self.in_flight.borrow_mut().clear();
                self.kill();
            }
            drop(image);
            image = self.open().await;
        }
        while !pool.is_empty() {
            std::future::poll_fn(|context| pool.poll_next(context)).await;
        }
        let _ = self.read(&image, 0, image.virtual_size() / SECTOR).await;
        let stop = AtomicBool::new(false);
        let recovered = self.allow(image.recover_leaks(&stop).await, "recover");
        let complete = recovered.is_ok_and(|recovery| recovery.end == RecoveryEnd::Complete);
        match self.close(&image).await {
            Ok(()) if complete => Ending::Closed,
            Ok(()) => Ending::Leaky,
            Err(_) => Ending::Failed,
        }
    }

    /// Whether `op` must not be carried out beside what is in flight.
    fn has_to_wait(&self, image: &Image<SimDisk>, op: Op) -> bool {
        let in_flight = self.in_flight.borrow();
        let shrinks =
            |op: &Op| matches!(*op, Op::Resize { size } if size * SECTOR < image.virtual_size());
        let is_resize = |op: &Op| matches!(op, Op::Resize { .. });
        let changes_mapping =
            |op: &Op| matches!(op, Op::Zero { .. } | Op::Discard { .. } | Op::Compressed { .. });
        let maps = |op: &Op| is_resize(op) || changes_mapping(op);
        match op {
            Op::Kill => false,
            _ if op == Op::Reopen || shrinks(&op) || in_flight.iter().any(shrinks) => true,
            // A disk that grows is written, read and flushed meanwhile.
            Op::Resize { .. } => in_flight.iter().any(maps),
            op if changes_mapping(&op) => in_flight.iter().any(is_resize),
            _ => false,
        }
    }

    /// Runs its requests in an order that follows the seed.
    fn pool<F: Future>(&self, random: &mut Random) -> SlotPool<F> {
        let mut schedule = Random::new(random.draw());
        SlotPool::with_schedule(self.case.depth, move |count| schedule.below(count as u64) as usize)
    }

    async fn open(&self) -> Image<SimDisk> {
        // A fault may keep the image from being opened, but only once.
        let image = match self.allow(open(&self.gate, self.case.cache).await, "open") {
            Ok(image) => image,
            Err(_) => open(&self.gate, self.case.cache).await.expect("open again"),
        };
        let image = self.attach(image).await;
        self.history.borrow_mut().settle_size(image.virtual_size() / SECTOR);
        image
    }

    /// Lets the image go on with the redo log, if there is one.
    async fn attach(&self, image: Image<SimDisk>) -> Image<SimDisk> {
        let Some(memory) = &self.memory else { return image };
        let attached = image.attach_redo_log(memory.share(), FoundRedo::Replay).await;
        if self.allow(attached, "attach").is_ok() {
            return image;
        }
        // A fault has kept it from being replayed, but only once; or a sync that has failed has made it stale.
        drop(image);
        self.kill();
        let image = open(&self.gate, self.case.cache).await.expect("open again");
        if let Err(e) = image.attach_redo_log(memory.share(), FoundRedo::Replay).await {
            assert_eq!(e.kind(), ErrorKind::Stale, "{e}");
            assert!(self.world.failed_syncs() > 0, "nothing has been lost, and yet: {e}");
            self.history.borrow_mut().lose_unflushed();
            let attached = image.attach_redo_log(memory.share(), FoundRedo::Discard).await;
            attached.expect("begin a log");
        }
        image
    }

    async fn resize(&self, image: &Image<SimDisk>, size: u64) {
        let shape = &self.case.shape;
        if shape.keeps_size() {
            let refused = image.resize(size * SECTOR, true).await;
            assert!(refused.is_err() || size * SECTOR == image.virtual_size(), "a snapshot's size");
            return;
        }
        // Version 2 cannot say that a cluster reads as zeros although the backing file has it.
        let bare = shape.backing().filter(|_| !shape.version3);
        let below = |sector| bare.map(|_| initial(shape, sector));
        let resize = self.history.borrow_mut().begin_resize(size, below);
        let resized = self.allow(image.resize(size * SECTOR, true).await, "resize");
        self.history.borrow_mut().end_resize(&resize, resized.is_ok());
    }

    async fn close(&self, image: &Image<SimDisk>) -> qcow::Result<()> {
        let start = self.history.borrow_mut().begin_now();
        let closed = self.allow(image.close().await, "close");
        self.end_flush(image, start, &closed);
        closed
    }

    async fn request(&self, image: Image<SimDisk>, index: u64, op: Op) {
        let stamp = (index + 1) << 32;
        match op {
            Op::Write { at, count } => {
                let value = |sector| stamp | sector;
                let write = self.history.borrow_mut().begin_write(at..at + count, value);
                let payload = Buffer::from_bytes(&sectors((at..at + count).map(value))).payload();
                let written = self.allow(image.write(at * SECTOR, &payload).await, "write");
                self.history.borrow_mut().end_write(&write, written.is_ok());
            }
            Op::Zero { at, count, unmap } => {
                let write = self.history.borrow_mut().begin_write(at..at + count, |_| 0);
                let zeroed = image.write_zeroes(at * SECTOR, count * SECTOR, unmap).await;
                let zeroed = self.allow(zeroed, "write zeroes");
                self.history.borrow_mut().end_write(&write, zeroed.is_ok());
            }
            Op::Discard { at, count } => {
                let sectors =
                    self.case.shape.whole_clusters(at, count, image.virtual_size() / SECTOR);
                let write = self.history.borrow_mut().begin_discard(sectors);
                let discarded = image.discard(at * SECTOR, count * SECTOR).await;
                let discarded = self.allow(discarded, "discard");
                self.history.borrow_mut().end_write(&write, discarded.is_ok());
            }
            Op::Compressed { at, count } => self.write_compressed(&image, stamp, at, count).await,
            Op::Read { at, count } => {
                let _ = self.read(&image, at, count).await;
            }
            Op::Flush => {
                let start = self.history.borrow_mut().begin_now();
                let flushed = self.allow(image.flush().await, "flush");
                self.end_flush(&image, start, &flushed);
            }
            Op::Resize { size } => self.resize(&image, size).await,
            Op::Recover => {
                let recovered = image.recover_leaks(&AtomicBool::new(false)).await;
                // One at a time; and what is in doubt now is looked at again in the end.
                if !recovered.as_ref().is_err_and(|e| e.kind() == ErrorKind::Invalid) {
                    let _ = self.allow(recovered, "recover");
                }
            }
            Op::Reopen | Op::Kill => unreachable!("these end a session"),
        }
        let mut in_flight = self.in_flight.borrow_mut();
        let own = in_flight.iter().position(|other| *other == op).expect("it was in flight");
        in_flight.swap_remove(own);
    }

    /// A compressed write, which is refused where data lies already, and of an image whose data lies in a file of its own
    /// or is encrypted.
    async fn write_compressed(&self, image: &Image<SimDisk>, stamp: u64, at: u64, count: u64) {
        let size = image.virtual_size() / SECTOR;
        let range = self.case.shape.touched_clusters(at, count, size);
        let value = |sector| stamp | sector;
        let write = self.history.borrow_mut().begin_write(range.clone(), value);
        let payload = Buffer::from_bytes(&sectors(range.clone().map(value))).payload();
        let written = image.write_compressed(range.start * SECTOR, &payload).await;
        let refused = |e: &qcow::Error| match e.kind() {
            ErrorKind::Io => e.errno().is_none(),
            ErrorKind::Unsupported => {
                self.case.shape.is_external() || self.case.shape.is_encrypted()
            }
            _ => false,
        };
        let written = match written {
            Err(e) if refused(&e) => Err(e),
            other => self.allow(other, "compressed write"),
        };
        self.history.borrow_mut().end_write(&write, written.is_ok());
    }

    fn end_flush(&self, image: &Image<SimDisk>, start: Began, result: &qcow::Result<()>) {
        if result.is_ok() {
            let size = image.virtual_size() / SECTOR;
            self.history.borrow_mut().end_flush(start, size);
        }
    }

    async fn read(&self, image: &Image<SimDisk>, at: u64, count: u64) -> qcow::Result<()> {
        let start = self.history.borrow_mut().begin_now();
        let values = self.allow(read(image, at, count).await, "read")?;
        self.notice_lost_sync();
        self.history.borrow().check_read(start, at, &values);
        Ok(())
    }

    /// Panics where a request failed although nothing had gone wrong.
    fn allow<T>(&self, result: qcow::Result<T>, verb: &str) -> qcow::Result<T> {
        match &result {
            Err(e) if !self.faulty.get() => panic!("{verb}: {e}"),
            _ => result,
        }
    }
}
