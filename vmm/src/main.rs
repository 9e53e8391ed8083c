//! `vmm`, the monitor: a lean virtual machine on KVM.

use std::process::ExitCode;

use clap::Parser;

mod acpi;
mod api;
mod args;
mod boot;
mod devices;
mod disks;
mod interrupts;
mod kvm;
mod layout;
mod listener;
mod machine;
mod outcome;
mod pci;
mod ram;
mod report;
mod sandbox;
mod sizing;
mod vcpu;
mod vhost_user;
mod virtio;

use outcome::Outcome;
use report::Report;

const EXIT_CANNOT_START: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_CRASHED: u8 = 3;

fn main() -> ExitCode {
    let report = Report::begin();
    let words: Vec<String> = std::env::args().collect();
    if words.get(1).is_some_and(|word| word == boot::disk::SUBCOMMAND) {
        return boot::disk::run_reader(&words[2..]);
    }
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return answer(&error),
    };
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(what) => {
            eprintln!("vmm: {what}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&settings, report) {
        Ok(Outcome::PoweredOff | Outcome::Reset | Outcome::Unplugged) => ExitCode::SUCCESS,
        Ok(Outcome::Crashed(why)) => {
            eprintln!("vmm: the guest crashed: {why}");
            ExitCode::from(EXIT_CRASHED)
        }
        Err(error) => {
            eprintln!("vmm: {error:#}");
            ExitCode::from(EXIT_CANNOT_START)
        }
    }
}

/// Runs the machine, and ends the daemons of its disks with it.
fn run(settings: &machine::Settings, report: Report) -> anyhow::Result<Outcome> {
    sandbox::confine_process()?;
    // First of all, while there is one thread.
    let keeper = match settings.disks.as_slice() {
        [] => None,
        disks => Some(disks::Keeper::start(disks)?),
    };
    machine::run(settings, keeper.as_ref(), report)
}

/// Gives the help or version that was asked for, or says in one line what is wrong with the arguments.
fn answer(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let what: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    eprintln!("vmm: {} (see --help)", what.join(" ").trim_start_matches("error: "));
    ExitCode::from(EXIT_USAGE)
}
