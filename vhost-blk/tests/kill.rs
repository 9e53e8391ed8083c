//! The daemon is killed with SIGKILL under load, started again, and judged by what the disk holds then.
//!
//! A sector reads as the last flush left it, or as anything written since: what a completed request wrote is in the page
//! cache and so survives a kill, but the mapping of a new cluster is the daemon's until a flush. Nothing else may be read,
//! the tables may be worse off by leaks only, and those the next daemon gives back by itself.
//!
//! A failure names its seed; `KILL_SEED=N cargo test -p vhost-blk --test kill` repeats it alone. `SOAK_FACTOR` multiplies
//! the number of rounds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use benches::frontend::Features;
use benches::request::{Request, Status};
use benches::session::{Session, Ticket};
use common::{Bed, Daemon, MIB, SECTOR, text};
use nix::sys::signal::Signal;
use qcow::ErrorKind;
use qcow::disk::sim::Random;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::check::{CheckSummary, Finding, Repair, check};
use qcow::format::header::Header;
use qcow::format::mark::MarkState;

/// Images of one run, each killed so many times.
const IMAGES: u64 = 4;
const ROUNDS: u64 = 8;
const QUEUES: usize = 2;
/// Requests in flight per queue.
const DEPTH: usize = 6;
/// Stretches of the disk that are used, far enough apart to need tables of their own where clusters are small.
const WINDOWS: usize = 8;
const WINDOW_SECTORS: usize = 512;
const WINDOW_DISTANCE: u64 = 8 * MIB / SECTOR as u64;
const SECTORS: usize = WINDOWS * WINDOW_SECTORS;

#[test]
fn a_killed_daemon_loses_nothing_flushed_and_its_leaks_come_back() {
    if let Some(seed) = std::env::var("KILL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return kill_again_and_again(seed);
    }
    let factor: u64 = std::env::var("SOAK_FACTOR").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    // `make soak` kills more than a thousand times.
    let images = if factor > 1 { IMAGES * 2 * factor } else { IMAGES };
    for seed in 0..images {
        let _report = SeedReport(seed);
        kill_again_and_again(seed);
    }
}

/// Tells the seed if its rounds fail.
struct SeedReport(u64);

impl Drop for SeedReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with: KILL_SEED={} cargo test -p vhost-blk --test kill", self.0);
        }
    }
}

fn kill_again_and_again(seed: u64) {
    let mut random = Random::new(seed);
    let kind = Kind::of(seed);
    let bed = kind.bed();
    let mut model = Model::new(kind.initial());
    let mut leaks = 0;
    for round in 0..ROUNDS {
        let daemon = serve(&bed);
        let mut session = connect(&daemon);
        let requests = random.below(300);
        Load::new(&mut session, &mut model, &mut random).run(requests);
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
        drop(session);
        if round % 3 == 0 {
            leaks += assert_only_leaks(&bed);
        }
        let unclean = is_unclean(&bed);
        let mut daemon = serve(&bed);
        let mut session = connect(&daemon);
        model.check_after_kill(&mut session);
        if round % 2 == 0 {
            Load::new(&mut session, &mut model, &mut random).run_to_end(requests);
        }
        if unclean {
            daemon.wait_for("leaked clusters back");
        }
        drop(session);
        daemon.stop();
        assert_spotless(&bed);
        kind.assert_snapshot_unchanged(&bed);
    }
    println!("seed {seed}, {kind:?}: {leaks} leaks in the rounds that were looked at");
}

fn serve(bed: &Bed) -> Daemon {
    bed.serve(&["--num-queues", "2"])
}

fn connect(daemon: &Daemon) -> Session {
    let features = Features { inflight: false, ..Features::default() };
    daemon.connect_with(QUEUES as u16, features)
}

/// What kind of image is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    LargeClusters,
    SmallClusters,
    Backing,
    Snapshot,
}

impl Kind {
    fn of(seed: u64) -> Self {
        [Self::LargeClusters, Self::SmallClusters, Self::Backing, Self::Snapshot][seed as usize % 4]
    }

    fn bed(self) -> Bed {
        let small = ["-f", "qcow2", "-o", "cluster_size=4k"];
        match self {
            Self::LargeClusters => Bed::new(),
            Self::SmallClusters => Bed::with_image(&small),
            Self::Backing => {
                let bed = Bed::with_image(&small);
                write_base(&bed.path("base.raw"));
                qemu(&bed, &["rebase", "-u", "-b", "base.raw", "-F", "raw", "disk.img"]);
                bed
            }
            Self::Snapshot => {
                let bed = Bed::with_image(&small);
                write_base(&bed.path("base.raw"));
                qemu(&bed, &["convert", "-n", "-O", "qcow2", "base.raw", "disk.img"]);
                qemu(&bed, &["snapshot", "-c", "kept", "disk.img"]);
                bed
            }
        }
    }

    /// What the sectors hold at first.
    fn initial(self) -> fn(usize) -> u64 {
        match self {
            Self::LargeClusters | Self::SmallClusters => |_| 0,
            Self::Backing | Self::Snapshot => base_value,
        }
    }

    fn assert_snapshot_unchanged(self, bed: &Bed) {
        if self == Self::Snapshot {
            qemu(bed, &["convert", "-l", "kept", "-O", "raw", "disk.img", "kept.raw"]);
            let read = |name| std::fs::read(bed.path(name)).unwrap();
            assert!(read("kept.raw") == read("base.raw"), "the snapshot has changed");
        }
    }
}

/// A raw disk whose sectors hold what [`base_value`] says.
fn write_base(path: &Path) {
    let mut bytes = vec![0; 64 * MIB as usize];
    for index in 0..SECTORS {
        let at = place(index) as usize * SECTOR;
        bytes[at..at + SECTOR].copy_from_slice(&sector_bytes(base_value(index)));
    }
    std::fs::write(path, bytes).unwrap();
}

fn base_value(index: usize) -> u64 {
    0xba5e << 48 | index as u64
}

fn qemu(bed: &Bed, args: &[&str]) {
    let mut command = Command::new("qemu-img");
    let output = command.args(args).current_dir(bed.path("")).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {}", text(&output));
}

/// The sector of the disk with this index among those that are used.
fn place(index: usize) -> u64 {
    (index / WINDOW_SECTORS) as u64 * WINDOW_DISTANCE + (index % WINDOW_SECTORS) as u64
}

/// A sector that says on every byte what it is.
fn sector_bytes(value: u64) -> [u8; SECTOR] {
    std::array::from_fn(|at| value.to_le_bytes()[at % 8])
}

/// What a sector says; panics where it is torn between two.
fn value_of(sector: &[u8]) -> u64 {
    let (words, _) = sector.as_chunks();
    let value = u64::from_le_bytes(words[0]);
    assert!(words.iter().all(|word| *word == words[0]), "a torn sector with {value:#x}");
    value
}

/// What each sector may hold.
struct Model {
    sectors: Vec<Sector>,
    next_stamp: u64,
}

struct Sector {
    /// What it held at the start, and what each request since has made of it or may have.
    values: Vec<u64>,
    /// The oldest value that a kill may bring back.
    durable: usize,
    /// Whether a request is at it.
    busy: bool,
}

impl Sector {
    fn holding(value: u64) -> Self {
        Self { values: vec![value], durable: 0, busy: false }
    }

    fn current(&self) -> usize {
        self.values.len() - 1 - usize::from(self.busy)
    }
}

impl Model {
    fn new(initial: fn(usize) -> u64) -> Self {
        let sectors = (0..SECTORS).map(|index| Sector::holding(initial(index))).collect();
        Self { sectors, next_stamp: 1 }
    }

    fn is_busy(&self, range: &Range<usize>) -> bool {
        self.sectors[range.clone()].iter().any(|sector| sector.busy)
    }

    fn begin(&mut self, range: &Range<usize>, value: impl Fn(usize) -> u64) {
        for index in range.clone() {
            self.sectors[index].values.push(value(index));
            self.sectors[index].busy = true;
        }
    }

    fn end(&mut self, range: &Range<usize>) {
        self.sectors[range.clone()].iter_mut().for_each(|sector| sector.busy = false);
    }

    /// A discard either zeroes a sector or leaves it alone; this is which.
    fn end_discard(&mut self, range: &Range<usize>, bytes: &[u8]) {
        for (index, bytes) in range.clone().zip(bytes.chunks(SECTOR)) {
            let (value, sector) = (value_of(bytes), &mut self.sectors[index]);
            let before = sector.values[sector.current()];
            assert!(value == 0 || value == before, "{value:#x} where {before:#x} was discarded");
            sector.values.push(value);
        }
        self.end(range);
    }

    fn begin_flush(&self) -> Vec<usize> {
        self.sectors.iter().map(Sector::current).collect()
    }

    fn end_flush(&mut self, durable: &[usize]) {
        for (sector, durable) in self.sectors.iter_mut().zip(durable) {
            sector.durable = sector.durable.max(*durable);
        }
    }

    /// Compares the disk with what a kill may have left, and goes on from there.
    fn check_after_kill(&mut self, session: &mut Session) {
        for window in 0..WINDOWS {
            let first = window * WINDOW_SECTORS;
            let bytes = session.queue(0).read(place(first), (WINDOW_SECTORS * SECTOR) as u32);
            for (index, bytes) in (first..).zip(bytes.unwrap().chunks(SECTOR)) {
                let (value, sector) = (value_of(bytes), &mut self.sectors[index]);
                let allowed = &sector.values[sector.durable..];
                assert!(allowed.contains(&value), "sector {index}: {value:#x}, not {allowed:#x?}");
                *sector = Sector::holding(value);
            }
        }
    }
}

/// Requests on all queues.
struct Load<'a> {
    session: &'a mut Session,
    model: &'a mut Model,
    random: &'a mut Random,
    flights: [VecDeque<Flight>; QUEUES],
}

struct Flight {
    ticket: Ticket,
    what: What,
}

enum What {
    Change(Range<usize>),
    Discard(Range<usize>),
    ReadBack(Range<usize>),
    Flush(Vec<usize>),
}

impl<'a> Load<'a> {
    fn new(session: &'a mut Session, model: &'a mut Model, random: &'a mut Random) -> Self {
        Self { session, model, random, flights: Default::default() }
    }

    /// Completes so many requests and leaves others in flight.
    fn run(&mut self, requests: u64) {
        for _ in 0..requests {
            let queue = self.random.below(QUEUES as u64) as usize;
            self.fill();
            self.complete_one(queue);
        }
        self.fill();
    }

    fn run_to_end(&mut self, requests: u64) {
        self.run(requests);
        for queue in 0..QUEUES {
            while !self.flights[queue].is_empty() {
                self.complete_one(queue);
            }
        }
    }

    fn fill(&mut self) {
        for queue in 0..QUEUES {
            while self.flights[queue].len() < DEPTH {
                self.start_one(queue);
            }
        }
    }

    fn start_one(&mut self, queue: usize) {
        let kind = self.random.below(16);
        let len = [1, 3, 8, 16, 64, 128][self.random.below(6) as usize];
        let mut range = self.pick(len);
        if kind == 15 || self.model.is_busy(&range) {
            let durable = self.model.begin_flush();
            return self.send(queue, &Request::Flush, What::Flush(durable));
        }
        if kind >= 13 {
            // Whole clusters, where they are small.
            range = range.start / 8 * 8..range.end.next_multiple_of(8);
            if self.model.is_busy(&range) {
                return self.start_one(queue);
            }
        }
        let (sector, sectors) = (place(range.start), range.len() as u32);
        match kind {
            0..10 => {
                let stamp = self.model.next_stamp << 16;
                self.model.next_stamp += 1;
                let data: Vec<u8> =
                    range.clone().flat_map(|index| sector_bytes(stamp | index as u64)).collect();
                self.model.begin(&range, |index| stamp | index as u64);
                self.send(queue, &Request::Write { sector, data: &data }, What::Change(range));
            }
            10..13 => {
                self.model.begin(&range, |_| 0);
                let unmap = kind == 12;
                let request = Request::WriteZeroes { sector, sectors, unmap };
                self.send(queue, &request, What::Change(range));
            }
            _ => {
                self.model.begin(&range, |_| 0);
                self.send(queue, &Request::Discard { sector, sectors }, What::Discard(range));
            }
        }
    }

    /// Up to `len` sectors of one window.
    fn pick(&mut self, len: usize) -> Range<usize> {
        let start = self.random.below(SECTORS as u64) as usize;
        start..(start + len).min((start / WINDOW_SECTORS + 1) * WINDOW_SECTORS)
    }

    fn send(&mut self, queue: usize, request: &Request<'_>, what: What) {
        let ticket = self.session.queue(queue).start(request).unwrap();
        self.flights[queue].push_back(Flight { ticket, what });
    }

    fn complete_one(&mut self, queue: usize) {
        let Flight { ticket, what } = self.flights[queue].pop_front().unwrap();
        let done = self.session.queue(queue).wait(ticket).unwrap();
        assert_eq!(done.status, Some(Status::Ok));
        match what {
            What::Change(range) => self.model.end(&range),
            What::Discard(range) => {
                let (sector, len) = (place(range.start), (range.len() * SECTOR) as u32);
                self.send(queue, &Request::Read { sector, len }, What::ReadBack(range));
            }
            What::ReadBack(range) => self.model.end_discard(&range, &done.data),
            What::Flush(durable) => self.model.end_flush(&durable),
        }
    }
}

/// The image's file, once nobody holds its lock, as the last I/O of a killed process does.
fn unlocked(bed: &Bed) -> UringDisk {
    loop {
        match UringDisk::open(&bed.image(), Access::ReadWrite, CacheMode::PageCache) {
            Err(e) if e.kind() == ErrorKind::Locked => std::thread::yield_now(),
            disk => return disk.unwrap(),
        }
    }
}

/// Whether the image says that it was not closed. A daemon that is killed before its first change leaves no such mark.
fn is_unclean(bed: &Bed) -> bool {
    let _disk = unlocked(bed);
    let bytes = std::fs::read(bed.image()).unwrap();
    let cluster0 = &bytes[..1 << Header::cluster_bits_of(&bytes).unwrap()];
    let header = Header::parse(cluster0, bytes.len() as u64).unwrap();
    header.extensions.mark.is_some_and(|mark| mark.state() == MarkState::Unclean)
}

/// What our check says of the image.
fn our_check(bed: &Bed) -> (CheckSummary, Vec<String>) {
    let (disk, path) = (unlocked(bed), bed.image());
    let mut findings = Vec::new();
    let mut report = |finding: &Finding| findings.push(finding.to_string());
    let summary = block_on(check(&disk, &path, Repair::None, &mut report)).unwrap();
    (summary, findings)
}

/// Right after a kill; how many leaks there are.
fn assert_only_leaks(bed: &Bed) -> u64 {
    let (summary, findings) = our_check(bed);
    assert_eq!((summary.corruptions, summary.check_errors), (0, 0), "{findings:#?}");
    let output = Command::new("qemu-img").arg("check").arg(bed.image()).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", text(&output));
    summary.leaks
}

fn assert_spotless(bed: &Bed) {
    let (summary, findings) = our_check(bed);
    assert!(summary.is_clean() && findings.is_empty(), "{findings:#?}");
    bed.assert_clean();
}
