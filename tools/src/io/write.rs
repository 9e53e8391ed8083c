//! Commands that change the image: `write`, `writev`, `aio_write`, `discard`; and those that wait for changes: `flush`,
//! `aio_flush`.

use std::fs::File;
use std::io::Read;
use std::time::Instant;

use qcow::Error;
use qcow::disk::{Buffer, Payload};
use qcow::engine::Format;
use qcow::limits::SECTOR_BYTES;

use super::command::{Arguments, pattern_byte};
use super::definition::Command;
use super::open::OpenImage;
use super::pattern;
use super::report::{self, Style};
use super::session::{Done, Failed, Flow, Session};
use super::transfer::{
    Range, Transfer, failed, open_image, pieces, refuse_vm_state, run_in_background, run_now,
    style, wrong,
};
use crate::failure::tell_plain;
use crate::image::HostImage;
use crate::output::say;

/// Bytes at the start of a raw image by which its format could be mistaken: magic and version.
const MAGIC_LEN: u64 = 8;
const MAGICS: [&[u8]; 4] =
    [b"QFI\xfb\0\0\0\x01", b"QFI\xfb\0\0\0\x02", b"QFI\xfb\0\0\0\x03", b"LUKS\xba\xbe\0\x01"];

/// `write`
pub fn write(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "bcCfnpP:qrs:uz")?;
    if arguments.operands.len() != 2 {
        return Err(command.tell_usage());
    }
    check_flags(&arguments)?;
    refuse_vm_state(&arguments)?;
    let range = Range::parse_write(command, &arguments)?;
    if arguments.has('c') {
        check_whole_sectors("offset", range.at)?;
        check_whole_sectors("count", range.len)?;
    }
    let write = Write::parse(open_image(session)?, &arguments, range)?;
    run_now(session, command.name(), write)
}

/// `writev`
pub fn writev(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "CfqrP:")?;
    let range = Range::parse_vector(command, &arguments)?;
    let write = Write::parse(open_image(session)?, &arguments, range)?;
    run_now(session, command.name(), write)
}

/// `aio_write`: counts as well done once it is under way.
pub fn aio_write(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "CfiP:qruz")?;
    if arguments.has('i') {
        say!("injecting invalid write request");
        return Ok(Flow::Continue);
    }
    if arguments.operands.len() < 2 {
        return Err(command.tell_usage());
    }
    if arguments.has('z') && arguments.operands.len() > 2 {
        return Err(wrong("-z supports only a single length parameter"));
    }
    if arguments.has('u') && !arguments.has('z') {
        return Err(wrong("-u requires -z to be specified"));
    }
    check_registered(&arguments)?;
    let range = Range::parse_vector(command, &arguments)?;
    let write = Write::parse(open_image(session)?, &arguments, range)?;
    run_in_background(session, command.name(), write)
}

/// `discard`
pub fn discard(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "Cq")?;
    let range = Range::parse(command, &arguments)?;
    run_now(session, command.name(), Discard { range, style: style(&arguments) })
}

/// `flush`
pub fn flush(session: &mut Session, command: &Command, _: &[&str]) -> Done {
    let image = open_image(session)?.image.clone();
    let flushed = session.wait(image.flush());
    flushed.map(|()| Flow::Continue).map_err(|e| failed(command.name(), &e))
}

/// `aio_flush`
pub fn aio_flush(session: &mut Session, _: &Command, _: &[&str]) -> Done {
    session.drain();
    Ok(Flow::Continue)
}

fn check_flags(arguments: &Arguments) -> Done<()> {
    if arguments.has('b') && arguments.has('z') {
        return Err(wrong("-b and -z cannot be specified at the same time"));
    }
    if arguments.has('f') && (arguments.has('b') || arguments.has('c')) {
        return Err(wrong("-f and -b or -c cannot be specified at the same time"));
    }
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
    check_registered(arguments)
}

fn check_registered(arguments: &Arguments) -> Done<()> {
    match arguments.has('z') && arguments.has('r') {
        true => Err(wrong("cannot combine zero write with registered I/O buffer")),
        false => Ok(()),
    }
}

fn check_whole_sectors(what: &str, value: u64) -> Done<()> {
    match value.is_multiple_of(SECTOR_BYTES) {
        true => Ok(()),
        false => Err(wrong(format!("{value} is not a sector-aligned value for '{what}'"))),
    }
}

/// A write that is about to begin.
struct Write {
    range: Range,
    content: Content,
    /// Store compressed clusters.
    compressed: bool,
    /// Flush behind it.
    durable: bool,
    /// Keep the start of the image from looking like another format.
    guard_start: bool,
    style: Style,
}

enum Content {
    /// These bytes, over and over.
    Repeated(Vec<u8>),
    Filled(u8),
    Zeroes {
        unmap: bool,
        /// Only where the mapping can express them.
        without_data: bool,
    },
}

impl Write {
    fn parse(open: &OpenImage, arguments: &Arguments, range: Range) -> Done<Self> {
        let byte = arguments.value('P').map(pattern_byte).transpose().map_err(wrong)?;
        let content = if arguments.has('z') {
            Content::Zeroes { unmap: arguments.has('u'), without_data: arguments.has('n') }
        } else if let Some(file) = arguments.value('s') {
            Content::Repeated(read_source(file, range.len)?)
        } else {
            Content::Filled(byte.unwrap_or(pattern::DEFAULT))
        };
        Ok(Self {
            range,
            content,
            compressed: arguments.has('c'),
            durable: arguments.has('f') || open.args.cache.writethrough,
            guard_start: open.guessed_raw,
            style: style(arguments),
        })
    }

    async fn write(&self, name: &str, image: &HostImage, bytes: &Payload) -> Done<()> {
        let told = |e| failed(name, &e);
        if self.guard_start && self.looks_like_image(image, bytes).await.map_err(told)? {
            say!("{name} failed: Operation not permitted");
            return Err(Failed);
        }
        if self.compressed && image.format() != Format::Qcow2 {
            return Err(told(Error::unsupported("only qcow2 images have compressed clusters")));
        }
        if self.compressed && bytes.is_empty() {
            // There is nothing to write, but it may be the wrong place.
            return image.write_compressed(self.range.at, bytes).await.map_err(told);
        }
        for (offset, piece) in pieces(bytes) {
            let at = self.range.at + offset;
            let written = match self.compressed {
                true => image.write_compressed(at, &piece).await,
                false => image.write(at, &piece).await,
            };
            written.map_err(told)?;
        }
        Ok(())
    }

    /// Whether the image would begin like one of another format after this write.
    async fn looks_like_image(&self, image: &HostImage, bytes: &Payload) -> qcow::Result<bool> {
        let at = self.range.at;
        let end = MAGIC_LEN.min(image.virtual_size());
        if at >= end {
            return Ok(false);
        }
        let start = Buffer::zeroed(end as usize).payload();
        image.read(0, &start).await?;
        let overlap = bytes.len().min(end - at);
        start.slice(at, overlap).copy_from_payload(&bytes.slice(0, overlap));
        Ok(MAGICS.contains(&start.to_vec().as_slice()))
    }
}

impl Transfer for Write {
    async fn run(self, name: &'static str, image: HostImage) -> Done<()> {
        let Range { at, len } = self.range;
        // First: nothing needs memory for a range that is refused.
        self.range.check(name, &image)?;
        let bytes = match &self.content {
            Content::Repeated(bytes) => pattern::repeated(len, bytes),
            Content::Filled(byte) => pattern::filled(len, *byte),
            Content::Zeroes { .. } => Payload::zeros(0),
        };
        let started = Instant::now();
        match &self.content {
            Content::Zeroes { unmap, without_data } => {
                if *without_data && self.guard_start && (at | len) % SECTOR_BYTES != 0 {
                    // As QEMU, which writes to raw images in whole sectors unless somebody said that they are raw.
                    return Err(failed(name, &Error::unsupported("no whole sectors")));
                }
                let zeroed = match without_data {
                    true => image.write_zeroes_without_data(at, len, *unmap).await,
                    false => image.write_zeroes(at, len, *unmap).await,
                };
                zeroed.map_err(|e| failed(name, &e))?;
            }
            Content::Repeated(_) | Content::Filled(_) => self.write(name, &image, &bytes).await?,
        }
        if self.durable {
            image.flush().await.map_err(|e| failed(name, &e))?;
        }
        report::transfer("wrote", at, len, started, self.style);
        Ok(())
    }
}

/// A discard that is about to begin.
struct Discard {
    range: Range,
    style: Style,
}

impl Transfer for Discard {
    async fn run(self, name: &'static str, image: HostImage) -> Done<()> {
        let Range { at, len } = self.range;
        let started = Instant::now();
        self.range.check(name, &image)?;
        image.discard(at, len).await.map_err(|e| failed(name, &e))?;
        report::transfer(name, at, len, started, self.style);
        Ok(())
    }
}

/// The first `len` bytes of `file`, or all of it where it is shorter.
fn read_source(file: &str, len: u64) -> Done<Vec<u8>> {
    let told = |reason: &str| {
        tell_plain(&format!("{file}: {reason}"));
        Failed
    };
    let mut bytes = Vec::new();
    // One byte at least, to tell an empty file.
    let read = File::open(file).and_then(|f| f.take(len.max(1)).read_to_end(&mut bytes));
    read.map_err(|e| told(&qcow::error::reason(&e)))?;
    if bytes.is_empty() {
        return Err(told("file is empty"));
    }
    Ok(bytes)
}
