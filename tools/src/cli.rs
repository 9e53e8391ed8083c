//! The command line: which subcommand runs, and what is said about wrong usage, in the words of `getopt_long`.

use std::ffi::OsString;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::failure::{Failure, Outcome};
use crate::layers::{self, Shape};
use crate::program::{self, Persona};
use crate::{
    bitmap, check, compare, convert, create, info, io, manual, map, output, resize, snapshot,
    unbuilt,
};

/// Disk image tool for qcow2 and raw images: a drop-in for qemu-img, and for qemu-io as its command 'io'.
#[derive(Debug, Parser)]
#[command(
    name = "qcow",
    infer_long_args = true,
    args_override_self = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The whole program under the name `qemu-io`.
#[derive(Debug, Parser)]
#[command(name = "qemu-io", infer_long_args = true, args_override_self = true)]
struct IoCli {
    #[command(flatten)]
    args: io::Args,
}

/// A subcommand with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    Bitmap(bitmap::Args),
    Check(check::Args),
    Compare(compare::Args),
    Completions(manual::CompletionsArgs),
    Convert(convert::Args),
    Create(create::Args),
    Info(info::Args),
    Io(io::Args),
    /// List the layers of a disk - backing images and internal snapshots - with what each takes, alone and shared
    Ls(layers::Args),
    Man(manual::ManArgs),
    Map(map::Args),
    Resize(resize::Args),
    Snapshot(snapshot::Args),
    /// Draw the layers of a disk - backing images and internal snapshots - with what each takes, alone and shared
    Tree(layers::Args),
    /// The command line asked for help or the version, and got it.
    #[command(skip)]
    Answered,
}

impl Command {
    /// Runs the subcommand; its exit code.
    pub fn run(&self) -> Outcome<u8> {
        match self {
            Self::Bitmap(args) => bitmap::run(args).map(|()| 0),
            Self::Check(args) => check::run(args),
            Self::Compare(args) => compare::run(args),
            Self::Completions(args) => {
                manual::print_completions(args);
                Ok(0)
            }
            Self::Convert(args) => convert::run(args).map(|()| 0),
            Self::Create(args) => create::run(args).map(|()| 0),
            Self::Info(args) => info::run(args).map(|()| 0),
            Self::Io(args) => io::run(args),
            Self::Ls(args) => layers::run(args, Shape::List).map(|()| 0),
            Self::Man(args) => manual::write_pages(args).map(|()| 0),
            Self::Map(args) => map::run(args).map(|()| 0),
            Self::Resize(args) => resize::run(args).map(|()| 0),
            Self::Snapshot(args) => snapshot::run(args).map(|()| 0),
            Self::Tree(args) => layers::run(args, Shape::Tree).map(|()| 0),
            Self::Answered => Ok(0),
        }
    }
}

/// The subcommand that `arguments`, the program's name first, ask for.
pub fn parse(arguments: &[OsString]) -> Outcome<Command> {
    if program::persona() == Persona::QemuIo {
        let definition = define(IoCli::command());
        let parsed = parse_with::<IoCli>(definition, arguments);
        return answer(parsed.map(|cli| Command::Io(cli.args)), arguments, "");
    }
    let command = arguments.get(1).map(|first| first.to_string_lossy()).unwrap_or_default();
    unbuilt::refuse_command(&command)?;
    let arguments = match &*command {
        "resize" => &resize::mark_decrease(arguments),
        _ => arguments,
    };
    let parsed = parse_with::<Cli>(definition(), arguments);
    answer(parsed.map(|cli| cli.command), arguments, &command)
}

/// The whole command line of `qcow`.
pub fn definition() -> clap::Command {
    define(Cli::command())
}

fn define(definition: clap::Command) -> clap::Command {
    // Made once in the life of the program.
    let version: &'static str = program::version().leak();
    definition.name(program::name()).bin_name(program::name()).version(version)
}

fn parse_with<T: FromArgMatches>(
    mut definition: clap::Command,
    arguments: &[OsString],
) -> Result<T, clap::Error> {
    let matches = definition.try_get_matches_from_mut(arguments)?;
    T::from_arg_matches(&matches)
}

/// Gives the help or version that was asked for, or tells what is wrong with the arguments of `command`.
fn answer(
    parsed: Result<Command, clap::Error>,
    arguments: &[OsString],
    command: &str,
) -> Outcome<Command> {
    match parsed {
        Ok(command) => Ok(command),
        Err(error) if !error.use_stderr() => {
            output::write(format_args!("{error}"));
            Ok(Command::Answered)
        }
        Err(error) => Err(told(&error, arguments, command)),
    }
}

/// A usage error of `command`, as `getopt_long` tells it.
fn told(error: &clap::Error, arguments: &[OsString], command: &str) -> Failure {
    let text = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let message = match error.kind() {
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Failure::usage("", "Not enough arguments");
        }
        ErrorKind::InvalidSubcommand => {
            let name = text(ContextKind::InvalidSubcommand);
            return Failure::usage("", format!("Command not found: {name}"));
        }
        ErrorKind::UnknownArgument => {
            let argument = text(ContextKind::InvalidArg);
            match argument.starts_with("--") {
                true => format!("unrecognized option '{argument}'"),
                false => format!("invalid option -- '{}'", argument.trim_start_matches('-')),
            }
        }
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue).is_empty() => {
            missing_value(&arguments.last().map(|a| a.to_string_lossy()).unwrap_or_default())
        }
        ErrorKind::TooManyValues => {
            let argument = text(ContextKind::InvalidArg);
            let flag = argument.split('=').next().unwrap_or_default();
            format!("option '{flag}' doesn't allow an argument")
        }
        _ => {
            let whole = error.to_string();
            let line = whole.lines().next().unwrap_or_default();
            line.trim_start_matches("error: ").to_owned()
        }
    };
    // getopt speaks as "qemu-img create: ..." where everything else is "qemu-img: ...".
    Failure::usage(command, message).spoken_by(command)
}

/// Says that `option`, the last argument, wants a value.
fn missing_value(option: &str) -> String {
    match option.strip_prefix("--") {
        Some(_) => format!("option '{option}' requires an argument"),
        None => {
            let flag = option.chars().last().unwrap_or('-');
            format!("option requires an argument -- '{flag}'")
        }
    }
}
