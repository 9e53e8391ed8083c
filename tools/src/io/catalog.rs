//! The commands, and running a line of them.

use std::time::Duration;

use super::command::{integer, number, words};
use super::definition::{Command, command};
use super::open::{self, OpenArgs};
use super::session::{Done, Failed, Flow, Need, Session};
use super::transfer::wrong;
use super::truncate::truncate;
use super::{query, read, reopen, write};
use crate::failure::{tell, tell_plain};
use crate::output::say;
use crate::source::Options;

/// The largest number that may be a signal.
const SIGNAL_MAX: u64 = 65;

/// Runs one command line: whether it went well, and what follows.
pub fn run(session: &mut Session, line: &str) -> (bool, Flow) {
    let words = words(line);
    let Some((name, rest)) = words.split_first() else { return (true, Flow::Continue) };
    let Some(command) = find(name) else {
        tell_plain(&format!("command \"{name}\" not found"));
        return (false, Flow::Continue);
    };
    if command.need != Need::Nothing && session.current().is_none() {
        tell_plain("no file open, try 'help open'");
        return (false, Flow::Continue);
    }
    if let Err(message) = command.check_count(name, rest.len()) {
        tell_plain(&message);
        return (false, Flow::Continue);
    }
    let is_writable = session.current().is_some_and(|open| open.image.is_writable());
    if command.need == Need::Writable && !is_writable {
        tell("Block node is read-only");
        return (false, Flow::Continue);
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
    command(
        &["break"],
        (2, Some(2)),
        Need::Image,
        "event tag",
        "sets a breakpoint on event and tags the stopped request as tag",
        no_breakpoints,
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
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "open the file specified by path",
        open,
    ),
    command(&["quit", "q"], (0, None), Need::Nothing, "", "exit the program", quit),
    command(
        &["read", "r"],
        (2, None),
        Need::Image,
        "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
        "reads a number of bytes at a specified offset",
        read::read,
    ),
    command(
        &["readv"],
        (2, None),
        Need::Image,
        "[-Cqrv] [-P pattern] off len [len..]",
        "reads a number of bytes at a specified offset",
        read::readv,
    ),
    command(
        &["remove_break"],
        (1, Some(1)),
        Need::Image,
        "tag",
        "remove a breakpoint by tag",
        no_breakpoints,
    ),
    command(
        &["reopen"],
        (0, None),
        Need::Image,
        "[(-r|-w)] [-c cache] [-o options]",
        "reopens an image with new options",
        reopen::reopen,
    ),
    command(
        &["resume"],
        (1, Some(1)),
        Need::Image,
        "tag",
        "resumes the request tagged as tag",
        no_breakpoints,
    ),
    command(&["sigraise"], (1, Some(1)), Need::Nothing, "signal", "raises a signal", sigraise),
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
        truncate,
    ),
    command(
        &["wait_break"],
        (1, Some(1)),
        Need::Image,
        "tag",
        "waits for the suspension of a request",
        no_breakpoints,
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
        &["writev"],
        (2, None),
        Need::Writable,
        "[-Cfqr] [-P pattern] off len [len..]",
        "writes a number of bytes at a specified offset",
        write::writev,
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
    let Some(milliseconds) = integer(text) else {
        say!("{text} is not a valid number");
        return Err(Failed);
    };
    crate::output::flush();
    session.drain();
    std::thread::sleep(Duration::from_millis(milliseconds));
    Ok(Flow::Continue)
}

fn sigraise(_: &mut Session, _: &Command, words: &[&str]) -> Done {
    let text = words.first().copied().unwrap_or_default();
    let signal = number(text).map_err(wrong)?;
    if signal > SIGNAL_MAX {
        let message = format!("signal argument '{text}' is too large to be a valid signal");
        return Err(wrong(message));
    }
    crate::output::flush();
    // Signal 0 is no signal, and some numbers are none that a program may send: nothing happens then.
    let _ = signal_hook::low_level::raise(signal as i32);
    Ok(Flow::Continue)
}

/// There are no breakpoints: blkdebug, which has them, is not served.
fn no_breakpoints(_: &mut Session, command: &Command, words: &[&str]) -> Done {
    let what = match (command.name(), words.first()) {
        ("break", _) => "Could not set breakpoint".to_owned(),
        ("remove_break", Some(tag)) => format!("Could not remove breakpoint {tag}"),
        ("resume", _) => "Could not resume request".to_owned(),
        _ => "Could not wait".to_owned(),
    };
    Err(wrong(format!("{what}: Operation not supported")))
}

fn open(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "snCro:ki:t:d:U")?;
    let cache = open::parse_cache(arguments.value('t'), arguments.has('n')).map_err(report)?;
    let discard = open::parse_discard(arguments.value('d')).map_err(report)?;
    let native_aio = open::parse_aio(arguments.value('i'), arguments.has('k')).map_err(report)?;
    let mut options = Options::default();
    for list in arguments.values('o') {
        if session.image_opts {
            return Err(wrong("--image-opts and 'open -o' are mutually exclusive"));
        }
        options.add(Options::parse(list, None));
    }
    let name = match arguments.operands.as_slice() {
        [] => None,
        [text] if session.image_opts => {
            options = Options::parse(text, None);
            None
        }
        [path] => Some(path.into()),
        _ => return Err(command.tell_usage()),
    };
    if session.current().is_some() {
        tell("file open already, try 'help close'");
        return Err(Failed);
    }
    let args = OpenArgs {
        name,
        options,
        read_only: arguments.has('r'),
        snapshot: arguments.has('s'),
        shared: arguments.has('U'),
        copy_on_read: arguments.has('C'),
        native_aio,
        cache,
        discard,
    };
    session.open(&args).map(|()| Flow::Continue).map_err(report)
}

fn close(session: &mut Session, _: &Command, _: &[&str]) -> Done {
    session.close().map(|()| Flow::Continue).map_err(report)
}

/// Tells `failure`.
#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
pub fn report(failure: crate::failure::Failure) -> Failed {
    failure.report();
    Failed
}
