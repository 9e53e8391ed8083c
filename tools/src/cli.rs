//! The command line: which subcommand runs, and what is said about wrong usage, in the words of `getopt_long`.

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser};
use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::failure::{Failure, Outcome, tell};
use crate::layers::{self, Shape};
use crate::program::{self, Persona};
use crate::{
    amend, bench, bitmap, check, commit, compact, compare, convert, create, dd, info, io, manual,
    map, measure, output, rebase, resize, snapshot, unbuilt,
};

/// Disk image tool for qcow2 and raw images: a drop-in for qemu-img, and for qemu-io as its command 'io'.
#[derive(Debug, Parser)]
#[command(
    name = "qcow",
    infer_long_args = true,
    args_override_self = true,
    disable_help_subcommand = true,
    after_help = "Supported image formats: qcow2 raw"
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
    Amend(amend::Args),
    Bench(bench::Args),
    Bitmap(bitmap::Args),
    Check(check::Args),
    Commit(commit::Args),
    Compact(compact::Args),
    Compare(compare::Args),
    Completions(manual::CompletionsArgs),
    Convert(convert::Args),
    Create(create::Args),
    Dd(dd::Args),
    Info(info::Args),
    Io(io::Args),
    /// List the layers of a disk - backing images and internal snapshots - with what each takes, alone and shared
    Ls(layers::Args),
    Man(manual::ManArgs),
    Map(map::Args),
    Measure(measure::Args),
    Rebase(rebase::Args),
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
            Self::Amend(args) => amend::run(args).map(|()| 0),
            Self::Bench(args) => bench::run(args).map(|()| 0),
            Self::Bitmap(args) => bitmap::run(args).map(|()| 0),
            Self::Check(args) => check::run(args),
            Self::Commit(args) => commit::run(args).map(|()| 0),
            Self::Compact(args) => compact::run(args).map(|()| 0),
            Self::Compare(args) => compare::run(args),
            Self::Completions(args) => {
                manual::print_completions(args);
                Ok(0)
            }
            Self::Convert(args) => convert::run(args).map(|()| 0),
            Self::Create(args) => create::run(args).map(|()| 0),
            Self::Dd(args) => dd::run(args).map(|()| 0),
            Self::Info(args) => info::run(args).map(|()| 0),
            Self::Io(args) => io::run(args),
            Self::Ls(args) => layers::run(args, Shape::List).map(|()| 0),
            Self::Man(args) => manual::write_pages(args).map(|()| 0),
            Self::Map(args) => map::run(args).map(|()| 0),
            Self::Measure(args) => measure::run(args).map(|()| 0),
            Self::Rebase(args) => rebase::run(args).map(|()| 0),
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
        return parse_io(arguments);
    }
    let mut arguments = without_trace(arguments)?;
    let command = arguments.get(1).map(|first| first.to_string_lossy().into_owned());
    let command = command.unwrap_or_default();
    unbuilt::refuse_command(&command)?;
    if command == "resize" {
        arguments = resize::mark_decrease(&arguments);
    }
    let command = if command.starts_with('-') { "" } else { &command };
    let definition = definition();
    answer(parse_with::<Cli>(&definition, &arguments).map(|cli| cli.command), |error| {
        let options = definition.find_subcommand(command).unwrap_or(&definition);
        told(error, options, &arguments, command)
    })
}

fn parse_io(arguments: &[OsString]) -> Outcome<Command> {
    let definition = define(IoCli::command());
    let parsed = parse_with::<IoCli>(&definition, arguments);
    answer(parsed.map(|cli| Command::Io(cli.args)), |error| {
        let failure = told(error, &definition, arguments, "").without_hint();
        output::write(format_args!("{}", definition.clone().render_help()));
        failure
    })
}

/// `arguments` without the option `-T` of the whole program. There are no events to trace, as there are none in a `qemu-img`
/// that was built without.
fn without_trace(arguments: &[OsString]) -> Outcome<Vec<OsString>> {
    let mut rest: Vec<OsString> = arguments.iter().take(1).cloned().collect();
    let mut left = arguments.iter().skip(1);
    while let Some(argument) = left.next() {
        let text = argument.to_string_lossy();
        let pattern = match text.split_once('=') {
            _ if text == "-T" || text == "--trace" => match left.next() {
                Some(pattern) => pattern.to_string_lossy().into_owned(),
                None => return Err(Failure::usage("", missing_value(&text, &text))),
            },
            Some(("--trace", pattern)) => pattern.to_owned(),
            _ if text.starts_with("-T") => text[2..].to_owned(),
            _ => {
                rest.push(argument.clone());
                rest.extend(left.cloned());
                break;
            }
        };
        tell(&format!("warning: trace event '{pattern}' does not exist"));
    }
    Ok(rest)
}

/// The whole command line of `qcow`.
pub fn definition() -> clap::Command {
    define(Cli::command())
}

fn define(definition: clap::Command) -> clap::Command {
    // Made once in the life of the program.
    let version: &'static str = program::version().leak();
    let definition = definition.name(program::name()).bin_name(program::name()).version(version);
    take_any_value(definition).mut_subcommands(take_any_value)
}

/// Lets what follows an option be its value, whatever it looks like, as `getopt_long` does; and lets names of files be empty,
/// which is for the command to judge.
fn take_any_value(definition: clap::Command) -> clap::Command {
    definition.mut_args(|arg| {
        let is_path = arg.get_value_parser().type_id() == ValueParser::path_buf().type_id();
        let arg = match is_path {
            true => arg.value_parser(OsStringValueParser::new().map(PathBuf::from)),
            false => arg,
        };
        let takes_none = arg.get_num_args().is_some_and(|count| !count.takes_values());
        match arg.get_action().takes_values() && !arg.is_positional() && !takes_none {
            true => arg.allow_hyphen_values(true),
            false => arg,
        }
    })
}

fn parse_with<T: FromArgMatches>(
    definition: &clap::Command,
    arguments: &[OsString],
) -> Result<T, clap::Error> {
    let matches = definition.clone().try_get_matches_from(arguments)?;
    T::from_arg_matches(&matches)
}

/// Gives the help or version that was asked for, or says with `told` what is wrong with the arguments.
fn answer(
    parsed: Result<Command, clap::Error>,
    told: impl FnOnce(&clap::Error) -> Failure,
) -> Outcome<Command> {
    match parsed {
        Ok(command) => Ok(command),
        Err(error) if !error.use_stderr() => {
            output::write(format_args!("{error}"));
            Ok(Command::Answered)
        }
        Err(error) => Err(told(&error)),
    }
}

/// A usage error of `command`, whose options `definition` lists, as `getopt_long` tells it.
fn told(
    error: &clap::Error,
    definition: &clap::Command,
    arguments: &[OsString],
    command: &str,
) -> Failure {
    let text = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let argument = text(ContextKind::InvalidArg);
    // What the parser of a value has found is told as it is.
    if let Some(failure) = error.source().and_then(|source| source.downcast_ref::<Failure>()) {
        return failure.clone();
    }
    let message = match error.kind() {
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Failure::usage("", "Not enough arguments");
        }
        ErrorKind::InvalidSubcommand => {
            let name = text(ContextKind::InvalidSubcommand);
            return Failure::usage("", format!("Command not found: {name}"));
        }
        ErrorKind::UnknownArgument => unknown(&argument, definition),
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue).is_empty() => {
            let last = arguments.last().map(|a| a.to_string_lossy()).unwrap_or_default();
            missing_value(&last, argument.split(' ').next().unwrap_or_default())
        }
        ErrorKind::TooManyValues => {
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

/// Says that the option `argument` is none, or that it could be several.
fn unknown(argument: &str, definition: &clap::Command) -> String {
    let Some(start) = argument.strip_prefix("--") else {
        return format!("invalid option -- '{}'", argument.trim_start_matches('-'));
    };
    let longs = definition.get_arguments().filter_map(clap::Arg::get_long);
    let possible: Vec<&str> = longs.filter(|long| long.starts_with(start)).collect();
    if possible.len() < 2 {
        return format!("unrecognized option '{argument}'");
    }
    let possible: String = possible.iter().map(|long| format!(" '--{long}'")).collect();
    format!("option '{argument}' is ambiguous; possibilities:{possible}")
}

/// Says that `typed`, the last argument and perhaps short for `option`, wants a value.
fn missing_value(typed: &str, option: &str) -> String {
    match typed.strip_prefix("--") {
        Some(_) => format!("option '{option}' requires an argument"),
        None => {
            let flag = typed.chars().last().unwrap_or('-');
            format!("option requires an argument -- '{flag}'")
        }
    }
}
