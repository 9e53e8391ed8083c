//! `qcow dd`: a stretch of a disk, block by block, into a new image.

use std::path::Path;

use qcow::disk::uring::block_on;
use qcow::disk::{Buffer, Payload};

use crate::arguments::ImageArgs;
use crate::bounded::{INT_MAX, SIZE_MAX, parse_size};
use crate::failure::{self, Failure, Outcome};
use crate::image::{self, HostImage, Opening};
use crate::keyval::OptionValues;
use crate::new_image::NewImage;

/// Bytes of a block where none are given.
const BLOCK_LEN: u64 = 512;
/// Bytes that are copied at a time, if blocks are no longer than that.
const CHUNK_LEN: u64 = 2 << 20;

/// Copy a stretch of a disk into a new image: if=FILE of=FILE [bs=SIZE] [count=BLOCKS] [skip=BLOCKS]
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Format of the output: qcow2 or raw
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    output_format: String,
    /// Read the input even while another program writes it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// if=FILE, the input; of=FILE, the output; bs=SIZE, bytes of a block (512); count=BLOCKS, how many to copy at most,
    /// from the start of the input; skip=BLOCKS, how many of these to leave out at the start
    #[arg(value_name = "OPERAND")]
    operands: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let operands = Operands::parse(&args.operands)?;
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    let (input, output) = (Path::new(input), Path::new(output));
    let source = Opening { shared: args.force_share, ..args.image.opening() }.open(input)?;
    let format = image::parse_format(&args.output_format).map_err(unknown_format)?;
    let stretch = operands.stretch(source.virtual_size());
    let mut values = OptionValues::default();
    values.set_number("size", stretch.len());
    let made = NewImage::plan(format, &values).and_then(|image| image.write(output));
    let failed = "error while creating output image";
    made.map_err(|e| e.context(failed).context(output.display()))?.keep();
    let target =
        Opening { format: Some(&format.to_string()), writable: true, ..Opening::default() };
    let target = target.open(output)?;
    if stretch.is_behind {
        failure::tell(&format!("{}: cannot skip to specified offset", input.display()));
    }
    block_on(copy(&source, &target, &stretch, operands.block_len))
}

fn unknown_format(message: String) -> Failure {
    match message.starts_with("Unknown") {
        true => Failure::new("Unknown file format"),
        false => Failure::new(message),
    }
}

/// What the operands say.
#[derive(Debug)]
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block_len: u64,
    count: Option<u64>,
    skip: u64,
}

/// The part of the input to copy.
#[derive(Debug, PartialEq, Eq)]
struct Stretch {
    start: u64,
    end: u64,
    /// It would start behind its end.
    is_behind: bool,
}

impl Operands {
    fn parse(operands: &[String]) -> Outcome<Self> {
        let mut parsed =
            Self { input: None, output: None, block_len: BLOCK_LEN, count: None, skip: 0 };
        for operand in operands {
            let unrecognized = |name: &str| Failure::new(format!("unrecognized operand {name}"));
            let (name, value) = operand.split_once('=').ok_or_else(|| unrecognized(operand))?;
            match name {
                "bs" => parsed.block_len = parse_size(name, value, 1..=INT_MAX)?,
                "count" => parsed.count = Some(parse_size(name, value, 0..=SIZE_MAX)?),
                "if" => parsed.input = Some(value.to_owned()),
                "of" => parsed.output = Some(value.to_owned()),
                "skip" => parsed.skip = parse_size(name, value, 0..=SIZE_MAX)?,
                other => return Err(unrecognized(other)),
            }
        }
        Ok(parsed)
    }

    /// What to copy of a disk of `size` bytes. The count is of blocks from the start, those that are skipped included.
    fn stretch(&self, size: u64) -> Stretch {
        let bytes = |blocks: u64| blocks.checked_mul(self.block_len).filter(|&len| len <= SIZE_MAX);
        let end = self.count.and_then(bytes).map_or(size, |len| len.min(size));
        match bytes(self.skip).filter(|&start| start <= end) {
            Some(start) => Stretch { start, end, is_behind: false },
            None => Stretch { start: end, end, is_behind: true },
        }
    }
}

impl Stretch {
    fn len(&self) -> u64 {
        self.end - self.start
    }
}

async fn copy(
    source: &HostImage,
    target: &HostImage,
    stretch: &Stretch,
    block_len: u64,
) -> Outcome {
    // Whole blocks, so that an error is where it would be if they were copied one by one.
    let chunk_len = block_len * (CHUNK_LEN / block_len).max(1);
    let buffer = Buffer::zeroed(chunk_len.min(stretch.len()) as usize).payload();
    let mut at = stretch.start;
    while at < stretch.end {
        let chunk = buffer.slice(0, chunk_len.min(stretch.end - at));
        copy_chunk(source, target, &chunk, at, at - stretch.start).await?;
        at += chunk.len();
    }
    target.close().await.map_err(|e| failed("writing to output", &e))
}

async fn copy_chunk(
    source: &HostImage,
    target: &HostImage,
    chunk: &Payload,
    from: u64,
    to: u64,
) -> Outcome {
    source.read(from, chunk).await.map_err(|e| failed("reading from input", &e))?;
    target.write(to, chunk).await.map_err(|e| failed("writing to output", &e))
}

fn failed(what: &str, error: &qcow::Error) -> Failure {
    Failure::new(format!("error while {what} image file: {}", image::reason_of(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_and_skip_are_blocks_of_the_input() {
        let stretch = |line: &str, size| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let stretch = Operands::parse(&words).expect("operands").stretch(size);
            (stretch.start, stretch.end, stretch.is_behind)
        };
        assert_eq!(stretch("", 1000), (0, 1000, false));
        assert_eq!(stretch("bs=100 skip=3", 1000), (300, 1000, false));
        assert_eq!(stretch("bs=100 count=5 skip=3", 1000), (300, 500, false));
        assert_eq!(stretch("bs=100 count=3 skip=5", 1000), (300, 300, true));
        assert_eq!(stretch("count=0", 1000), (0, 0, false));
        assert_eq!(stretch("bs=1k skip=9223372036854775807", 1000), (1000, 1000, true));
        assert_eq!(stretch("bs=1k count=9223372036854775807", 1000), (0, 1000, false));
    }
}
