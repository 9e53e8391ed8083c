//! Writing the target's clusters in compressed form: several threads compress what one part holds, and the clusters are
//! stored in the order of the disk.

use qcow::codec::Level;
use qcow::disk::Payload;
use qcow::engine::{Format, Packed};
use qcow::format::compression::CompressionType;

use super::args::Compression;
use super::writing;
use crate::failure::{Failure, Outcome};
use crate::image::HostImage;
use crate::keyval::OptionValues;

const NOT_SUPPORTED: &str = "Compression not supported for this file format";

/// Compresses for one target.
#[derive(Clone, Copy, Debug)]
pub struct Compress<'a> {
    target: &'a HostImage,
    level: Option<Level>,
    threads: usize,
    cluster: u64,
}

impl<'a> Compress<'a> {
    /// As `how` says; a target that cannot be compressed, or a level that its type does not have, is refused.
    pub fn new(how: Compression, target: &'a HostImage) -> Outcome<Self> {
        let (Some(compression), Some(cluster)) = (target.compression(), target.cluster_size())
        else {
            return Err(Failure::new(NOT_SUPPORTED));
        };
        let level = how.level.map(|number| {
            Level::new(compression, number).ok_or_else(|| no_such_level(compression, number))
        });
        Ok(Self { target, level: level.transpose()?, threads: how.threads, cluster })
    }

    /// Writes `data` at `at` of the target: whole clusters, or up to its end.
    pub async fn write(&self, at: u64, data: &Payload) -> Outcome {
        for packed in self.pack(at, data) {
            let packed = packed.map_err(|e| writing(at, &e))?;
            self.target.write_packed(&packed).await.map_err(|e| writing(at, &e))?;
        }
        Ok(())
    }

    /// Compresses `data`, each thread a stretch of it.
    fn pack(&self, at: u64, data: &Payload) -> Vec<qcow::Result<Packed>> {
        let clusters = data.len().div_ceil(self.cluster);
        let stretch = clusters.div_ceil(self.threads as u64).max(1) * self.cluster;
        let pack = |offset: u64| {
            let len = stretch.min(data.len() - offset);
            self.target.pack(at + offset, &data.slice(offset, len), self.level)
        };
        let offsets: Vec<u64> = (0..data.len()).step_by(stretch as usize).collect();
        if let [only] = offsets[..] {
            return vec![pack(only)];
        }
        std::thread::scope(|scope| {
            let pack = &pack;
            let threads: Vec<_> =
                offsets.into_iter().map(|offset| scope.spawn(move || pack(offset))).collect();
            let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            joined.map(|packed| packed.unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
        })
    }
}

/// Refuses a new target of `format` that cannot be compressed, or not with the options it is made with.
pub fn check(format: Format, values: &OptionValues) -> Outcome {
    if format != Format::Qcow2 {
        return Err(Failure::new(NOT_SUPPORTED));
    }
    let clash = if values.is_on("encryption") || values.text("encrypt.format").is_some() {
        "encryption"
    } else if values.text("preallocation").is_some_and(|mode| mode != "off") {
        "preallocation"
    } else if values.text("data_file").is_some_and(|name| !name.is_empty()) {
        "an external data file"
    } else {
        return Ok(());
    };
    Err(Failure::new(format!("Compression and {clash} not supported at the same time")))
}

fn no_such_level(compression: CompressionType, level: i32) -> Failure {
    let levels = if compression == CompressionType::Deflate { "1 to 9" } else { "1 to 22" };
    Failure::new(format!("--level {level}: {} has levels {levels}", compression.name()))
}
