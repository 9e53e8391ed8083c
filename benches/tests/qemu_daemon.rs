//! The driver against a real daemon: QEMU's, on a qcow2 image that `qemu-img` made.

use std::process::Command;
use std::time::Duration;

use benches::compare::daemon::{Daemon, Settings, Template};
use benches::frontend::Features;
use benches::load::plan::{Access, Mix, Op};
use benches::load::{self, Job, Limit};
use benches::request::{Request, Status};
use benches::session::Session;
use benches::{Error, config};
use tempfile::TempDir;

const DISK: u64 = 64 << 20;

/// A directory with a fresh image and a daemon that serves it on two queues.
struct Bed {
    dir: TempDir,
    daemon: Daemon,
}

impl Bed {
    fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let image = dir.path().join("disk.qcow2");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&image)
            .arg(DISK.to_string())
            .status();
        assert!(made.expect("this test needs qemu-img (Debian: qemu-utils)").success());
        let daemon = start(&dir);
        Self { dir, daemon }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("disk.sock")
    }

    fn session(&self, features: Features) -> Session {
        Session::connect(&self.socket(), 2, 64, features).expect("the daemon serves")
    }

    fn job(&self, mix: Mix) -> Job {
        Job {
            queues: 2,
            depth: 16,
            mix,
            offset: 1 << 20,
            range: Some(16 << 20),
            flush_every: 50,
            seed: 42,
            limit: Limit::Requests(4000),
            warmup: Duration::ZERO,
            verify: true,
            ..Job::new(self.socket())
        }
    }
}

fn start(dir: &TempDir) -> Daemon {
    let settings =
        Settings { format: "qcow2".into(), direct: false, queues: 2, l2_cache: 0, key: None };
    let (image, socket) = (dir.path().join("disk.qcow2"), dir.path().join("disk.sock"));
    Daemon::start(&Template::qemu_storage_daemon(), &image, &socket, &settings)
        .expect("this test needs qemu-storage-daemon (Debian: qemu-system-common or qemu-utils)")
}

/// All four combinations of the ring features.
fn ring_features() -> impl Iterator<Item = Features> {
    [(false, false), (false, true), (true, false), (true, true)]
        .into_iter()
        .map(|(event_idx, indirect)| Features { event_idx, indirect, inflight: true })
}

#[test]
fn single_requests_with_all_ring_features() {
    let bed = Bed::new();
    for features in ring_features() {
        let mut session = bed.session(features);
        assert_eq!(session.config().bytes(), DISK);
        for index in 0..2 {
            let disk = session.queue(index);
            let data: Vec<u8> = (0..200_u8).cycle().take(64 * 1024).collect();
            disk.write(8, &data).unwrap();
            disk.flush().unwrap();
            assert_eq!(disk.read(8, 64 * 1024).unwrap(), data);
            disk.write_zeroes(16, 8, false).unwrap();
            assert_eq!(disk.read(16, 4096).unwrap(), [0; 4096]);
            assert_eq!(disk.read(24, 512).unwrap(), data[8192..8704]);
            disk.discard(0, 256).unwrap();
            assert_eq!(disk.get_id().unwrap(), b"vhost_user_blk");
        }
        session.stop().unwrap();
    }
    bed.daemon.stop().unwrap();
}

#[test]
fn requests_in_flight_complete_in_any_order_of_waiting() {
    let bed = Bed::new();
    let mut session = bed.session(Features::default());
    let disk = session.queue(0);
    let blocks: Vec<_> = (0..32_u8).map(|i| vec![i; 4096]).collect();
    let start = |(i, data): (usize, &Vec<u8>)| (i as u64 * 8, data.clone());
    let places: Vec<_> = blocks.iter().enumerate().map(start).collect();
    let mut tickets = Vec::new();
    for (sector, data) in &places {
        tickets.push(disk.start(&Request::Write { sector: *sector, data }).unwrap());
    }
    for ticket in tickets.into_iter().rev() {
        assert_eq!(disk.wait(ticket).unwrap().status, Some(Status::Ok));
    }
    for (sector, data) in &places {
        assert_eq!(&disk.read(*sector, 4096).unwrap(), data);
    }
}

#[test]
fn a_request_beyond_the_end_fails_and_the_next_succeeds() {
    let bed = Bed::new();
    let mut session = bed.session(Features::default());
    let disk = session.queue(0);
    let end = DISK / config::SECTOR;
    assert!(matches!(disk.read(end, 512), Err(Error::Status(Status::IoError))));
    assert!(matches!(disk.write(end - 1, &[1; 1024]), Err(Error::Status(Status::IoError))));
    disk.read(end - 1, 512).unwrap();
}

#[test]
fn a_spoilt_chain_reaches_the_daemon_as_it_is() {
    let bed = Bed::new();
    let mut session = bed.session(Features::default());
    let disk = session.queue(0);
    let mut chain = disk.prepare_read(0, 4096).unwrap();
    chain.descriptors[0].addr = disk.place(&benches::request::header(77, 0)).unwrap();
    let ticket = disk.submit(&chain).unwrap();
    assert_eq!(disk.wait(ticket).unwrap().status, Some(Status::Unsupported));

    // QEMU's daemon gives a queue up whose descriptors point outside the guest's memory.
    let mut chain = disk.prepare_read(0, 4096).unwrap();
    chain.descriptors[1].addr.0 = 0xdead_0000;
    let ticket = disk.submit(&chain).unwrap();
    let lost = disk.wait_for(ticket, Duration::from_millis(200));
    assert!(matches!(lost, Err(Error::Timeout(_) | Error::Hangup)), "{lost:?}");
    drop(session);

    let mut session = bed.session(Features::default());
    session.queue(0).read(0, 512).unwrap();
}

/// With nothing in flight: QEMU 10.0's daemon aborts when a kick meets its end of a connection.
#[test]
fn a_disconnect_without_a_word_leaves_the_daemon_serving() {
    let bed = Bed::new();
    let mut session = bed.session(Features::default());
    session.queue(0).write(0, &[6; 512]).unwrap();
    session.disconnect().unwrap();
    drop(session);
    let mut session = bed.session(Features::default());
    assert_eq!(session.queue(1).read(0, 512).unwrap(), [6; 512]);
}

#[test]
fn a_restarted_daemon_is_reached_with_the_same_rings() {
    let bed = Bed::new();
    let mut session = bed.session(Features::default());
    for i in 0..100 {
        session.queue(0).write(i, &[i as u8; 512]).unwrap();
    }
    session.queue(0).flush().unwrap();
    drop(bed.daemon); // SIGKILL
    assert!(matches!(session.queue(0).read(0, 512), Err(Error::Hangup)));

    // QEMU's daemon keeps no record of what was in flight: resume with a new session.
    let daemon = start(&bed.dir);
    let mut session =
        Session::connect(&bed.dir.path().join("disk.sock"), 2, 64, Features::default()).unwrap();
    assert!(!session.survives_crash());
    for i in 0..100 {
        assert_eq!(session.queue(1).read(i, 512).unwrap(), [i as u8; 512]);
    }
    session.reconnect().unwrap();
    assert_eq!(session.queue(1).read(7, 512).unwrap(), [7; 512]);
    daemon.stop().unwrap();
}

#[test]
fn a_verified_load_of_everything_finds_nothing_wrong() {
    let bed = Bed::new();
    for features in ring_features() {
        let mix = Mix::with_writes(40, 5, 5).unwrap();
        let report = load::run(&Job { features, ..bed.job(mix) }).unwrap();
        assert_eq!((report.requests, report.errors), (4000, 0));
        assert!(report.checked_blocks > 1000 && report.checked_after > 1000, "{report}");
        assert!(report.server_cpu_us_per_request > 0.0);
    }
}

#[test]
fn a_verified_load_finds_what_another_wrote() {
    let bed = Bed::new();
    let blocks = (16 << 20) / 4096;
    let fill = Job {
        access: Access::Sequential,
        limit: Limit::Requests(blocks),
        flush_every: 0,
        ..bed.job(Mix::only(Op::Write))
    };
    load::run(&fill).unwrap();
    let read = Job { mix: Mix::only(Op::Read), expect_written: true, ..fill };
    load::run(&read).unwrap();

    let offset = (5 << 20) + 512;
    bed.session(Features::default()).queue(0).write(offset / 512, &[1; 512]).unwrap();
    match load::run(&read) {
        Err(Error::Mismatch(mismatch)) => assert_eq!(mismatch.offset, offset),
        other => panic!("the foreign sector was not found: {other:?}"),
    }
}

#[test]
fn what_the_disk_cannot_do_is_refused_before_anything_is_written() {
    let bed = Bed::new();
    let job = bed.job(Mix::only(Op::Discard));
    for bad in [
        Job { block_size: 64 << 20, offset: 0, range: None, queues: 1, ..job.clone() },
        Job { block_size: 100, ..job.clone() },
        Job { offset: DISK * 2, ..job.clone() },
        Job { range: Some(4096), ..job.clone() },
    ] {
        assert!(matches!(load::run(&bad), Err(Error::Invalid(_))));
    }
    let many = Job { queues: 3, ..job };
    assert!(matches!(load::run(&many), Err(Error::TooFewQueues { asked: 3, served: 2 })));
}
