//! `qcow measure`: how large the file of a new image is going to be.

use std::path::{Path, PathBuf};

use qcow::addr::sector_ceil;
use qcow::disk::uring::block_on;
use qcow::engine::{Format, SnapshotChoice};
use qcow::format::bitmap::BitmapEntry;
use qcow::format::header::Version;
use serde_json::{Map, Value};

use self::qcow2::Target;
use crate::arguments::{ImageArgs, OutputArgs, OutputFormat};
use crate::bounded::parse_image_size;
use crate::creation_options;
use crate::encryption;
use crate::failure::{Failure, Outcome};
use crate::image::{self, HostImage, Opening};
use crate::info;
use crate::keyval;
use crate::output::{self, say};
use crate::program;
use crate::snapshot_choice;

mod qcow2;

const COMMAND: &str = "measure";

/// Tell how large the file of a new image is going to be, for a disk of some size or the content of another image
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Format of the new image: qcow2, raw or luks
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    output_format: String,
    /// Options of the new image, as name=value,name=value
    #[arg(short, long, value_name = "OPTIONS", value_parser = keyval::list)]
    options: Vec<String>,
    /// Measure an internal snapshot of FILE: its id or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT", value_parser = snapshot_choice::parse)]
    snapshot: Option<SnapshotChoice>,
    /// Bytes of the new disk, with an optional suffix
    #[arg(long, value_name = "SIZE", value_parser = parse_image_size)]
    size: Option<u64>,
    /// Read FILE even while another program writes it
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// The image whose content the new one is to have
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What was measured, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Measure {
    /// What the file needs to hold the content.
    required: u64,
    /// What it needs once everything has been written.
    fully_allocated: u64,
    /// What the persistent bitmaps need on top, where both images can have some.
    bitmaps: Option<u64>,
}

/// The image whose content is measured.
struct Source {
    image: HostImage,
    /// Its persistent bitmaps, if its format can have some.
    bitmaps: Option<Vec<BitmapEntry>>,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let output = args.output.format(COMMAND)?;
    let path = args.check_combinations()?;
    let source = path.map(|path| args.open(path)).transpose()?;
    let measure = args.measure(source.as_ref())?;
    match output {
        OutputFormat::Human => measure.print(),
        OutputFormat::Json => measure.print_json(),
    }
    Ok(())
}

impl Args {
    /// The file, if one is to be measured.
    fn check_combinations(&self) -> Outcome<Option<&Path>> {
        let path = match self.files.as_slice() {
            [] => None,
            [path] => Some(path.as_path()),
            _ => return Err(Failure::new("At most one filename argument is allowed.")),
        };
        let describes = self.image.describes() || self.snapshot.is_some();
        let wrong = match path {
            None if describes => "--image-opts, -f, and -l require a filename argument.",
            Some(_) if self.size.is_some() => "--size N cannot be used together with a filename.",
            None if self.size.is_none() => "Either --size N or one filename must be specified.",
            _ => return Ok(path),
        };
        Err(Failure::new(wrong))
    }

    fn open(&self, path: &Path) -> Outcome<Source> {
        let (shared, snapshot) = (self.force_share, self.snapshot.as_ref());
        let opening = Opening { shared, snapshot, ..self.image.opening() };
        let image = opening.open(path)?;
        let described = opening.source(path).and_then(|source| info::describe(&source, &opening));
        let (_, described) = described.map_err(|reason| image::could_not_open(path, &reason))?;
        let can_have = described.qcow2().is_some_and(|header| header.version == Version::V3);
        Ok(Source { image, bitmaps: can_have.then_some(described.bitmaps) })
    }

    fn measure(&self, source: Option<&Source>) -> Outcome<Measure> {
        let format = image::parse_new_format(&self.output_format)?;
        let mut values = creation_options::parse(format, &self.options).map_err(|failure| {
            let speaker = program::name();
            Failure::new(format!(
                "{failure}\n{speaker}: Invalid options for file format '{format}'"
            ))
        })?;
        if let Some(size) = self.size {
            values.set_number("size", size);
        }
        let size = values.number("size").unwrap_or(0);
        match format {
            Format::Qcow2 if values.text("integrity").is_some() => {
                Err(Failure::new("authenticated images cannot be measured yet"))
            }
            Format::Qcow2 => Target::parse(&values)?.measure(size, source),
            Format::Luks => {
                let (new, _) = encryption::plan_luks(&values, "")?;
                let size = source.map_or(size, |source| source.image.virtual_size());
                let len = new.payload_offset().saturating_add(size);
                Ok(Measure { required: len, fully_allocated: len, bitmaps: None })
            }
            Format::Raw => {
                let size = source.map_or(size, |source| source.image.virtual_size());
                let len = sector_ceil(size).unwrap_or(size);
                Ok(Measure { required: len, fully_allocated: len, bitmaps: None })
            }
        }
    }
}

impl Measure {
    fn print(&self) {
        say!("required size: {}", self.required);
        say!("fully allocated size: {}", self.fully_allocated);
        if let Some(bitmaps) = self.bitmaps {
            say!("bitmaps size: {bitmaps}");
        }
    }

    fn print_json(&self) {
        let mut object = Map::new();
        let mut put = |name: &str, value: u64| object.insert(name.to_owned(), value.into());
        if let Some(bitmaps) = self.bitmaps {
            put("bitmaps", bitmaps);
        }
        put("required", self.required);
        put("fully-allocated", self.fully_allocated);
        output::json(&Value::Object(object));
    }
}

impl Source {
    /// Bytes of clusters of `cluster` bytes that hold data.
    fn stored(&self, cluster: u64) -> Outcome<u64> {
        let size = self.image.virtual_size();
        let (mut at, mut stored) = (0, 0);
        while at < size {
            let extent = block_on(self.image.map(at, size - at)).map_err(|e| {
                Failure::new(format!("Unable to get block status: {}", image::reason_of(&e)))
            })?;
            let mut end = at + extent.len;
            if !extent.zero && extent.data {
                // A cluster is there as a whole.
                end = end.next_multiple_of(cluster);
                stored += end - at / cluster * cluster;
            }
            at = end;
        }
        Ok(stored)
    }
}
