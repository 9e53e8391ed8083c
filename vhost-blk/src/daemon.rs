//! The process: opens all disks, serves each from a thread of its own, and stops them on a signal.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use qcow::disk::uring;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::EXIT_IMAGE_LOST;
use crate::control::ControlThread;
use crate::disk::{Disk, Outcome};
use crate::io_thread;
use crate::sandbox::{Role, Sandbox};
use crate::settings::{DiskSettings, SocketSettings};
use crate::socket::Socket;
use crate::stop::Stop;

/// What the process waits for.
#[derive(Debug)]
enum Event {
    /// Asked to stop.
    Signal,
    /// A disk has ended.
    Ended(Outcome),
}

/// Serves the disks of `settings` until a signal comes or none is left.
///
/// # Errors
/// Something keeps a disk from starting; then none is served.
pub fn run(settings: Vec<DiskSettings>, sandbox: Sandbox) -> Result<ExitCode> {
    sandbox.enter()?;
    raise_descriptor_limit();
    io_thread::prepare_this_thread()?;
    let (events, inbox) = channel();
    // Before the first image is opened, so that no signal leaves one open.
    watch_signals(events.clone(), sandbox)?;
    // And before that, all threads: from the first disk that is served on, nothing can fail to start.
    let spawn = |settings| {
        let events = events.clone();
        ControlThread::spawn(settings, sandbox, move |outcome| {
            // It fails only while the process ends.
            let _ = events.send(Event::Ended(outcome));
        })
    };
    let threads = settings.iter().map(spawn).collect::<Result<Vec<_>>>()?;
    // It ends with the process.
    let confine = move || sandbox.confine(Role::Worker);
    io_thread::spawn("upkeep".to_owned(), confine, || uring::serve_upkeep())?;
    let disks = open_all(&settings, sandbox)?;
    // With the passphrases, which nobody needs any more.
    drop(settings);
    if let Err(e) = sandbox.confine(Role::Watcher) {
        disks.into_iter().for_each(Disk::close);
        return Err(e);
    }
    let stops = disks.iter().map(Disk::stopper).collect::<Vec<_>>();
    threads.into_iter().zip(disks).for_each(|(thread, disk)| thread.serve(disk));
    Ok(supervise(&inbox, &stops))
}

/// Raises the soft limit on descriptors to the hard one: guests bring one per memory region and three per queue.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        tracing::warn!("cannot raise the limit on open files: {}", e.desc());
    }
}

/// Opens all disks, or none.
fn open_all(settings: &[DiskSettings], sandbox: Sandbox) -> Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for one in settings {
        match open(one, sandbox) {
            Ok(disk) => disks.push(disk),
            Err(e) => {
                disks.into_iter().for_each(Disk::close);
                return Err(e);
            }
        }
    }
    Ok(disks)
}

fn open(settings: &DiskSettings, sandbox: Sandbox) -> Result<Disk> {
    Disk::open(settings, sandbox, || match &settings.socket {
        SocketSettings::Path(path) => Socket::bind(path),
        SocketSettings::Inherited(number, socket) => {
            let socket = socket.try_clone().context("cannot duplicate the socket")?;
            Socket::adopt(socket).with_context(|| format!("descriptor {number}"))
        }
    })
}

fn watch_signals(events: Sender<Event>, sandbox: Sandbox) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot catch signals")?;
    let confine = move || sandbox.confine(Role::Watcher);
    // It ends with the process.
    io_thread::spawn_without_ring("signals".to_owned(), confine, move || {
        for _ in signals.forever() {
            if events.send(Event::Signal).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Waits until every disk has ended.
fn supervise(inbox: &Receiver<Event>, stops: &[Stop]) -> ExitCode {
    let mut running = stops.len();
    let mut worst = ExitCode::SUCCESS;
    while running > 0 {
        match inbox.recv() {
            // Asked again while stopping, there is nothing to hurry: requests in flight end by themselves.
            Ok(Event::Signal) => stops.iter().for_each(Stop::request),
            Ok(Event::Ended(outcome)) => {
                running -= 1;
                if outcome == Outcome::Lost {
                    worst = ExitCode::from(EXIT_IMAGE_LOST);
                }
            }
            Err(_) => break,
        }
    }
    worst
}
