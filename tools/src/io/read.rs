//! Commands that read: `read`, `readv`, `aio_read`.

use std::time::Instant;

use qcow::disk::{Buffer, Payload};

use super::command::{Arguments, number, pattern_byte};
use super::definition::Command;
use super::pattern;
use super::report::{self, Style};
use super::session::{Done, Flow, Session};
use super::transfer::{
    Range, Transfer, failed, open_image, pieces, refuse_vm_state, run_in_background, run_now,
    style, wrong,
};
use crate::image::HostImage;
use crate::output::say;

/// `read`
pub fn read(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "abCl:pP:qrs:v")?;
    refuse_vm_state(&arguments)?;
    let range = Range::parse(command, &arguments)?;
    let read = Read::parse(session, command, &arguments, range)?;
    run_now(session, command.name(), read)
}

/// `readv`
pub fn readv(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "CP:qrv")?;
    let range = Range::parse_vector(command, &arguments)?;
    let read = Read::parse(session, command, &arguments, range)?;
    run_now(session, command.name(), read)
}

/// `aio_read`: counts as well done once it is under way.
pub fn aio_read(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "CiP:qrv")?;
    if arguments.has('i') {
        say!("injecting invalid read request");
        return Ok(Flow::Continue);
    }
    let range = Range::parse_vector(command, &arguments)?;
    // The name that QEMU gives it when it fails.
    let read = Read::parse(session, command, &arguments, range)?;
    run_in_background(session, "readv", read)
}

/// A read that is about to begin.
struct Read {
    range: Range,
    verify: Option<Verify>,
    dump: bool,
    style: Style,
    /// Write what backing images have to the top image first.
    copy: bool,
}

/// Looks for `byte` in `len` bytes from `offset` of what was read.
struct Verify {
    byte: u8,
    offset: u64,
    len: u64,
}

impl Read {
    fn parse(
        session: &Session,
        command: &Command,
        arguments: &Arguments,
        range: Range,
    ) -> Done<Self> {
        let copy = open_image(session)?.args.copy_on_read;
        let verify = Verify::parse(command, arguments, range.len)?;
        let (dump, style) = (arguments.has('v'), style(arguments));
        Ok(Self { range, verify, dump, style, copy })
    }
}

impl Transfer for Read {
    async fn run(self, name: &'static str, image: HostImage) -> Done<()> {
        let Range { at, len } = self.range;
        self.range.check(name, &image)?;
        let buffer = Buffer::zeroed(len as usize).payload();
        let started = Instant::now();
        if self.copy && image.is_writable() {
            image.copy_up(at, len).await.map_err(|e| failed(name, &e))?;
        }
        for (offset, piece) in pieces(&buffer) {
            image.read(at + offset, &piece).await.map_err(|e| failed(name, &e))?;
        }
        let verified = self.verify.map_or(Ok(()), |verify| verify.run(&buffer, at));
        if self.style.quiet {
            return verified;
        }
        if self.dump {
            report::dump(&buffer.to_vec(), at);
        }
        report::transfer("read", at, len, started, self.style);
        verified
    }
}

impl Verify {
    /// What `-P`, `-s` and `-l` ask for, of `read_len` bytes.
    fn parse(command: &Command, arguments: &Arguments, read_len: u64) -> Done<Option<Self>> {
        let parse = |flag| arguments.value(flag).map(number).transpose().map_err(wrong);
        let (offset, len) = (parse('s')?, parse('l')?);
        let Some(byte) = arguments.value('P') else {
            return match offset.or(len) {
                Some(_) => Err(command.tell_usage()),
                None => Ok(None),
            };
        };
        let byte = pattern_byte(byte).map_err(wrong)?;
        let offset = offset.unwrap_or(0);
        let inside = |len: &u64| offset.checked_add(*len).is_some_and(|end| end <= read_len);
        let len = len.or_else(|| read_len.checked_sub(offset)).filter(inside);
        let len =
            len.ok_or_else(|| wrong("pattern verification range exceeds end of read data"))?;
        Ok(Some(Self { byte, offset, len }))
    }

    /// Looks at `buffer`, which was read at `at`.
    fn run(self, buffer: &Payload, at: u64) -> Done<()> {
        let Self { byte, offset, len } = self;
        if pattern::is_filled(buffer, offset, len, byte) {
            return Ok(());
        }
        let at = at + offset;
        Err(wrong(format!("Pattern verification failed at offset {at}, {len} bytes")))
    }
}
