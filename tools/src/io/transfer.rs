//! Commands that read, write, zero, discard and flush.

use std::time::Instant;

use qcow::disk::{Buffer, Payload};
use qcow::limits::REQUEST_BYTES_MAX;
use qcow::{Error, ErrorKind};

use super::command::{Arguments, number, pattern_byte, request_len};
use super::definition::Command;
use super::open::OpenImage;
use super::pattern;
use super::report::{self, Style};
use super::session::{Done, Failed, Flow, Session};
use crate::failure::{tell, tell_plain};
use crate::image::HostImage;
use crate::output::say;
use crate::program::{self, Persona};

/// Bytes at the start of a raw image by which its format could be mistaken: magic and version.
const MAGIC_LEN: u64 = 8;
const QCOW_MAGICS: [&[u8]; 3] = [b"QFI\xfb\0\0\0\x01", b"QFI\xfb\0\0\0\x02", b"QFI\xfb\0\0\0\x03"];

/// What is wrong with a command's arguments; said on stdout.
fn wrong(message: impl std::fmt::Display) -> Failed {
    say!("{message}");
    Failed
}

/// `read`
pub fn read(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "abCl:pP:qrs:v")?;
    refuse_vm_state(&arguments)?;
    let [offset, len] = arguments.operands.as_slice() else { return Err(command.tell_usage()) };
    let (at, len) = (number(offset).map_err(wrong)?, request_len(len).map_err(wrong)?);
    let read = Read::parse(command, &arguments, at, len)?;
    let open = session.current().ok_or(Failed)?;
    let work = read.run(command.name(), open.image.clone());
    session.wait(work).map(|()| Flow::Continue)
}

/// `readv`
pub fn readv(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "CP:qrv")?;
    let (at, len) = vector(command, &arguments)?;
    let read = Read::parse(command, &arguments, at, len)?;
    let open = session.current().ok_or(Failed)?;
    let work = read.run(command.name(), open.image.clone());
    session.wait(work).map(|()| Flow::Continue)
}

/// `aio_read`: counts as well done once it is under way.
pub fn aio_read(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "CiP:qrv")?;
    if arguments.has('i') {
        return Ok(Flow::Continue);
    }
    let (at, len) = vector(command, &arguments)?;
    let read = Read::parse(command, &arguments, at, len)?;
    let image = session.current().ok_or(Failed)?.image.clone();
    let name = command.name();
    session.spawn(async move {
        // A failure has been told; it does not fail the run.
        let _ = read.run(name, image).await;
    });
    Ok(Flow::Continue)
}

/// `write`
pub fn write(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "bcCfnpP:qrs:uz")?;
    refuse_vm_state(&arguments)?;
    if arguments.has('c') {
        tell("write -c (compressed) is not supported yet");
        return Err(Failed);
    }
    let [offset, len] = arguments.operands.as_slice() else { return Err(command.tell_usage()) };
    check_write_flags(&arguments)?;
    let (at, len) = (number(offset).map_err(wrong)?, request_len(len).map_err(wrong)?);
    let open = session.current().ok_or(Failed)?;
    let write = Write::parse(open, &arguments, at, len)?;
    let work = write.run(command.name(), open.image.clone());
    session.wait(work).map(|()| Flow::Continue)
}

/// `writev`
pub fn writev(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "CfqrP:")?;
    let (at, len) = vector(command, &arguments)?;
    let open = session.current().ok_or(Failed)?;
    let write = Write::parse(open, &arguments, at, len)?;
    let work = write.run(command.name(), open.image.clone());
    session.wait(work).map(|()| Flow::Continue)
}

/// `aio_write`: counts as well done once it is under way.
pub fn aio_write(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "CfiP:qruz")?;
    if arguments.has('i') {
        return Ok(Flow::Continue);
    }
    if arguments.has('z') && arguments.operands.len() > 2 {
        return Err(wrong("-z supports only a single length parameter"));
    }
    check_write_flags(&arguments)?;
    let (at, len) = vector(command, &arguments)?;
    let open = session.current().ok_or(Failed)?;
    let write = Write::parse(open, &arguments, at, len)?;
    let (name, image) = (command.name(), open.image.clone());
    session.spawn(async move {
        // A failure has been told; it does not fail the run.
        let _ = write.run(name, image).await;
    });
    Ok(Flow::Continue)
}

/// `aio_flush`
pub fn aio_flush(session: &mut Session, _: &Command, _: &[&str]) -> Done {
    session.drain();
    Ok(Flow::Continue)
}

/// `flush`
pub fn flush(session: &mut Session, command: &Command, _: &[&str]) -> Done {
    let image = session.current().ok_or(Failed)?.image.clone();
    let flushed = session.wait(image.flush());
    flushed.map(|()| Flow::Continue).map_err(|e| failed(command.name(), &e))
}

/// `discard`
pub fn discard(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "Cq")?;
    let [offset, len] = arguments.operands.as_slice() else { return Err(command.tell_usage()) };
    let (at, len) = (number(offset).map_err(wrong)?, request_len(len).map_err(wrong)?);
    let image = session.current().ok_or(Failed)?.image.clone();
    let started = Instant::now();
    check_range(command.name(), &image, at, len)?;
    session.wait(image.discard(at, len)).map_err(|e| failed(command.name(), &e))?;
    report::transfer("discard", at, len, started, style(&arguments));
    Ok(Flow::Continue)
}

/// Offset and total length of a request with several lengths.
fn vector(command: &Command, arguments: &Arguments) -> Done<(u64, u64)> {
    let Some((offset, lens)) = arguments.operands.split_first().filter(|(_, l)| !l.is_empty())
    else {
        return Err(command.tell_usage());
    };
    let at = number(offset).map_err(wrong)?;
    let mut total = 0_u64;
    for len in lens {
        total += request_len(len).map_err(wrong)?;
        if total > super::command::REQUEST_LEN_MAX {
            return Err(wrong(format!("Argument '{len}' would exceed the largest request")));
        }
    }
    Ok((at, total))
}

fn style(arguments: &Arguments) -> Style {
    Style { quiet: arguments.has('q'), machine: arguments.has('C') }
}

fn refuse_vm_state(arguments: &Arguments) -> Done<()> {
    if arguments.has('b') {
        tell("-b (VM state) is not supported yet");
        return Err(Failed);
    }
    Ok(())
}

fn check_write_flags(arguments: &Arguments) -> Done<()> {
    let sources = ['z', 'P', 's'].into_iter().filter(|flag| arguments.has(*flag)).count();
    if arguments.has('n') && !arguments.has('z') {
        return Err(wrong("-n requires -z to be specified"));
    }
    if arguments.has('u') && !arguments.has('z') {
        return Err(wrong("-u requires -z to be specified"));
    }
    if sources > 1 {
        return Err(wrong("Only one of -z, -P, and -s can be specified at the same time"));
    }
    Ok(())
}

fn check_range(name: &str, image: &HostImage, at: u64, len: u64) -> Done<()> {
    if at.checked_add(len).is_none_or(|end| end > image.virtual_size()) {
        say!("{name} failed: Input/output error");
        return Err(Failed);
    }
    Ok(())
}

/// Tells that `name` has failed: as the host's error, and with what the engine knows beyond that.
fn failed(name: &str, error: &Error) -> Failed {
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

/// A read that is about to begin.
struct Read {
    at: u64,
    len: u64,
    verify: Option<Verify>,
    dump: bool,
    style: Style,
}

/// Looks for `byte` in `len` bytes from `offset` of what was read.
struct Verify {
    byte: u8,
    offset: u64,
    len: u64,
}

impl Read {
    fn parse(command: &Command, arguments: &Arguments, at: u64, len: u64) -> Done<Self> {
        let parse = |flag| arguments.value(flag).map(number).transpose().map_err(wrong);
        let (skip, verify_len) = (parse('s')?, parse('l')?);
        let Some(byte) = arguments.value('P') else {
            if skip.is_some() || verify_len.is_some() {
                return Err(command.tell_usage());
            }
            return Ok(Self::new(arguments, at, len, None));
        };
        let byte = pattern_byte(byte).map_err(wrong)?;
        let offset = skip.unwrap_or(0);
        let inside = |l: &u64| offset.checked_add(*l).is_some_and(|end| end <= len);
        let verify_len = match verify_len {
            Some(verify_len) => Some(verify_len),
            None => len.checked_sub(offset),
        };
        let Some(verify_len) = verify_len.filter(inside) else {
            return Err(wrong("pattern verification range exceeds end of read data"));
        };
        Ok(Self::new(arguments, at, len, Some(Verify { byte, offset, len: verify_len })))
    }

    fn new(arguments: &Arguments, at: u64, len: u64, verify: Option<Verify>) -> Self {
        Self { at, len, verify, dump: arguments.has('v'), style: style(arguments) }
    }

    async fn run(self, name: &str, image: HostImage) -> Done<()> {
        check_range(name, &image, self.at, self.len)?;
        let buffer = Buffer::zeroed(self.len as usize).payload();
        let started = Instant::now();
        for (offset, piece) in pieces(&buffer) {
            image.read(self.at + offset, &piece).await.map_err(|e| failed(name, &e))?;
        }
        let verified = self.verify(&buffer);
        if self.style.quiet {
            return verified;
        }
        if self.dump {
            report::dump(&buffer.to_vec(), self.at);
        }
        report::transfer("read", self.at, self.len, started, self.style);
        verified
    }

    fn verify(&self, buffer: &Payload) -> Done<()> {
        let Some(Verify { byte, offset, len }) = self.verify else { return Ok(()) };
        if pattern::is_filled(buffer, offset, len, byte) {
            return Ok(());
        }
        let at = self.at + offset;
        Err(wrong(format!("Pattern verification failed at offset {at}, {len} bytes")))
    }
}

/// A write that is about to begin.
struct Write {
    at: u64,
    len: u64,
    content: Content,
    /// Flush behind it.
    durable: bool,
    /// Keep the start of the image from looking like another format.
    guard_start: bool,
    style: Style,
}

enum Content {
    Bytes(Payload),
    Zeroes { unmap: bool },
}

impl Write {
    fn parse(open: &OpenImage, arguments: &Arguments, at: u64, len: u64) -> Done<Self> {
        let byte = arguments.value('P').map(pattern_byte).transpose().map_err(wrong)?;
        // No image needs its whole range in memory when all of it is refused anyway.
        check_range(if arguments.has('i') { "aio_write" } else { "write" }, &open.image, at, len)?;
        let content = if arguments.has('z') {
            Content::Zeroes { unmap: arguments.has('u') }
        } else if let Some(file) = arguments.value('s') {
            Content::Bytes(read_source(file, len)?)
        } else {
            Content::Bytes(pattern::filled(len, byte.unwrap_or(pattern::DEFAULT)))
        };
        Ok(Self {
            at,
            len,
            content,
            durable: arguments.has('f') || open.cache.writethrough,
            guard_start: open.guessed_raw,
            style: style(arguments),
        })
    }

    async fn run(self, name: &str, image: HostImage) -> Done<()> {
        let started = Instant::now();
        let told = |e: Error| failed(name, &e);
        match &self.content {
            Content::Zeroes { unmap } => {
                image.write_zeroes(self.at, self.len, *unmap).await.map_err(told)?;
            }
            Content::Bytes(bytes) => {
                if self.guard_start && self.looks_like_qcow(&image, bytes).await.map_err(told)? {
                    say!("{name} failed: Operation not permitted");
                    return Err(Failed);
                }
                for (offset, piece) in pieces(bytes) {
                    image.write(self.at + offset, &piece).await.map_err(told)?;
                }
            }
        }
        if self.durable {
            image.flush().await.map_err(told)?;
        }
        report::transfer("wrote", self.at, self.len, started, self.style);
        Ok(())
    }

    /// Whether the image would begin like a qcow2 image after this write.
    async fn looks_like_qcow(&self, image: &HostImage, bytes: &Payload) -> qcow::Result<bool> {
        let end = MAGIC_LEN.min(image.virtual_size());
        if self.at >= end {
            return Ok(false);
        }
        let start = Buffer::zeroed(end as usize).payload();
        image.read(0, &start).await?;
        let overlap = bytes.len().min(end - self.at);
        start.slice(self.at, overlap).copy_from_payload(&bytes.slice(0, overlap));
        Ok(QCOW_MAGICS.contains(&start.to_vec().as_slice()))
    }
}

/// The content of `file`, repeated or cut to `len` bytes.
fn read_source(file: &str, len: u64) -> Done<Payload> {
    let told = |reason: &str| {
        tell_plain(&format!("{file}: {reason}"));
        Failed
    };
    let bytes = std::fs::read(file).map_err(|e| told(&qcow::error::reason(&e)))?;
    if bytes.is_empty() {
        return Err(told("file is empty"));
    }
    Ok(pattern::repeated(len, &bytes))
}

/// `payload` in pieces that the engine takes, each with its offset.
fn pieces(payload: &Payload) -> impl Iterator<Item = (u64, Payload)> + '_ {
    let count = payload.len().div_ceil(REQUEST_BYTES_MAX);
    (0..count).map(|number| {
        let offset = number * REQUEST_BYTES_MAX;
        (offset, payload.slice(offset, REQUEST_BYTES_MAX.min(payload.len() - offset)))
    })
}
