//! `vmm`, the monitor: a lean virtual machine on KVM.

use std::process::ExitCode;

use clap::Parser;

mod acpi;
mod args;
mod boot;
mod devices;
mod layout;
mod machine;
mod outcome;
mod ram;
mod vcpu;

use outcome::Outcome;

const EXIT_CANNOT_START: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_CRASHED: u8 = 3;

fn main() -> ExitCode {
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
    if !machine::has_hardware_support() {
        eprintln!(
            "vmm: the processors of this host cannot run guests by themselves: a kernel takes very long to boot here"
        );
    }
    match machine::run(&settings) {
        Ok(Outcome::PoweredOff | Outcome::Reset) => ExitCode::SUCCESS,
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
