//! The thread behind one queue, and how the control thread talks to it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};

use crate::bell::Bell;
use crate::chain::Indirect;
use crate::device::Device;
use crate::disk::DiskImage;
use crate::memory::QueueMemory;
use crate::queue;
use crate::ring::Ring;
use crate::stop::Stop;

/// A queue that is to start.
#[derive(Debug)]
pub struct Start {
    pub ring: Ring,
    pub memory: Arc<QueueMemory>,
    pub indirect: Indirect,
    /// Written to by the guest when there is something to do; without it the ring is polled.
    pub kick: Option<Arc<OwnedFd>>,
    pub call: Option<Arc<File>>,
    pub error: Option<Arc<File>>,
}

/// What the control thread wants of a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve this queue. The worker serves none.
    Start(Box<Start>),
    /// Interrupt the guest through this descriptor from now on.
    SetCall(Option<Arc<File>>),
    /// Take no more requests, finish those in flight, let go of the guest's memory; then answer with the index of the
    /// next chain in the available ring.
    Stop(Sender<u16>),
}

/// The worker has died.
#[derive(Clone, Copy, Debug)]
pub struct WorkerGone;

/// A worker, from the control thread's side. Dropping it lets the thread finish and waits for that.
#[derive(Debug)]
pub struct Worker {
    commands: Option<Sender<Command>>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of queue `index`. Should it die, `stop` stops the disk.
    pub fn spawn(index: u16, image: DiskImage, device: Arc<Device>, stop: Stop) -> Result<Self> {
        let bell = Bell::new().context("cannot make an eventfd")?;
        let own = bell.clone();
        let (commands, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("queue {index}"))
            .spawn(move || {
                let _crash = CrashGuard { stop };
                queue::serve(&image, &device, inbox, own);
            })
            .context("cannot start a thread")?;
        Ok(Self { commands: Some(commands), bell, thread: Some(thread) })
    }

    /// Lets the worker serve a queue.
    pub fn start(&self, start: Start) -> Result<(), WorkerGone> {
        self.send(Command::Start(Box::new(start)))
    }

    /// Changes how the guest is interrupted.
    pub fn set_call(&self, call: Option<Arc<File>>) -> Result<(), WorkerGone> {
        self.send(Command::SetCall(call))
    }

    /// Asks the worker to stop serving its queue; the answer comes when nothing is in flight any more.
    pub fn stop(&self) -> Result<Receiver<u16>, WorkerGone> {
        let (reply, answer) = channel();
        self.send(Command::Stop(reply))?;
        Ok(answer)
    }

    fn send(&self, command: Command) -> Result<(), WorkerGone> {
        let commands = self.commands.as_ref().ok_or(WorkerGone)?;
        commands.send(command).map_err(|_| WorkerGone)?;
        self.bell.ring();
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.commands = None;
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported where it happened, and has stopped the disk.
            let _ = thread.join();
        }
    }
}

/// Stops the disk when the thread that holds it panics.
struct CrashGuard {
    stop: Stop,
}

impl Drop for CrashGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.stop.crash();
        }
    }
}
