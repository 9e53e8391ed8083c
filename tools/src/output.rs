//! Standard output: buffered, and quiet about readers that have gone away.
//!
//! A command whose reader closes the pipe goes on with its work, as `qemu-img` does: a conversion must not end half-way
//! because its progress is no longer read. Any other failure to write is remembered, and fails the program at its end.

use std::fmt;
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::sync::Mutex;

use serde::Serialize;

use crate::json_text;

/// Bytes that are collected before they are written, unless stdout is a terminal.
const BUFFER_LEN: usize = 32 << 10;

static STDOUT: Mutex<Sink> = Mutex::new(Sink { pending: Vec::new(), error: None });

struct Sink {
    pending: Vec<u8>,
    /// The first failure, after which nothing more is written.
    error: Option<io::Error>,
}

impl Sink {
    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if self.error.is_none() {
            let write =
                |mut out: StdoutLock<'_>| out.write_all(&pending).and_then(|()| out.flush());
            self.error = write(io::stdout().lock()).err();
        }
    }
}

/// Writes a line to stdout.
macro_rules! say {
    ($($arg:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($arg)*)))
    };
}
pub(crate) use say;

/// Writes text to stdout as it is.
pub fn write(text: fmt::Arguments<'_>) {
    let mut sink = qcow::sync::lock(&STDOUT);
    // Writing to memory does not fail.
    let _ = sink.pending.write_fmt(text);
    if sink.pending.len() >= BUFFER_LEN || io::stdout().is_terminal() {
        sink.flush();
    }
}

/// Hands everything written so far to the reader.
pub fn flush() {
    qcow::sync::lock(&STDOUT).flush();
}

/// Writes `value` as JSON, as `qemu-img` writes it.
pub fn json(value: &impl Serialize) {
    // Plain values serialize without fail.
    let value = serde_json::to_value(value).unwrap_or_default();
    say!("{}", json_text::pretty(&value));
}

/// Flushes, and tells what went wrong with stdout since the start; a reader that went away is not wrong.
pub fn finish() -> io::Result<()> {
    let mut sink = qcow::sync::lock(&STDOUT);
    sink.flush();
    match sink.error.take() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
