//! A backend, as the device sees it that it serves.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use nix::sys::eventfd::{EfdFlags, EventFd as Bell};
use qcow::sync::lock;
use vmm_sys_util::eventfd::EventFd;

use super::Ring;
use super::link::{Command, Link};
use super::session::Session;
use crate::ram::GuestMemory;
use crate::sandbox::{self, Role};
use crate::virtio::DeviceKind;

/// What the thread that keeps the conversation shares with processors.
#[derive(Debug)]
pub struct Shared {
    /// The device's configuration, as the guest sees it.
    config: Mutex<Vec<u8>>,
    /// Counts its changes.
    generation: AtomicU8,
    /// Whether requests got lost: the guest has to reset the device.
    lost: AtomicBool,
    /// Signalled when the configuration has changed, or requests got lost.
    changed: Arc<EventFd>,
    /// How often a new backend took over.
    resumed: AtomicU32,
    /// How often the thread had something to do.
    wake_ups: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub struct Backend {
    commands: Sender<Command>,
    /// Rung when there is a command.
    bell: Arc<Bell>,
    shared: Arc<Shared>,
    name: String,
    kind: DeviceKind,
    features: u64,
    queue_count: u16,
}

impl Backend {
    /// Connects to the backend of a device of this kind that listens at `path`, and keeps the conversation from a thread. It
    /// is to have `queues` queues, or as many as it can of one for each of `cpus` processors. `name` is what people know it by.
    pub fn connect(
        path: &Path,
        name: &str,
        kind: DeviceKind,
        queues: Option<u16>,
        cpus: u8,
    ) -> Result<Self> {
        let mut session = Session::open(path)?;
        let max = session.queue_max();
        let queue_count = queues.unwrap_or_else(|| max.min(cpus.into()));
        ensure!(queue_count <= max, "{queue_count} queues are wanted, and the backend has {max}");
        let config = kind.shown_config(session.read_config(kind.config_len())?, queue_count);
        let features = session.features();
        let shared = Arc::new(Shared::new(config)?);
        let (commands, inbox) = channel();
        let bell = Arc::new(Bell::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (link_shared, link_bell) = (Arc::clone(&shared), Arc::clone(&bell));
        let link = Link::new(
            path.to_owned(),
            name.to_owned(),
            (kind, queue_count),
            link_shared,
            inbox,
            link_bell,
            session,
        );
        std::thread::Builder::new()
            .name(format!("link {name}").chars().take(15).collect())
            .spawn(move || match sandbox::confine_thread(Role::Link) {
                Ok(()) => link.keep(),
                // Dropped, it answers nobody any more, and the guest waits.
                Err(error) => eprintln!("vmm: cannot confine a thread: {error:#}"),
            })
            .context("cannot start a thread")?;
        Ok(Self { commands, bell, shared, name: name.to_owned(), kind, features, queue_count })
    }

    /// What people know it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// The features that the guest may be offered, one bit each.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Queues of the device.
    pub fn queue_count(&self) -> u16 {
        self.queue_count
    }

    /// Signalled when the configuration has changed, or requests got lost.
    pub fn changed(&self) -> &Arc<EventFd> {
        &self.shared.changed
    }

    /// Counts changes of the configuration.
    pub fn generation(&self) -> u8 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Whether requests got lost, so that the guest has to reset the device.
    pub fn is_lost(&self) -> bool {
        self.shared.lost.load(Ordering::Acquire)
    }

    /// How often a new backend took over from one that was gone.
    pub fn resumed(&self) -> u32 {
        self.shared.resumed.load(Ordering::Relaxed)
    }

    /// How often the thread behind it had something to do.
    pub fn wake_ups(&self) -> u64 {
        self.shared.wake_ups.load(Ordering::Relaxed)
    }

    /// The guest reads the device's configuration. Behind its end there are zeros.
    pub fn read_config(&self, at: u64, data: &mut [u8]) {
        let config = lock(&self.shared.config);
        for (byte, at) in data.iter_mut().zip(at as usize..) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    /// The guest writes the device's configuration.
    pub fn write_config(&self, at: u64, data: &[u8]) {
        let bytes = data.to_vec();
        self.and_wait(|done| Command::WriteConfig { at: at as u32, bytes, done });
    }

    /// Lets the backend serve these queues in `memory`, as soon as there is one.
    pub fn start(&self, features: u64, rings: Vec<Ring>, memory: GuestMemory) {
        self.send(Command::Start { features, rings, memory });
    }

    /// Lets the backend finish what is in flight, and waits for that.
    pub fn stop(&self) {
        self.and_wait(|done| Command::Stop { done });
    }

    fn and_wait(&self, command: impl FnOnce(Sender<()>) -> Command) {
        let (done, answer) = channel();
        self.send(command(done));
        // The thread lives as long as this does; if it has panicked, the program is about to end.
        let _ = answer.recv();
    }

    fn send(&self, command: Command) {
        // See `and_wait`.
        let _ = self.commands.send(command);
        let _ = self.bell.write(1);
    }
}

impl Shared {
    fn new(config: Vec<u8>) -> Result<Self> {
        let changed = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self {
            config: Mutex::new(config),
            generation: AtomicU8::new(0),
            lost: AtomicBool::new(false),
            changed: Arc::new(changed),
            resumed: AtomicU32::new(0),
            wake_ups: AtomicU64::new(0),
        })
    }

    /// Shows the guest another configuration, if it is another one.
    pub fn show_config(&self, config: Vec<u8>) {
        let mut shown = lock(&self.config);
        if *shown == config {
            return;
        }
        *shown = config;
        self.generation.fetch_add(1, Ordering::Release);
        drop(shown);
        self.signal();
    }

    /// The guest has changed its configuration by itself.
    pub fn overwrite_config(&self, at: u32, bytes: &[u8]) {
        let mut config = lock(&self.config);
        for (byte, at) in bytes.iter().zip(at as usize..) {
            if let Some(old) = config.get_mut(at) {
                *old = *byte;
            }
        }
    }

    /// Requests got lost, or the device is reset and starts anew.
    pub fn set_lost(&self, lost: bool) {
        self.lost.store(lost, Ordering::Release);
        if lost {
            self.signal();
        }
    }

    /// A new backend took over.
    pub fn count_resumed(&self) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    /// The thread has something to do.
    pub fn count_wake_up(&self) {
        self.wake_ups.fetch_add(1, Ordering::Relaxed);
    }

    fn signal(&self) {
        // It fails only where it has been signalled a great many times.
        let _ = self.changed.write(1);
    }
}
