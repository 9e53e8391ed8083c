//! `reopen`: the open image once more, with other options.

use super::catalog::report;
use super::definition::Command;
use super::open::{self, OpenArgs, OpenImage};
use super::session::{Done, Failed, Flow, Session};
use crate::failure::tell;
use crate::source::{self, Options};

/// Cache options, which `-c` sets all at once.
const CACHE_OPTIONS: [&str; 2] = ["cache.direct", "cache.no-flush"];

/// The size of all caches, and those of each.
const CACHE_SIZES: [&str; 3] = ["cache-size", "l2-cache-size", "refcount-cache-size"];

/// What QEMU calls an image that nobody has named; it counts them.
const NODE: &str = "#block000";

/// `reopen`
pub fn reopen(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let open = session.current().ok_or(Failed)?;
    let arguments = command.arguments(words, "c:o:rw")?;
    let mut args = open.args.clone();
    let cache = arguments.value('c').map(|name| open::parse_cache(Some(name), false));
    if let Some(cache) = cache.transpose().map_err(report)? {
        args.cache = cache;
    }
    let mut options = Options::default();
    arguments.values('o').for_each(|list| options.add(Options::parse(list, None)));
    let (read_only, writable) = (arguments.has('r'), arguments.has('w'));
    if read_only && writable {
        return Err(refused("Only one -r/-w option may be given"));
    }
    if !arguments.operands.is_empty() {
        return Err(command.tell_usage());
    }
    if (read_only || writable) && options.get("read-only").is_some() {
        return Err(refused("Cannot set both -r/-w and 'read-only'"));
    }
    let has_cache_option = CACHE_OPTIONS.iter().any(|name| options.get(name).is_some());
    if arguments.has('c') && has_cache_option {
        return Err(refused("Cannot set both -c and the cache options"));
    }
    if read_only || writable {
        args.options.take("read-only");
        args.read_only = read_only;
    }
    if let Some(name) = first_fixed(open, &options) {
        return Err(refused(&format!("Cannot change the option '{name}'")));
    }
    join(&mut args.options, options);
    check(open, &args).map_err(|reason| refused(&reason))?;
    session.reopen(&args).map(|()| Flow::Continue).map_err(report)
}

/// Adds `new` options to `former` ones: some replace several.
fn join(former: &mut Options, new: Options) {
    if new.get("overlap-check").or(new.get("overlap-check.template")).is_some() {
        former.take("overlap-check");
        former.take_child("overlap-check");
    }
    let sizes = |options: &Options| CACHE_SIZES.map(|name| options.get(name).is_some());
    let [all, parts @ ..] = sizes(&new);
    if all {
        CACHE_SIZES[1..].iter().for_each(|name| drop(former.take(name)));
    }
    former.add(new);
    if !all && parts.contains(&true) && sizes(former) == [true; 3] {
        former.take(CACHE_SIZES[0]);
    }
}

/// The first option of `options` that would make another image of the open one.
fn first_fixed(open: &OpenImage, options: &Options) -> Option<&'static str> {
    let image = &open.image;
    let below = (image.layer_count() > 1).then(|| image.layer_format(1).to_string());
    let drivers = [
        ("driver", Some(image.format().to_string())),
        ("file.driver", Some("file".to_owned())),
        ("backing.driver", below),
    ];
    let differs =
        |name: &str, is: Option<&str>| options.get(name).is_some_and(|new| Some(new) != is);
    if drivers.iter().any(|(name, is)| differs(name, is.as_deref())) {
        return Some("driver");
    }
    let names = ["node-name", "file.node-name", "backing.node-name"];
    names.iter().any(|name| differs(name, open.args.options.get(name))).then_some("node-name")
}

/// Finds out what can be found out without closing the image.
fn check(open: &OpenImage, args: &OpenArgs) -> Result<(), String> {
    if args.copy_on_read && args.read_only && !open.args.read_only {
        return Err(format!("Can't set node '{NODE}' to r/o with copy-on-read enabled"));
    }
    let source = source::with_options(args.name.as_deref(), args.options.clone())?;
    match source.path() == open.source.path() {
        true => Ok(()),
        false => Err("Cannot change the option 'filename'".to_owned()),
    }
}

fn refused(message: &str) -> Failed {
    tell(message);
    Failed
}
