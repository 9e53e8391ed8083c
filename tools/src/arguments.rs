//! Arguments that several subcommands take.

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};

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

/// The one file that `command` is given.
pub fn one_file<'a>(command: &str, files: &'a [PathBuf]) -> Outcome<&'a Path> {
    match files {
        [file] => Ok(file),
        _ => Err(Failure::usage(command, "Expecting one image file name")),
    }
}
