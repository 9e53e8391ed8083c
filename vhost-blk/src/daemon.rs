//! The process: opens all disks, serves each from a thread of its own, and stops them on a signal.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::EXIT_IMAGE_LOST;
use crate::disk::{Disk, Outcome};
use crate::settings::{DiskSettings, SocketSettings};
use crate::socket::Socket;
use crate::stop::Stop;

enum Event {
    Signal,
    Ended(Outcome),
}

/// Serves `disks` until a signal comes or none is left.
///
/// # Errors
/// Something keeps a disk from starting; then none is served.
pub fn run(disks: &[DiskSettings]) -> Result<ExitCode> {
    let (events, inbox) = channel();
    // Before the first image is opened, so that no signal leaves one open.
    watch_signals(events.clone())?;
    let disks = disks.iter().map(open).collect::<Result<Vec<_>>>()?;
    let stops = disks.iter().map(Disk::stopper).collect::<Vec<_>>();
    for disk in disks {
        let events = events.clone();
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let mut ended = Ended { outcome: Outcome::Lost, events };
                ended.outcome = disk.serve();
            })
            .context("cannot start a thread")?;
    }
    Ok(supervise(&inbox, &stops))
}

fn open(settings: &DiskSettings) -> Result<Disk> {
    Disk::open(settings, || match &settings.socket {
        SocketSettings::Path(path) => Socket::bind(path),
        SocketSettings::Inherited(number, socket) => {
            let socket = socket.try_clone().context("cannot duplicate the socket")?;
            Socket::adopt(socket).with_context(|| format!("descriptor {number}"))
        }
    })
}

fn watch_signals(events: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot catch signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                if events.send(Event::Signal).is_err() {
                    return;
                }
            }
        })
        .context("cannot start a thread")?;
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

/// Tells that a disk has ended, even by a panic.
struct Ended {
    outcome: Outcome,
    events: Sender<Event>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        // It fails only while the process ends.
        let _ = self.events.send(Event::Ended(self.outcome));
    }
}
