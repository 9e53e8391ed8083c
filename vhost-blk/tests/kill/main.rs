//! The daemon is killed with SIGKILL under load, started again, and judged by what the disk holds then.
//!
//! A guest that lives on, whose monitor keeps the record of requests in flight, notices nothing: every request is done, and
//! what it has been told is done stays, flushed or not. Without the record a sector reads as the last flush left it, or as
//! anything written since: what a completed request wrote is in the page cache and so survives a kill, but the mapping of a
//! new cluster is the daemon's until a flush. In either case the tables may be worse off by leaks only, and those the next
//! daemon gives back by itself.
//!
//! A failure names its seed; `KILL_SEED=N cargo test -p vhost-blk --test kill` repeats it alone. `SOAK_FACTOR` multiplies
//! the number of rounds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod image;
mod load;
mod model;

use benches::frontend::Features;
use common::SECTOR;
use disk::{Kind, WINDOW_SECTORS, WINDOWS};
use image::{assert_only_leaks, is_unclean};
use load::Load;
use model::Model;
use nix::sys::signal::Signal;
use qcow::disk::sim::Random;

/// Images of one run, each killed so many times.
const IMAGES: u64 = 4;
const ROUNDS: u64 = 8;
const QUEUES: usize = 2;
const SECTORS: usize = WINDOWS * WINDOW_SECTORS;

#[test]
fn a_killed_daemon_loses_nothing_flushed_and_its_leaks_come_back() {
    for_each_seed(IMAGES, kill_again_and_again);
}

#[test]
fn a_guest_that_lives_on_finds_every_request_done() {
    for_each_seed(IMAGES + 1, kill_under_a_guest);
}

#[test]
fn a_log_of_an_image_that_somebody_else_has_changed_is_refused() {
    let kind = Kind::SmallClusters;
    let bed = kind.bed();
    let daemon = kind.serve(&bed);
    let mut session = daemon.connect_with(1, Features::default());
    session.queue(0).write(0, &[1; SECTOR]).unwrap();
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let other = kind.serve(&bed);
    other.connect().queue(0).write(64, &[2; SECTOR]).unwrap();
    other.stop();
    let mut daemon = kind.serve(&bed);
    assert!(session.reconnect().is_err());
    daemon.wait_for("cannot be replayed: ");
    // A guest that is reset gets a new log.
    let mut session = daemon.connect();
    assert_eq!(session.queue(0).read(0, SECTOR as u32).unwrap(), [0; SECTOR]);
    assert_eq!(session.queue(0).read(64, SECTOR as u32).unwrap(), [2; SECTOR]);
    drop(session);
    daemon.stop();
    kind.assert_spotless(&bed);
}

#[test]
fn a_daemon_that_was_stopped_in_order_leaves_nothing_to_replay() {
    let kind = Kind::SmallClusters;
    let bed = kind.bed();
    let daemon = kind.serve(&bed);
    let mut session = daemon.connect_with(1, Features::default());
    session.queue(0).write(0, &[1; SECTOR]).unwrap();
    daemon.stop();
    kind.assert_spotless(&bed);
    let daemon = kind.serve(&bed);
    session.reconnect().unwrap();
    assert_eq!(session.queue(0).read(0, SECTOR as u32).unwrap(), [1; SECTOR]);
    session.queue(0).write(8, &[2; SECTOR]).unwrap();
    // The same daemon again: the log is its own.
    session.reconnect().unwrap();
    assert_eq!(session.queue(0).read(8, SECTOR as u32).unwrap(), [2; SECTOR]);
    session.stop().unwrap();
    daemon.stop();
    kind.assert_spotless(&bed);
}

fn for_each_seed(count: u64, run: fn(u64)) {
    if let Some(seed) = std::env::var("KILL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return run(seed);
    }
    let factor: u64 = std::env::var("SOAK_FACTOR").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    // `make soak` kills more than a thousand times.
    let count = if factor > 1 { count * 2 * factor } else { count };
    for seed in 0..count {
        let _report = SeedReport(seed);
        run(seed);
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
        let daemon = kind.serve(&bed);
        let mut session = daemon.connect_with(QUEUES as u16, FORGETFUL);
        let requests = random.below(300);
        Load::new(&mut session, &mut model, &mut random).run(requests);
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
        drop(session);
        if round % 3 == 0 {
            leaks += assert_only_leaks(&bed);
        }
        let unclean = is_unclean(&bed);
        let mut daemon = kind.serve(&bed);
        let mut session = daemon.connect_with(QUEUES as u16, FORGETFUL);
        model.check_after_kill(&mut session);
        if round % 2 == 0 {
            Load::new(&mut session, &mut model, &mut random).run_to_end(requests);
        }
        if unclean {
            daemon.wait_for("leaked clusters back");
        }
        drop(session);
        daemon.stop();
        kind.assert_spotless(&bed);
    }
    println!("seed {seed}, {kind:?}: {leaks} leaks in the rounds that were looked at");
}

/// Kills the daemon again and again in the middle of requests. Whoever sends them only notices that some take longer.
fn kill_under_a_guest(seed: u64) {
    let mut random = Random::new(seed);
    let kind = if seed == IMAGES { Kind::Raw } else { Kind::of(seed) };
    let bed = kind.bed();
    let mut model = Model::new(kind.initial());
    let mut daemon = kind.serve(&bed);
    let mut session = daemon.connect_with(QUEUES as u16, Features::default());
    assert!(session.survives_crash());
    let requests: [u64; ROUNDS as usize] = std::array::from_fn(|_| random.below(100));
    let mut load = Load::new(&mut session, &mut model, &mut random);
    for (round, requests) in requests.into_iter().enumerate() {
        load.run(requests);
        daemon.signal(Signal::SIGKILL);
        load.run_until_hangup();
        daemon.wait();
        daemon = kind.serve(&bed);
        load.session().reconnect().unwrap();
        if round % 2 == 0 {
            load.run_to_end(requests);
            load.check_nothing_lost();
        }
    }
    load.run_to_end(0);
    load.check_nothing_lost();
    session.stop().unwrap();
    daemon.stop();
    if kind != Kind::Raw && is_unclean(&bed) {
        // The last one was stopped before it had found all leaks.
        let mut daemon = kind.serve(&bed);
        let _session = daemon.connect();
        daemon.wait_for("leaked clusters back");
        daemon.stop();
    }
    kind.assert_spotless(&bed);
}

/// Without the record of requests in flight.
const FORGETFUL: Features = Features { event_idx: true, indirect: true, inflight: false };
