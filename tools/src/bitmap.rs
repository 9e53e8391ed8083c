//! `qcow bitmap`: adds, removes and changes the persistent bitmaps of an image.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, FromArgMatches};
use qcow::disk::uring::block_on;
use qcow::engine::Format;
use qcow::{Error, ErrorKind, Result};

use crate::arguments::ImageArgs;
use crate::failure::{Failure, Outcome};
use crate::image::{HostImage, Opening};
use crate::program::{self, Persona};
use crate::size::{self, SizeError};

/// What QEMU calls an image that the command line gives no name to, in messages about bitmaps.
const NODE: &str = "#block000";
/// What QEMU says in a second line of a bitmap that was in use when a program died.
const HINT: &str = "Try block-dirty-bitmap-remove to delete this bitmap from disk";

/// Add, remove or change a persistent bitmap, in the order of the options
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    actions: Actions,
    /// With --add: bytes of the disk that one bit stands for, a power of two from 512 to 2G; default the cluster size, but
    /// at least 4k and at most 64k
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    granularity: Option<String>,
    /// With --merge: the image that has the bitmap SOURCE, instead of FILE
    #[arg(short = 'b', long, value_name = "FILE")]
    source_file: Option<OsString>,
    /// Format of that image: qcow2, raw or luks; found out if not given
    #[arg(short = 'F', long, value_name = "FMT")]
    source_format: Option<String>,
    /// The image, and the bitmap's name
    #[arg(value_names = ["FILE", "BITMAP"], num_args = 0..)]
    operands: Vec<OsString>,
}

/// What is to be done, in the order of the command line.
#[derive(Clone, Debug, Default)]
struct Actions(Vec<Action>);

#[derive(Clone, Debug)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(OsString),
}

/// The actions without a value: name, meaning, help.
const PLAIN: [(&str, Action, &str); 5] = [
    ("add", Action::Add, "Add the bitmap; it records what is written from then on"),
    ("remove", Action::Remove, "Remove the bitmap"),
    ("clear", Action::Clear, "Clear all bits of the bitmap"),
    ("enable", Action::Enable, "Make the bitmap record what is written"),
    ("disable", Action::Disable, "Stop the bitmap from recording what is written"),
];
const MERGE: &str = "merge";

impl clap::Args for Actions {
    fn augment_args(command: clap::Command) -> clap::Command {
        let plain = |&(name, _, help): &(&'static str, Action, &'static str)| {
            Arg::new(name)
                .long(name)
                .action(ArgAction::Append)
                .num_args(0)
                .default_missing_value("")
                .help(help)
        };
        let merge = Arg::new(MERGE)
            .long(MERGE)
            .action(ArgAction::Append)
            .value_name("SOURCE")
            .value_parser(clap::value_parser!(OsString))
            .help("Set in the bitmap what is set in the bitmap SOURCE");
        command.args(PLAIN.iter().map(plain)).arg(merge)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let mut actions: Vec<(usize, Action)> = Vec::new();
        for (name, action, _) in &PLAIN {
            let places = matches.indices_of(name).into_iter().flatten();
            actions.extend(places.map(|place| (place, action.clone())));
        }
        let sources = matches.get_many::<OsString>(MERGE).into_iter().flatten();
        let places = matches.indices_of(MERGE).into_iter().flatten();
        actions.extend(
            places.zip(sources).map(|(place, source)| (place, Action::Merge(source.clone()))),
        );
        actions.sort_by_key(|&(place, _)| place);
        Ok(Self(actions.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(
        &mut self,
        matches: &ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let granularity = args.granularity.as_deref().map(parse_granularity).transpose()?;
    // As QEMU: none at all.
    let granularity = granularity.filter(|&granularity| granularity > 0);
    let [file, name] = args.check(granularity)?;
    let opening = Opening { writable: true, backing: false, ..args.image.opening() };
    let image = opening.open_to_write(Path::new(file))?;
    let done = args.change(&image, name, granularity);
    let closed = block_on(image.close())
        .map_err(|e| Failure::new(format!("Error while closing the image: {}", e.message())));
    done.and(closed)
}

fn parse_granularity(text: &str) -> Outcome<u64> {
    let parsed = size::parse(text).and_then(|size| match i64::try_from(size) {
        Ok(_) => Ok(size),
        Err(_) => Err(SizeError::OutOfRange),
    });
    parsed.map_err(|e| match e {
        SizeError::Malformed => Failure::new(format!("Invalid granularity specified: '{text}'.")),
        SizeError::OutOfRange => Failure::new(format!(
            "Invalid granularity specified. Must be between 0 and {}.",
            i64::MAX
        )),
    })
}

impl Args {
    /// The image and the bitmap's name, if the options make sense together.
    fn check(&self, granularity: Option<u64>) -> Outcome<[&OsStr; 2]> {
        let Actions(actions) = &self.actions;
        let adds = actions.iter().any(|action| matches!(action, Action::Add));
        let merges = actions.iter().any(|action| matches!(action, Action::Merge(_)));
        let rules = [
            (
                actions.is_empty(),
                "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
            ),
            (granularity.is_some() && !adds, "granularity only supported with --add"),
            (
                self.source_format.is_some() && self.source_file.is_none(),
                "-F only supported with -b",
            ),
            (
                self.source_file.is_some() && !merges,
                "Merge bitmap source file only supported with --merge",
            ),
        ];
        if let Some((_, message)) = rules.into_iter().find(|(broken, _)| *broken) {
            return Err(Failure::new(message));
        }
        match &self.operands[..] {
            [file, name] => Ok([file, name]),
            _ => Err(Failure::new("Expecting filename and bitmap name")),
        }
    }

    /// Carries out all actions; those before one that fails stay done.
    fn change(&self, image: &HostImage, name: &OsStr, granularity: Option<u64>) -> Outcome {
        let source = match &self.source_file {
            Some(path) => {
                let format = self.source_format.as_deref();
                let opening = Opening { format, backing: false, ..Opening::default() };
                Some(opening.open(Path::new(path))?)
            }
            None => None,
        };
        for action in &self.actions.0 {
            let done = block_on(carry_out(image, source.as_ref(), name, action, granularity));
            done.map_err(|error| {
                let reason = reason(image, &error);
                let (verb, name) = (action.verb(), name.display());
                Failure::new(format!("Operation {verb} on bitmap {name} failed: {reason}"))
            })?;
        }
        Ok(())
    }
}

async fn carry_out(
    image: &HostImage,
    source: Option<&HostImage>,
    name: &OsStr,
    action: &Action,
    granularity: Option<u64>,
) -> Result<()> {
    match action {
        Action::Add => image.add_bitmap(name, granularity, true).await,
        Action::Remove => image.remove_bitmap(name).await,
        Action::Clear => image.clear_bitmap(name).await,
        Action::Enable => image.enable_bitmap(name, true).await,
        Action::Disable => image.enable_bitmap(name, false).await,
        Action::Merge(other) => {
            // Both are looked for before either is judged, as by QEMU.
            let target = image.check_bitmap(name);
            let bits = source.unwrap_or(image).read_bitmap(other).await;
            match (target, bits) {
                (Err(e), _) | (_, Err(e)) if e.kind() == ErrorKind::NotFound => Err(e),
                (Err(e), _) | (_, Err(e)) => Err(e),
                (Ok(()), Ok(bits)) => image.merge_bitmap(name, &bits).await,
            }
        }
    }
}

impl Action {
    fn verb(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => MERGE,
        }
    }
}

/// Why a change of a bitmap of `image` failed, in QEMU's words.
pub fn reason(image: &HostImage, error: &Error) -> String {
    let message = error.message();
    let node = match program::persona() {
        Persona::Qcow => image.layer_path(0).display().to_string(),
        Persona::QemuImg | Persona::QemuIo => NODE.to_owned(),
    };
    if image.format() != Format::Qcow2 {
        return message.replacen("bitmaps:", &format!("bitmaps to {node}:"), 1);
    }
    with_hint(message).replacen("persistent: ", &format!("persistent in '{node}': "), 1)
}

/// `message`, with the line that QEMU adds where it says that a bitmap is inconsistent.
pub fn with_hint(message: &str) -> String {
    match message.ends_with("is inconsistent and cannot be used") {
        true => format!("{message}\n{HINT}"),
        false => message.to_owned(),
    }
}
