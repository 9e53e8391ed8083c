//! The serial line: a 16550 whose interrupts go straight to KVM.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Where what the guest says goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialTarget {
    /// This program's standard output; its standard input goes to the guest.
    Tty,
    /// Nowhere.
    Off,
    /// A file, made anew.
    File(PathBuf),
}

impl FromStr for SerialTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "tty" => Ok(Self::Tty),
            None if text == "off" => Ok(Self::Off),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("socket", _)) => Err("a serial line on a socket is not built yet".to_owned()),
            _ => Err(format!("'{text}' is no serial line: say tty, off, or file=PATH")),
        }
    }
}

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
    /// A serial line to `target`.
    pub fn new(target: &SerialTarget) -> Result<Self> {
        let out: Box<dyn Write + Send> = match target {
            SerialTarget::Tty => Box::new(io::stdout()),
            SerialTarget::Off => Box::new(io::sink()),
            SerialTarget::File(path) => Box::new(create(path)?),
        };
        let interrupt = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let uart = Serial::new(Interrupt(Arc::clone(&interrupt)), out);
        Ok(Self { uart: Arc::new(Mutex::new(uart)), interrupt })
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

/// The terminal as it was, restored when this is dropped.
#[derive(Debug)]
pub struct RawTerminal(Termios);

impl RawTerminal {
    /// Hands every key to the guest, if standard input is a terminal.
    pub fn enter() -> Result<Option<Self>> {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(stdin.as_fd()) else { return Ok(None) };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)
            .map_err(|e| anyhow!("cannot change the terminal: {}", e.desc()))?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.0);
    }
}
