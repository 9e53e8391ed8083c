//! `qcow map`: which parts of the disk hold what, and where.

use std::path::{Path, PathBuf};

use qcow::disk::uring::block_on;
use qcow::engine::MapExtent;

use crate::arguments::{ImageArgs, OutputArgs, OutputFormat, one_file};
use crate::failure::{Failure, Outcome};
use crate::image::{HostImage, Opening};
use crate::output::{self, say};
use crate::size;

const COMMAND: &str = "map";

/// Tell which parts of the disk hold what, and where in which file
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// First byte of the disk to tell of, with an optional suffix; default 0
    #[arg(short, long, value_name = "OFFSET")]
    start_offset: Option<String>,
    /// Bytes of the disk to tell of, with an optional suffix; default all
    #[arg(short = 'l', long, value_name = "LENGTH")]
    max_length: Option<String>,
    /// Read the image even while another program writes it
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// The image
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let output = args.output.format(COMMAND)?;
    let start = parse_bound(args.start_offset.as_deref(), "start offset")?.unwrap_or(0);
    let len_max = parse_bound(args.max_length.as_deref(), "max length")?.unwrap_or(u64::MAX);
    let path = one_file(COMMAND, &args.files)?;
    let opening = Opening { shared: args.force_share, ..args.image.opening() };
    let image = opening.open(path)?;
    let end = start.saturating_add(len_max).min(image.virtual_size());
    let map = Map { image: &image, top: path, start, end };
    match output {
        OutputFormat::Human => map.print_table(),
        OutputFormat::Json => map.print_json(),
    }
}

fn parse_bound(text: Option<&str>, what: &str) -> Outcome<Option<u64>> {
    let parse = |text: &str| {
        let size = size::parse(text).ok().filter(|&size| i64::try_from(size).is_ok());
        size.ok_or_else(|| Failure::new(format!("Invalid {what} specified: '{text}'.")))
    };
    text.map(parse).transpose()
}

/// The part of a disk to tell of: bytes `start..end`.
struct Map<'a> {
    image: &'a HostImage,
    /// The top image as the user named it.
    top: &'a Path,
    start: u64,
    end: u64,
}

impl Map<'_> {
    fn print_table(&self) -> Outcome {
        say!("{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to");
        self.for_each(|at, extent| {
            if !extent.data || extent.zero {
                return Ok(());
            }
            let Some(offset) = extent.offset else {
                let message = "File contains external, encrypted or compressed clusters.";
                return Err(Failure::new(message));
            };
            let file = self.file_of(extent);
            let (at, len) = (hex(at), hex(extent.len));
            say!("{at:<16}{len:<16}{:<16}{}", hex(offset), file.display());
            Ok(())
        })
    }

    fn print_json(&self) -> Outcome {
        output::write(format_args!("["));
        let mut separator = "";
        self.for_each(|at, extent| {
            output::write(format_args!("{separator}{}", json_object(at, extent)));
            separator = ",\n";
            Ok(())
        })?;
        if separator.is_empty() {
            let nothing = MapExtent {
                len: 0,
                depth: 0,
                present: false,
                zero: false,
                data: false,
                compressed: false,
                offset: None,
                stored_at: None,
            };
            output::write(format_args!("{}", json_object(self.start, &nothing)));
        }
        say!("]");
        Ok(())
    }

    fn file_of(&self, extent: &MapExtent) -> &Path {
        let (depth, image) = (extent.depth, self.image);
        if depth == 0 && image.layer_data_path(0) == image.layer_path(0) {
            return self.top;
        }
        image.layer_data_path(depth)
    }

    /// Calls `visit` for each longest stretch that is all alike.
    fn for_each(&self, mut visit: impl FnMut(u64, &MapExtent) -> Outcome) -> Outcome {
        let mut current: Option<(u64, MapExtent)> = None;
        let mut at = self.start;
        while at < self.end {
            let extent = block_on(self.image.map(at, self.end - at));
            let extent =
                extent.map_err(|e| Failure::from(e).context("Could not read file metadata"))?;
            current = match current {
                Some((start, before)) if before.continues_into(&extent) => {
                    Some((start, MapExtent { len: before.len + extent.len, ..before }))
                }
                Some((start, before)) => {
                    visit(start, &before)?;
                    Some((at, extent))
                }
                None => Some((at, extent)),
            };
            at += extent.len;
        }
        current.map_or(Ok(()), |(start, last)| visit(start, &last))
    }
}

fn json_object(at: u64, extent: &MapExtent) -> String {
    let MapExtent { len, depth, present, zero, data, compressed, offset, .. } = extent;
    let offset = offset.map(|offset| format!(", \"offset\": {offset}")).unwrap_or_default();
    format!(
        "{{ \"start\": {at}, \"length\": {len}, \"depth\": {depth}, \"present\": {present}, \
         \"zero\": {zero}, \"data\": {data}, \"compressed\": {compressed}{offset}}}"
    )
}

/// `value` as C's `%#x` writes it.
fn hex(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("{value:#x}") }
}
