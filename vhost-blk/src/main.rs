//! `vhost-blk`: serves disk images to virtual machines as vhost-user-blk devices.
//!
//! A [`daemon`] serves [`disk`]s. Each disk has a [`control`] thread, which accepts a frontend on its [`socket`], talks to
//! it in a [`connection`] by the [`protocol`], and keeps its [`ring_set`]. Behind that is a [`backend`], which stays when
//! frontends come and go: one [`worker`] thread per ring, which serves a [`queue`]: takes [`chain`]s from the [`virtqueue`],
//! parses each into a [`request`], and [`execute`]s it on the image. A record of what is [`inflight`] lets the next process
//! finish what this one leaves when it is killed. After an unclean shutdown one thread more gives leaked clusters back:
//! [`recovery`].

use std::process::ExitCode;

use clap::Parser;

mod args;
mod backend;
mod bell;
mod chain;
mod command;
mod config_file;
mod config_space;
mod connection;
mod control;
mod daemon;
mod device;
mod disk;
mod execute;
mod image;
mod inflight;
mod inherited;
mod io_thread;
mod log;
mod memory;
mod poller;
mod protocol;
mod queue;
mod recovery;
mod request;
mod ring_set;
mod ring_settings;
mod sandbox;
mod settings;
mod socket;
mod stop;
mod virtqueue;
mod worker;

const EXIT_CANNOT_START: u8 = 1;
const EXIT_USAGE: u8 = 2;
/// An image was lost while it was served.
const EXIT_IMAGE_LOST: u8 = 3;

/// In the words of QEMU's conventions for vhost-user backend programs.
const CAPABILITIES: &str = r#"{"type": "block", "features": ["read-only", "blk-file"]}"#;

fn main() -> ExitCode {
    end_on_panic();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return answer(&error),
    };
    if let Err(what) = args.check() {
        eprintln!("vhost-blk: {what}");
        return ExitCode::from(EXIT_USAGE);
    }
    if args.wants_capabilities() {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    let disks = args.disks();
    log::start(args.log_format(), args.log_level());
    disks.and_then(|disks| daemon::run(disks, args.sandbox())).unwrap_or_else(|error| {
        eprintln!("vhost-blk: {error:#}");
        ExitCode::from(EXIT_CANNOT_START)
    })
}

/// Gives the help or version that was asked for, or says in one line what is wrong with the arguments.
fn answer(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let what: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    eprintln!("vhost-blk: {} (see --help)", what.join(" ").trim_start_matches("error: "));
    ExitCode::from(EXIT_USAGE)
}

/// A broken invariant ends the process where it is found. Unwinding would give back what the thread had in hand while the
/// kernel may still be writing to it, and other threads would build on that; ended at once, the images are as after a
/// crash.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        report(what);
        std::process::exit(EXIT_IMAGE_LOST.into());
    }));
}
