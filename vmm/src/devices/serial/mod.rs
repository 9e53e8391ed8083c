//! The serial line: a 16550 whose interrupts go straight to KVM.

mod input;
mod socket;
mod target;
mod terminal;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::listener::Listener;

pub use input::Input;
pub use target::SerialTarget;

use socket::Client;
use terminal::RawTerminal;

/// A 16550 that writes to anything.
type Uart = Serial<Interrupt, NoEvents, Box<dyn Write + Send>>;

/// The serial line, shared by all processors.
#[derive(Clone)]
pub struct SerialLine {
    uart: Arc<Mutex<Uart>>,
    interrupt: Arc<EventFd>,
}

impl std::fmt::Debug for SerialLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SerialLine")
    }
}

impl SerialLine {
    /// A serial line to `target`, and what comes from there.
    pub fn open(target: &SerialTarget) -> Result<(Self, Input)> {
        let (out, input): (Box<dyn Write + Send>, _) = match target {
            SerialTarget::Tty => (Box::new(io::stdout()), Input::Terminal),
            SerialTarget::Off => (Box::new(io::sink()), Input::Nothing),
            SerialTarget::File(path) => (Box::new(create(path)?), Input::Nothing),
            SerialTarget::Socket(path) => {
                let listener = Listener::bind(path).context("cannot make the serial line")?;
                let client = Client::default();
                (Box::new(client.clone()), Input::Socket(listener, client))
            }
        };
        let interrupt = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let uart = Serial::new(Interrupt(Arc::clone(&interrupt)), out);
        Ok((Self { uart: Arc::new(Mutex::new(uart)), interrupt }, input))
    }

    /// What is signalled when it interrupts.
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// The guest reads a register.
    pub fn read(&self, register: u8) -> u8 {
        self.lock().read(register)
    }

    /// The guest writes a register.
    pub fn write(&self, register: u8, value: u8) {
        // What cannot be written is lost, as on a line that nobody listens to; the guest must not stop for it.
        let _ = self.lock().write(register, value);
    }

    /// Gives the guest what comes from `input`, until that ends.
    pub fn feed(&self, mut input: impl Read) {
        let mut bytes = [0; 64];
        while let Ok(len @ 1..) = input.read(&mut bytes) {
            let mut rest = &bytes[..len];
            while !rest.is_empty() {
                match self.lock().enqueue_raw_bytes(rest) {
                    Ok(taken) if taken > 0 => rest = &rest[taken..],
                    // Its queue is full, and the guest does not read: as on a real line, the rest is lost.
                    _ => rest = &[],
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn create(path: &PathBuf) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).open(path);
    file.with_context(|| path.display().to_string())
}

struct Interrupt(Arc<EventFd>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}
