//! The thread behind one queue, and how the control thread talks to it.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};

use crate::bell::Bell;
use crate::command::{Command, Start};
use crate::device::Device;
use crate::image::DiskImage;
use crate::queue;

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
    /// Starts the thread of queue `index`.
    pub fn spawn(index: u16, image: DiskImage, device: Arc<Device>) -> Result<Self> {
        let bell = Bell::new().context("cannot make an eventfd")?;
        let own = bell.clone();
        let (commands, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("queue {index}"))
            .spawn(move || queue::serve(&image, &device, inbox, own))
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
            // A panic would have ended the process.
            let _ = thread.join();
        }
    }
}
