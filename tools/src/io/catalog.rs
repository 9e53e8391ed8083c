//! The commands, and running a line of them.

use std::time::Duration;

use super::command::words;
use super::definition::{Command, command};
use super::open::{self, OpenArgs};
use super::session::{Done, Failed, Flow, Need, Session};
use super::{query, read, write};
use crate::failure::{tell, tell_plain};
use crate::output::say;

/// Runs one command line: whether it went well, and what follows.
pub fn run(session: &mut Session, line: &str) -> (bool, Flow) {
    let words = words(line);
    let Some((name, rest)) = words.split_first() else { return (true, Flow::Continue) };
    let Some(command) = find(name) else {
        tell_plain(&format!("command \"{name}\" not found"));
        return (false, Flow::Continue);
    };
    if let Err(message) = command.check_count(rest.len()) {
        tell_plain(&message);
        return (false, Flow::Continue);
    }
    match (command.need, session.current()) {
        (Need::Image | Need::Writable, None) => {
            tell_plain("no file open, try 'help open'");
            return (false, Flow::Continue);
        }
        (Need::Writable, Some(open)) if !open.image.is_writable() => {
            tell("Block node is read-only");
            return (false, Flow::Continue);
        }
        _ => {}
    }
    match (command.run)(session, command, rest) {
        Ok(flow) => (true, flow),
        Err(Failed) => (false, Flow::Continue),
    }
}

/// All commands, sorted by name.
const COMMANDS: &[Command] = &[
    command(
        &["abort"],
        (0, Some(0)),
        Need::Nothing,
        "",
        "simulate a program crash using abort(3)",
        abort,
    ),
    command(
        &["aio_flush"],
        (0, Some(0)),
        Need::Image,
        "",
        "completes all outstanding aio requests",
        write::aio_flush,
    ),
    command(
        &["aio_read"],
        (2, None),
        Need::Image,
        "[-Ciqrv] [-P pattern] off len [len..]",
        "asynchronously reads a number of bytes",
        read::aio_read,
    ),
    command(
        &["aio_write"],
        (2, None),
        Need::Writable,
        "[-Cfiqruz] [-P pattern] off len [len..]",
        "asynchronously writes a number of bytes",
        write::aio_write,
    ),
    command(
        &["alloc", "a"],
        (1, Some(2)),
        Need::Image,
        "offset [count]",
        "checks if offset is allocated in the file",
        query::alloc,
    ),
    command(&["close", "c"], (0, Some(0)), Need::Image, "", "close the current open file", close),
    command(
        &["discard", "d"],
        (2, None),
        Need::Writable,
        "[-Cq] off len",
        "discards a number of bytes at a specified offset",
        write::discard,
    ),
    command(
        &["flush", "f"],
        (0, Some(0)),
        Need::Image,
        "",
        "flush all in-core file state to disk",
        write::flush,
    ),
    command(
        &["help", "?"],
        (0, Some(1)),
        Need::Nothing,
        "[command]",
        "help for one or all commands",
        help,
    ),
    command(
        &["info", "i"],
        (0, Some(0)),
        Need::Image,
        "",
        "prints information about the current file",
        query::info,
    ),
    command(
        &["length", "l"],
        (0, Some(0)),
        Need::Image,
        "",
        "gets the length of the current file",
        query::length,
    ),
    command(
        &["map"],
        (0, Some(0)),
        Need::Image,
        "",
        "prints the allocated areas of a file",
        query::map,
    ),
    command(
        &["open", "o"],
        (1, None),
        Need::Nothing,
        "[-rsnU] [-t cache] [-d discard] path",
        "open the file specified by path",
        open,
    ),
    command(&["quit", "q"], (0, Some(0)), Need::Nothing, "", "exit the program", quit),
    command(
        &["read", "r"],
        (2, None),
        Need::Image,
        "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
        "reads a number of bytes at a specified offset",
        read::read,
    ),
    command(
        &["readv", "rv"],
        (2, None),
        Need::Image,
        "[-Cqrv] [-P pattern] off len [len..]",
        "reads a number of bytes at a specified offset",
        read::readv,
    ),
    command(
        &["sleep"],
        (1, Some(1)),
        Need::Nothing,
        "",
        "waits for the given value in milliseconds",
        sleep,
    ),
    command(
        &["truncate", "t"],
        (1, Some(3)),
        Need::Writable,
        "[-m prealloc_mode] off",
        "truncates the current file at the given offset",
        unsupported,
    ),
    command(
        &["write", "w"],
        (2, None),
        Need::Writable,
        "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        "writes a number of bytes at a specified offset",
        write::write,
    ),
    command(
        &["writev", "wv"],
        (2, None),
        Need::Writable,
        "[-Cfqr] [-P pattern] off len [len..]",
        "writes a number of bytes at a specified offset",
        write::writev,
    ),
    command(
        &["aio_discard", "break", "remove_break", "reopen", "resume", "sigraise", "wait_break"],
        (0, None),
        Need::Nothing,
        "",
        "not supported",
        unsupported,
    ),
];

/// The command called `name`.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.names.contains(&name))
}

fn abort(_: &mut Session, _: &Command, _: &[&str]) -> Done {
    std::process::abort()
}

fn quit(_: &mut Session, _: &Command, _: &[&str]) -> Done {
    Ok(Flow::Quit)
}

fn help(_: &mut Session, _: &Command, words: &[&str]) -> Done {
    match words.first() {
        None => {
            COMMANDS.iter().for_each(|command| say!("{}", command.line()));
            say!("\nUse 'help commandname' for extended help.");
        }
        Some(name) => match find(name) {
            Some(command) => say!("{}", command.line()),
            None => {
                say!("command {name} not found");
                return Err(Failed);
            }
        },
    }
    Ok(Flow::Continue)
}

fn sleep(session: &mut Session, _: &Command, words: &[&str]) -> Done {
    let text = words.first().copied().unwrap_or_default();
    let Ok(milliseconds) = text.parse::<u32>() else {
        say!("{text} is not a valid number");
        return Err(Failed);
    };
    crate::output::flush();
    session.drain();
    std::thread::sleep(Duration::from_millis(milliseconds.into()));
    Ok(Flow::Continue)
}

fn unsupported(_: &mut Session, command: &Command, _: &[&str]) -> Done {
    let name = match command.names {
        [name, short] if short.len() == 1 => name,
        _ => "this command",
    };
    tell(&format!("{name} is not supported yet"));
    Err(Failed)
}

fn open(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "rsnUt:d:")?;
    let [path] = arguments.operands.as_slice() else { return Err(command.tell_usage()) };
    if session.current().is_some() {
        tell("file open already, try 'help close'");
        return Err(Failed);
    }
    let args = OpenArgs {
        path: path.into(),
        format: None,
        read_only: arguments.has('r'),
        snapshot: arguments.has('s'),
        shared: arguments.has('U'),
        cache: open::parse_cache(arguments.value('t'), arguments.has('n')).map_err(report)?,
        discard: open::parse_discard(arguments.value('d')).map_err(report)?,
    };
    session.open(&args).map(|()| Flow::Continue).map_err(report)
}

fn close(session: &mut Session, _: &Command, _: &[&str]) -> Done {
    session.close().map(|()| Flow::Continue).map_err(report)
}

#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
fn report(failure: crate::failure::Failure) -> Failed {
    failure.report();
    Failed
}
