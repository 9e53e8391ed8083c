//! `qcow completions` and `qcow man`: shell completions and manual pages, made from the same definitions as `--help`.

use std::path::PathBuf;

use clap_complete::Shell;

use crate::failure::{Failure, Outcome};
use crate::{cli, output, program};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell, for example as in: qcow completions bash > /etc/bash_completion.d/qcow
    shell: Shell,
}

/// Write manual pages: the program's and one for each command
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The directory that the pages are written to, as NAME.1 and NAME-COMMAND.1; it must exist
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Prints the completions.
pub fn print_completions(args: &CompletionsArgs) {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli::definition(), program::name(), &mut script);
    output::write(format_args!("{}", String::from_utf8_lossy(&script)));
}

/// Writes the pages.
pub fn write_pages(args: &ManArgs) -> Outcome {
    let directory = &args.directory;
    clap_mangen::generate_to(cli::definition(), directory).map_err(|e| {
        let reason = qcow::error::reason(&e);
        Failure::new(format!("Could not write manual pages to '{}': {reason}", directory.display()))
    })
}
