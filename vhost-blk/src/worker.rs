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
use crate::sandbox::{Role, Sandbox};
use crate::{io_thread, queue};

/// Why waiting for a worker cannot fail: a panic ends the process.
const ALIVE: &str = "a worker lives until it is let go";

/// A worker, from the control thread's side. Dropping it lets the thread finish and waits for that.
#[derive(Debug)]
pub struct Worker {
    /// `None` once no more will come.
    commands: Option<Sender<Command>>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of queue `index`.
    pub fn spawn(
        index: u16,
        image: DiskImage,
        device: Arc<Device>,
        sandbox: Sandbox,
    ) -> Result<Self> {
        let bell = Bell::new().context("cannot make an eventfd")?;
        let own = bell.clone();
        let (commands, inbox) = channel();
        let serve = move || queue::serve(&image, &device, inbox, &own);
        let thread = io_thread::spawn(
            format!("queue {index}"),
            move || sandbox.confine(Role::Worker),
            serve,
        )?;
        Ok(Self { commands: Some(commands), bell, thread: Some(thread) })
    }

    /// Lets the worker serve a queue.
    pub fn start(&self, start: Start) {
        self.send(Command::Start(Box::new(start)));
    }

    /// Changes how the guest is interrupted.
    pub fn set_call(&self, call: Option<Arc<File>>) {
        self.send(Command::SetCall(call));
    }

    /// Asks the worker to stop serving its queue.
    pub fn stop(&self) -> Stopping {
        let (reply, answer) = channel();
        self.send(Command::Stop(reply));
        Stopping { answer }
    }

    fn send(&self, command: Command) {
        let commands = self.commands.as_ref().expect(ALIVE);
        commands.send(command).expect(ALIVE);
        self.bell.ring();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.commands = None;
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            thread.join().expect(ALIVE);
        }
    }
}

/// A worker that has been asked to stop serving its queue.
#[derive(Debug)]
pub struct Stopping {
    answer: Receiver<u16>,
}

impl Stopping {
    /// Waits until nothing is in flight any more; the index of the next chain in the available ring.
    pub fn wait(self) -> u16 {
        self.answer.recv().expect(ALIVE)
    }
}
