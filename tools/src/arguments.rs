//! Arguments that several subcommands take.

use std::path::{Path, PathBuf};

use qcow::engine::check::Crew;

use crate::cache::Cache;
use crate::failure::{Failure, Outcome};
use crate::image::Opening;
use crate::objects;

/// How a result is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    /// For people.
    Human,
    /// For programs.
    Json,
}

/// The arguments that choose the output format.
#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// Tell the result for people or as JSON; default human
    #[arg(long, value_name = "human|json")]
    output: Option<String>,
    /// The same as --output=json
    #[arg(long)]
    json: bool,
}

impl OutputArgs {
    /// The format that the arguments of `command` choose.
    pub fn format(&self, command: &str) -> Outcome<OutputFormat> {
        match self.output.as_deref() {
            None if self.json => Ok(OutputFormat::Json),
            None | Some("human") => Ok(OutputFormat::Human),
            Some("json") => Ok(OutputFormat::Json),
            Some(other) => {
                let message = format!("--output expects 'human' or 'json' not '{other}'");
                Err(Failure::usage(command, message))
            }
        }
    }
}

/// The arguments that say how much is told while a command works.
#[derive(Debug, clap::Args)]
pub struct TellingArgs {
    /// Say nothing unless something is wrong
    #[arg(short, long)]
    pub quiet: bool,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
}

impl TellingArgs {
    /// Whether progress is shown: `--quiet` goes before.
    pub fn shows_progress(&self) -> bool {
        self.progress && !self.quiet
    }
}

/// The argument that says how the one image of a command is cached.
#[derive(Debug, clap::Args)]
pub struct CacheArgs {
    /// Cache mode: writeback (default), none, directsync, writethrough or unsafe
    #[arg(short = 't', long, value_name = "MODE")]
    cache: Option<String>,
}

impl CacheArgs {
    /// The cache mode.
    pub fn cache(&self) -> Outcome<Cache> {
        Cache::parse_option(self.cache.as_deref(), "cache", Cache::WRITEBACK)
    }
}

/// The argument that says how many threads look at an image.
#[derive(Debug, clap::Args)]
pub struct ThreadsArgs {
    /// Threads that walk the tables, 1 to 64; as many as there are processors by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
}

impl ThreadsArgs {
    /// The threads.
    pub fn crew(&self) -> Crew {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        Crew::of_rings(self.threads.map_or_else(available, usize::from))
    }
}

/// The one file that `command` is given.
pub fn one_file<'a>(command: &str, files: &'a [PathBuf]) -> Outcome<&'a Path> {
    match files {
        [file] => Ok(file),
        _ => Err(Failure::usage(command, "Expecting one image file name")),
    }
}

/// The arguments that say what kind of image FILE is.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// Format of the image: qcow2, raw or luks; found out if not given
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// FILE is an option string, such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,
    /// Definition of a secret: secret,id=ID,file=FILE[,format=raw|base64]. All of FILE is the passphrase, a line feed at its end too
    #[arg(long, value_name = "DEFINITION", value_parser = objects::checked)]
    object: Vec<String>,
}

impl ImageArgs {
    /// Whether they say anything about FILE.
    pub fn describes(&self) -> bool {
        self.image_opts || self.format.is_some()
    }

    /// The format that was named, if one was.
    pub fn format(&self) -> Option<&str> {
        self.format.as_deref()
    }

    /// The opening of the image, for reading.
    pub fn opening(&self) -> Opening<'_> {
        Opening { format: self.format(), image_opts: self.image_opts, ..Opening::default() }
    }
}
