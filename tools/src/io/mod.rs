//! `qcow io`: reads, writes and questions, one command at a time, as `qemu-io` does them.
//!
//! [`command`] takes a command line apart, [`definition`] says what a command is, [`catalog`] knows and runs them, [`session`] holds the open image and the
//! requests under way, [`read`], [`write`] and [`query`] carry commands out, [`report`] tells the result.

mod catalog;
mod command;
mod definition;
mod open;
mod pattern;
mod query;
mod read;
mod reopen;
mod report;
mod session;
mod transfer;
mod truncate;
mod write;

use std::io::BufRead;
use std::path::PathBuf;

use self::open::OpenArgs;
use self::session::{Flow, Session};
use crate::failure::{FAILED, Failure, Outcome, tell};
use crate::source::Options;
use crate::{objects, output, program};

const COMMAND: &str = "io";

/// Read and write an image by commands, as qemu-io does; 'help' as a command lists them
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run this command; may be given several times. Without it, commands are read from standard input
    #[arg(short, long, value_name = "COMMAND")]
    cmd: Vec<String>,
    /// Format of the image: qcow2, raw or luks; found out if not given
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Open the image for reading only
    #[arg(short, long)]
    read_only: bool,
    /// Write to a temporary image on top of FILE, which stays as it is
    #[arg(short, long)]
    snapshot: bool,
    /// The same as -t none
    #[arg(short, long)]
    nocache: bool,
    /// Write what is read from backing images to the image
    #[arg(short = 'C', long)]
    copy_on_read: bool,
    /// Misalign buffers (no effect: buffers are the engine's own)
    #[arg(short, long)]
    misalign: bool,
    /// The same as -i native
    #[arg(short = 'k', long)]
    native_aio: bool,
    /// Way of doing I/O: io_uring, threads or native (no effect: io_uring serves all)
    #[arg(short = 'i', long, value_name = "MODE")]
    aio: Option<String>,
    /// Cache mode: writethrough (default), writeback, none, directsync or unsafe
    #[arg(short = 't', long, value_name = "MODE")]
    cache: Option<String>,
    /// What discards do: unmap or on (default), ignore or off
    #[arg(short, long, value_name = "MODE")]
    discard: Option<String>,
    /// What to trace (no effect: there are no events)
    #[arg(short = 'T', long, value_name = "PATTERN")]
    trace: Vec<String>,
    /// Read the image even while another program writes it; only with -r
    #[arg(short = 'U', long)]
    force_share: bool,
    /// FILE is an option string, such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,
    /// Definition of a secret: secret,id=ID,file=FILE[,format=raw|base64]. All of FILE is the passphrase, a line feed at its end too
    #[arg(long, value_name = "DEFINITION", value_parser = objects::checked)]
    object: Vec<String>,
    /// The image; the command 'open' opens one later
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs the commands; exit code 1 if any of them failed.
pub fn run(args: &Args) -> Outcome<u8> {
    args.trace.iter().for_each(|pattern| {
        tell(&format!("warning: trace event '{pattern}' does not exist"));
    });
    if args.files.len() > 1 {
        return Err(Failure::usage(COMMAND, "Expecting at most one image file name"));
    }
    if args.image_opts && args.format.is_some() {
        return Err(Failure::new("--image-opts and -f are mutually exclusive"));
    }
    // Before anything is opened: these are wrong without an image, too.
    let open_args = args.open_args()?;
    let mut session = Session::new(args.image_opts);
    if !args.files.is_empty() {
        session.open(&open_args)?;
    }
    let mut all_well = true;
    let mut run = |line: Result<&str, Failure>| {
        let (well, flow) = match line {
            Ok(line) => catalog::run(&mut session, line),
            Err(failure) => {
                failure.report();
                (false, Flow::Continue)
            }
        };
        all_well &= well;
        output::flush();
        flow
    };
    let done = if args.cmd.is_empty() {
        run_stdin(&mut run)
    } else {
        for line in &args.cmd {
            if run(Ok(line)) == Flow::Quit {
                break;
            }
        }
        Ok(())
    };
    // Whatever kept the commands from coming: writes that were carried out must not be lost.
    let closed = session.close();
    done.and(closed)?;
    Ok(if all_well { 0 } else { FAILED })
}

/// Runs the lines of standard input behind a prompt. A line that is no text is run as the failure that it is.
fn run_stdin(run: &mut impl FnMut(Result<&str, Failure>) -> Flow) -> Outcome {
    let mut input = std::io::stdin().lock();
    let mut line = Vec::new();
    for number in 1_u64.. {
        output::write(format_args!("{}> ", program::name()));
        output::flush();
        line.clear();
        let read = input.read_until(b'\n', &mut line);
        let len =
            read.map_err(|e| Failure::new(format!("standard input: {}", qcow::error::reason(&e))))?;
        let text = std::str::from_utf8(&line)
            .map_err(|_| Failure::new(format!("standard input: line {number} is not valid UTF-8")));
        if len == 0 || run(text) == Flow::Quit {
            break;
        }
    }
    Ok(())
}

impl Args {
    fn open_args(&self) -> Outcome<OpenArgs> {
        let file = self.files.first();
        let mut options = Options::default();
        if self.image_opts {
            let text = file.map(|file| file.to_string_lossy());
            options = Options::parse(&text.unwrap_or_default(), Some("file"));
        } else if let Some(format) = &self.format {
            options.set("driver", format);
        }
        Ok(OpenArgs {
            name: file.filter(|_| !self.image_opts).cloned(),
            options,
            read_only: self.read_only,
            snapshot: self.snapshot,
            shared: self.force_share,
            copy_on_read: self.copy_on_read,
            native_aio: open::parse_aio(self.aio.as_deref(), self.native_aio)?,
            cache: open::parse_cache(self.cache.as_deref(), self.nocache)?,
            discard: open::parse_discard(self.discard.as_deref())?,
        })
    }
}
