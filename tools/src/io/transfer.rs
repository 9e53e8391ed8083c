//! What reads and writes have in common: their arguments, running them now or in the background, and their failures.

use std::future::Future;

use qcow::disk::Payload;
use qcow::limits::REQUEST_BYTES_MAX;
use qcow::{Error, ErrorKind};

use super::command::{Arguments, REQUEST_LEN_MAX, number, request_len};
use super::definition::Command;
use super::open::OpenImage;
use super::report::Style;
use super::session::{Done, Failed, Flow, Session};
use crate::failure::tell;
use crate::image::HostImage;
use crate::output::say;
use crate::program::{self, Persona};

/// A read or write whose arguments make sense.
pub trait Transfer: 'static {
    /// Carries it out and tells the result, in which `name` is who fails.
    fn run(self, name: &'static str, image: HostImage) -> impl Future<Output = Done<()>>;
}

/// The bytes that a transfer is about.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub at: u64,
    pub len: u64,
}

impl Range {
    /// From the operands `offset length`.
    pub fn parse(command: &Command, arguments: &Arguments) -> Done<Self> {
        let [offset, len] = arguments.operands.as_slice() else { return Err(command.tell_usage()) };
        Ok(Self { at: number(offset).map_err(wrong)?, len: request_len(len).map_err(wrong)? })
    }

    /// From the operands `offset length` of a write: with `-n`, which is for zeros, the length has no bound.
    pub fn parse_write(command: &Command, arguments: &Arguments) -> Done<Self> {
        let [offset, len] = arguments.operands.as_slice() else { return Err(command.tell_usage()) };
        let (at, bytes) = (number(offset).map_err(wrong)?, number(len).map_err(wrong)?);
        if bytes > REQUEST_LEN_MAX && !arguments.has('n') {
            let message = format!("length cannot exceed {REQUEST_LEN_MAX} without -n, given {len}");
            return Err(wrong(message));
        }
        Ok(Self { at, len: bytes })
    }

    /// From the operands `offset length [length..]`.
    pub fn parse_vector(command: &Command, arguments: &Arguments) -> Done<Self> {
        let operands = arguments.operands.split_first();
        let Some((offset, lens)) = operands.filter(|(_, lens)| !lens.is_empty()) else {
            return Err(command.tell_usage());
        };
        let at = number(offset).map_err(wrong)?;
        let mut total = 0;
        for text in lens {
            let len = number(text).map_err(wrong)?;
            if len > REQUEST_LEN_MAX {
                let message = format!("Argument '{text}' exceeds maximum size {REQUEST_LEN_MAX}");
                return Err(wrong(message));
            }
            total += len;
            if total > REQUEST_LEN_MAX {
                let message = "The total number of bytes exceed the maximum size";
                return Err(wrong(format!("{message} {REQUEST_LEN_MAX}")));
            }
        }
        Ok(Self { at, len: total })
    }

    /// Tells that `name` has failed if the range does not lie inside the disk.
    pub fn check(self, name: &str, image: &HostImage) -> Done<()> {
        if self.at.checked_add(self.len).is_none_or(|end| end > image.virtual_size()) {
            say!("{name} failed: Input/output error");
            return Err(Failed);
        }
        Ok(())
    }
}

/// The open image, for a command that is only run if there is one.
pub fn open_image(session: &Session) -> Done<&OpenImage> {
    session.current().ok_or(Failed)
}

/// Runs `transfer` to its end.
pub fn run_now(session: &mut Session, name: &'static str, transfer: impl Transfer) -> Done {
    let image = open_image(session)?.image.clone();
    session.wait(transfer.run(name, image)).map(|()| Flow::Continue)
}

/// Starts `transfer`, which counts as well done from then on.
pub fn run_in_background(
    session: &mut Session,
    name: &'static str,
    transfer: impl Transfer,
) -> Done {
    let image = open_image(session)?.image.clone();
    session.spawn(async move {
        // A failure has been told; it does not fail the run.
        let _ = transfer.run(name, image).await;
    });
    Ok(Flow::Continue)
}

/// How to tell of the transfer.
pub fn style(arguments: &Arguments) -> Style {
    Style { quiet: arguments.has('q'), machine: arguments.has('C') }
}

/// Refuses `-b`.
pub fn refuse_vm_state(arguments: &Arguments) -> Done<()> {
    if arguments.has('b') {
        tell("-b (VM state) is not supported yet");
        return Err(Failed);
    }
    Ok(())
}

/// Says on stdout what is wrong with a command's arguments.
pub fn wrong(message: impl std::fmt::Display) -> Failed {
    say!("{message}");
    Failed
}

/// Tells that `name` has failed: as the host's error, and with what the engine knows beyond that.
pub fn failed(name: &str, error: &Error) -> Failed {
    let errno = error.errno().unwrap_or(match error.kind() {
        ErrorKind::NoSpace => nix::libc::ENOSPC,
        ErrorKind::ReadOnly | ErrorKind::Denied => nix::libc::EPERM,
        ErrorKind::Unsupported => nix::libc::ENOTSUP,
        ErrorKind::Invalid | ErrorKind::Limit => nix::libc::EINVAL,
        _ => nix::libc::EIO,
    });
    let reason = qcow::error::reason(&std::io::Error::from_raw_os_error(errno));
    say!("{name} failed: {reason}");
    if program::persona() == Persona::Qcow {
        tell(&error.to_string());
    }
    Failed
}

/// `payload` in pieces that the engine takes, each with its offset.
pub fn pieces(payload: &Payload) -> impl Iterator<Item = (u64, Payload)> + '_ {
    let count = payload.len().div_ceil(REQUEST_BYTES_MAX);
    (0..count).map(|number| {
        let offset = number * REQUEST_BYTES_MAX;
        (offset, payload.slice(offset, REQUEST_BYTES_MAX.min(payload.len() - offset)))
    })
}
