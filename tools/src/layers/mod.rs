//! `qcow ls` and `qcow tree`: the layers a disk is made of - the chain of backing images, and the internal snapshots of
//! each - with what each takes, alone and together with others.

mod list;
mod survey;
mod tree;

use std::path::PathBuf;

use crate::arguments::{ImageArgs, OutputArgs, OutputFormat, one_file};
use crate::failure::Outcome;
use crate::output;

/// Which of the two commands runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A table: `ls`.
    List,
    /// A drawing: `tree`.
    Tree,
}

impl Shape {
    fn command(self) -> &'static str {
        match self {
            Self::List => "ls",
            Self::Tree => "tree",
        }
    }
}

/// The arguments of both.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Read the images even while other programs write them
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// The top image
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args, shape: Shape) -> Outcome {
    let output = args.output.format(shape.command())?;
    let path = one_file(shape.command(), &args.files)?;
    let layers = survey::survey(path, args.image.format(), args.force_share)?;
    match (output, shape) {
        (OutputFormat::Json, _) => output::json(&survey::to_json(&layers)),
        (OutputFormat::Human, Shape::List) => list::print(&layers),
        (OutputFormat::Human, Shape::Tree) => tree::print(&layers),
    }
    Ok(())
}
