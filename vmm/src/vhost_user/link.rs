//! The thread that keeps the conversation with a device's backend, and begins a new one when that ends.
//!
//! A backend that dies leaves requests unanswered. The next one finds them in the record of requests in flight, which the
//! frontend keeps, and carries them out; the guest only waits. The dead one may also have taken a kick and not acted on it,
//! or have put an answer into the ring and not told of it: so both are signalled once more.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::Ring;
use super::backend::Shared;
use super::notices::Notice;
use super::session::{Inflight, Session};
use crate::ram::GuestMemory;
use crate::virtio::{DeviceKind, QUEUE_SIZE_MAX};

/// How long to wait before connecting again, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// What the device wants.
#[derive(Debug)]
pub enum Command {
    /// To have these queues served.
    Start {
        /// What the driver has accepted, one bit each.
        features: u64,
        /// The queues.
        rings: Vec<Ring>,
        /// Where they are.
        memory: GuestMemory,
    },
    /// To have nothing served.
    Stop {
        /// Who waits for that.
        done: Sender<()>,
    },
    /// To change the configuration.
    WriteConfig {
        /// Offset of the first byte.
        at: u32,
        /// What to write.
        bytes: Vec<u8>,
        /// Who waits for that.
        done: Sender<()>,
    },
}

/// What is to be served.
#[derive(Debug)]
struct Running {
    features: u64,
    rings: Vec<Ring>,
    memory: GuestMemory,
}

/// See the module.
#[derive(Debug)]
pub struct Link {
    path: PathBuf,
    name: String,
    kind: DeviceKind,
    queue_count: u16,
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    bell: Arc<EventFd>,
    /// `None` while there is no backend.
    session: Option<Session>,
    running: Option<Running>,
    inflight: Option<Inflight>,
    retry: Duration,
    /// What was last told of a backend that cannot be used.
    complaint: String,
}

impl Link {
    /// Keeps `session`, and those that follow. `shape` is the kind of device and its number of queues.
    pub fn new(
        path: PathBuf,
        name: String,
        shape: (DeviceKind, u16),
        shared: Arc<Shared>,
        inbox: Receiver<Command>,
        bell: Arc<EventFd>,
        session: Session,
    ) -> Self {
        let (kind, queue_count) = shape;
        Self {
            path,
            name,
            kind,
            queue_count,
            shared,
            inbox,
            bell,
            session: Some(session),
            running: None,
            inflight: None,
            retry: RETRY_FIRST,
            complaint: String::new(),
        }
    }

    /// Keeps the conversation until the device is gone.
    pub fn keep(mut self) {
        loop {
            let seen = self.wait();
            self.shared.count_wake_up();
            // Emptied before the inbox is, so that no command slips through.
            let _ = self.bell.read();
            loop {
                match self.inbox.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.look_after_session(seen);
        }
    }

    /// Waits for something to do.
    fn wait(&self) -> Seen {
        let mut watched = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        let mut timeout = PollTimeout::NONE;
        match &self.session {
            None => timeout = PollTimeout::try_from(self.retry).unwrap_or(PollTimeout::MAX),
            Some(session) => {
                let flags = PollFlags::POLLIN | PollFlags::POLLHUP;
                watched.push(PollFd::new(session.as_fd(), flags));
                watched.extend(session.notices_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            }
        }
        // Interrupted, it is as if nothing was seen.
        let _ = poll(&mut watched, timeout);
        let is_seen = |index: usize| watched.get(index).is_some_and(|fd| fd.any() == Some(true));
        Seen { end: is_seen(1), notice: is_seen(2) }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { features, rings, memory } => {
                self.running = Some(Running { features, rings, memory });
                let started = self.start();
                self.keep_if(started);
            }
            Command::Stop { done } => {
                self.stop();
                let _ = done.send(());
            }
            Command::WriteConfig { at, bytes, done } => {
                let session = self.session.as_mut();
                if session.is_some_and(|session| session.write_config(at, &bytes).is_ok()) {
                    self.shared.overwrite_config(at, &bytes);
                }
                let _ = done.send(());
            }
        }
    }

    /// Starts what is to run, from its beginning.
    fn start(&mut self) -> Result<()> {
        let (Some(session), Some(running)) = (&mut self.session, &self.running) else {
            return Ok(());
        };
        // Whatever an earlier driver left in flight has been finished.
        self.inflight = session.new_inflight(self.queue_count, QUEUE_SIZE_MAX)?;
        if let Some(inflight) = &self.inflight {
            session.set_inflight(inflight)?;
        }
        session.start(running.features, &running.rings, &running.memory, |_| Ok(0))
    }

    fn stop(&mut self) {
        if let (Some(session), Some(running)) = (&mut self.session, &self.running) {
            let stopped = session.stop(&running.rings);
            self.running = None;
            self.keep_if(stopped);
        }
        // A backend that is gone touches nothing any more.
        self.running = None;
        self.shared.set_lost(false);
    }

    /// Ends the conversation if something in it went wrong.
    fn keep_if(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.complain(&error);
            self.lose();
        }
    }

    fn look_after_session(&mut self, seen: Seen) {
        if self.session.is_none() {
            match self.resume() {
                Ok(()) => self.greet(),
                Err(error) => {
                    self.complain(&error);
                    self.retry = (self.retry * 2).min(RETRY_LAST);
                }
            }
        } else if seen.end {
            self.say("the backend is gone; the guest waits for the next one");
            self.lose();
        } else if seen.notice {
            let noticed = self.notice();
            self.keep_if(noticed);
        }
    }

    /// The backend is gone.
    fn lose(&mut self) {
        self.session = None;
        self.retry = RETRY_FIRST;
        let Some(running) = &self.running else { return };
        let is_idle = |ring: &Ring| ring.is_idle(&running.memory).unwrap_or(false);
        // Which requests it had answered cannot be told from the rings alone: they may be answered in any order.
        if self.inflight.is_none() && !running.rings.iter().all(is_idle) {
            self.say(
                "the backend kept no record of its requests: the guest has to reset the device",
            );
            self.running = None;
            self.shared.set_lost(true);
        }
    }

    /// Lets the next backend go on where the last one ended.
    fn resume(&mut self) -> Result<()> {
        let mut session = Session::open(&self.path)?;
        let max = session.queue_max();
        ensure!(self.queue_count <= max, "the backend has {max} queues, and the guest uses more");
        let config = session.read_config(self.kind.config_len())?;
        self.shared.show_config(self.kind.shown_config(config, self.queue_count));
        if let Some(inflight) = &self.inflight {
            session.set_inflight(inflight)?;
        }
        if let Some(Running { features, rings, memory }) = &self.running {
            let base = |ring: &Ring| ring.used_index(memory);
            session.start(*features, rings, memory, base)?;
            for ring in rings {
                ring.kick.write(1).context("cannot signal")?;
                ring.call.write(1).context("cannot signal")?;
            }
        }
        self.session = Some(session);
        Ok(())
    }

    fn greet(&mut self) {
        self.complaint.clear();
        self.shared.count_resumed();
        self.say("a backend is there again");
    }

    fn notice(&mut self) -> Result<()> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let Some(notices) = session.notices() else { return Ok(()) };
        if notices.next().context("a message of the backend")? == Notice::ConfigChanged {
            let config = session.read_config(self.kind.config_len())?;
            self.shared.show_config(self.kind.shown_config(config, self.queue_count));
        }
        Ok(())
    }

    /// Tells once of what goes wrong again and again.
    fn complain(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if text != self.complaint {
            self.say(&text);
            self.complaint = text;
        }
    }

    fn say(&self, what: &str) {
        eprintln!("vmm: {}: {what}", self.name);
    }
}

/// What was there to see.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The backend is gone, or says something that it was not asked.
    end: bool,
    /// A notice has begun.
    notice: bool,
}
