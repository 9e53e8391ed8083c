//! Saying which system call was not expected.
#![expect(unsafe_code, reason = "a signal handler is given what the kernel says by address")]

use std::ffi::{c_int, c_void};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::EXIT_IMAGE_LOST;

/// Where the kernel's description of the signal has the number of the call: behind three numbers, padding and an address.
const CALL_AT: usize = 24;

/// Lets the process end with one line where the kernel refuses a system call.
pub fn install() -> Result<()> {
    let handler = SigHandler::SigAction(end);
    let action = SigAction::new(handler, SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK, SigSet::all());
    // SAFETY: needed because a handler may run at any moment. This one allocates nothing, takes no locks and does not come
    // back: it writes a line from its own stack, and ends the process.
    unsafe { sigaction(Signal::SIGSYS, &action) }.context("cannot catch signals")?;
    Ok(())
}

extern "C" fn end(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: needed because the structure's part for this signal has no name here. The kernel has filled all of it, and it
    // is 128 bytes long.
    let call = unsafe { info.byte_add(CALL_AT).cast::<c_int>().read() };
    let mut line = Line { bytes: [0; 160], len: 0 };
    line.push(b"vhost-blk: ended by the sandbox: system call ");
    line.push_number(call.unsigned_abs());
    line.push(b" was not expected; please report this (--sandbox off does without)\n");
    // Nobody is left to tell where that fails.
    let _ = nix::unistd::write(std::io::stderr(), &line.bytes[..line.len]);
    signal_hook::low_level::exit(EXIT_IMAGE_LOST.into());
}

/// A line that is put together without an allocator.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (to, from) in self.bytes[self.len..].iter_mut().zip(text) {
            *to = *from;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(&[b'0' + (number % 10) as u8]);
    }
}
