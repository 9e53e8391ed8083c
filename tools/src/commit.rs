//! `qcow commit`: what an image has is written to an image below it, and the image is emptied.
//!
//! All of it is durable in the lower image before the upper one is emptied, so nothing is lost at any moment.

use std::path::{Path, PathBuf};

use qcow::disk::uring::block_on;
use qcow::disk::{Buffer, Payload};
use qcow::engine::Resize;
use qcow::{Error, ErrorKind};

use crate::arguments::{CacheArgs, ImageArgs, TellingArgs, one_file};
use crate::cache::Cache;
use crate::failure::{Failure, Outcome};
use crate::image::{self, HostImage, Opening};
use crate::output::say;
use crate::progress::Progress;
use crate::rate::{self, Rate};
use crate::source::Source;

const COMMAND: &str = "commit";

/// Bytes that are copied at a time.
const CHUNK_LEN: u64 = 2 << 20;

/// Write what an image has to its backing file, and empty the image
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    telling: TellingArgs,
    /// Write to this image of the backing chain, and to none between; implies -d
    #[arg(short, long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Leave the image as it is
    #[arg(short, long)]
    drop: bool,
    /// Copy at most this many bytes a second, with an optional suffix k, M, G, T, P or E
    #[arg(short, long, value_name = "BYTES", value_parser = rate::parse)]
    rate: Option<u64>,
    #[command(flatten)]
    cache: CacheArgs,
    /// The image
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let path = one_file(COMMAND, &args.files)?;
    let cache = args.cache.cache()?;
    let opening = Opening { cache, ..args.image.opening() };
    // With its backing files once, which shows that all of them are there and that nobody writes to them.
    let base = {
        let chain = opening.open_to_write(path)?;
        find_base(args, path, &chain)?
    };
    let top = Opening { writable: true, backing: false, ..opening }.open(path)?;
    // Read past the locks of this very program.
    let chain = Opening { shared: true, ..opening }.open(path)?;
    let source = opening.source(path).map_err(Failure::new)?;
    let lower = hold_between(&chain, &source, base)?;
    let committed = commit(args, &chain, &source, base, cache);
    drop((chain, lower));
    let emptied = match committed {
        Ok(()) if !args.drop && args.base.is_none() => empty(&top),
        other => other,
    };
    let closed = block_on(top.close());
    emptied?;
    closed.map_err(|e| Failure::new(e.message()).context("Error while closing the image"))?;
    if !args.telling.quiet {
        say!("Image committed.");
    }
    Ok(())
}

/// The depth of the image that is written to.
fn find_base(args: &Args, path: &Path, chain: &HostImage) -> Outcome<usize> {
    let Some(base) = &args.base else {
        return match chain.layer_count() {
            1 => Err(Failure::new("Image does not have a backing file")),
            _ => Ok(1),
        };
    };
    let is_base = |depth: &usize| {
        // A relative name starts from the directory of the image that may name it.
        let above = chain.layer_path(depth - 1).parent().unwrap_or(Path::new(""));
        let wanted = above.join(base).canonicalize();
        let found = chain.layer_path(*depth).canonicalize();
        matches!((wanted, found), (Ok(wanted), Ok(found)) if wanted == found)
    };
    (1..chain.layer_count()).find(is_base).ok_or_else(|| {
        let (base, path) = (base.display(), path.display());
        Failure::new(format!("Did not find '{base}' in the backing chain of '{path}'"))
    })
}

/// Opens the images between the top and the base, so that nobody writes to them meanwhile.
fn hold_between(chain: &HostImage, source: &Source, base: usize) -> Outcome<Vec<HostImage>> {
    let opening = Opening { backing: false, ..Opening::default() };
    (1..base).map(|depth| open_layer(chain, source, depth, &opening)).collect()
}

/// Opens the image `depth` places below the top alone, with what `source` says of it.
fn open_layer(
    chain: &HostImage,
    source: &Source,
    depth: usize,
    opening: &Opening<'_>,
) -> Outcome<HostImage> {
    let path = chain.layer_path(depth);
    let layer = Source {
        path: Some(path.to_owned()),
        format: Some(chain.layer_format(depth)),
        ..source.layer(depth).cloned().unwrap_or_default()
    };
    opening.open_source(&layer).map_err(|reason| image::could_not_open(path, &reason))
}

fn commit(args: &Args, chain: &HostImage, source: &Source, depth: usize, cache: Cache) -> Outcome {
    let opening = Opening { writable: true, cache, ..Opening::default() };
    let base = open_layer(chain, source, depth, &opening)?;
    let progress = Progress::new(args.telling.shows_progress(), chain.virtual_size());
    let copy = Copy { chain, depth, base: &base };
    let copied = block_on(copy.run(progress, args.rate.map(Rate::new)));
    // Whatever came of it, what has been written is kept, and the file is left in order.
    let closed = block_on(base.close());
    copied?;
    closed.map_err(told)
}

/// What the images above the base have, on its way to the base.
struct Copy<'a> {
    chain: &'a HostImage,
    depth: usize,
    base: &'a HostImage,
}

impl Copy<'_> {
    async fn run(&self, mut progress: Progress, mut rate: Option<Rate>) -> Outcome {
        let size = self.chain.virtual_size();
        let reach = self.base.virtual_size();
        if reach < size {
            let how = Resize { shrink: false, preallocation: qcow::engine::Preallocation::Off };
            self.base.resize_as(size, &how).await.map_err(told)?;
        }
        let buffer = Buffer::zeroed(CHUNK_LEN as usize).payload();
        let mut at = 0;
        while at < size {
            let (done, written) = self.copy_some(at, size - at, reach, &buffer).await?;
            if let Some(rate) = &mut rate {
                rate.wait_for(written);
            }
            progress.advance(done);
            at += done;
        }
        self.base.flush().await.map_err(told)
    }

    /// Copies a first part of `len` bytes at `at`: how long it is, and how many bytes of it were written. The base reached up
    /// to `reach`, and reads as zeros behind.
    async fn copy_some(
        &self,
        at: u64,
        len: u64,
        reach: u64,
        buffer: &Payload,
    ) -> Outcome<(u64, u64)> {
        let extent = self.chain.map(at, len).await.map_err(told)?;
        if extent.depth >= self.depth {
            return Ok((extent.len, 0));
        }
        if !extent.present && at >= reach {
            return Ok((extent.len, 0));
        }
        if !extent.present {
            return Ok((self.hide(at, extent.len.min(reach - at)).await?, 0));
        }
        if extent.zero {
            self.base.write_zeroes(at, extent.len, true).await.map_err(told)?;
            return Ok((extent.len, 0));
        }
        let bytes = buffer.slice(0, extent.len.min(buffer.len()));
        self.chain.read(at, &bytes).await.map_err(told)?;
        self.base.write(at, &bytes).await.map_err(told)?;
        Ok((bytes.len(), bytes.len()))
    }

    /// Makes the base read as zeros in a first part of `len` bytes at `at`, which it does not show through the images above:
    /// one of them ends before. How long that part is.
    async fn hide(&self, at: u64, len: u64) -> Outcome<u64> {
        let extent = self.base.map(at, len).await.map_err(told)?;
        if !extent.zero {
            self.base.write_zeroes(at, extent.len, true).await.map_err(told)?;
        }
        Ok(extent.len)
    }
}

fn empty(top: &HostImage) -> Outcome {
    block_on(async {
        match top.make_empty().await {
            Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(()),
            emptied => emptied?,
        }
        top.trim().await
    })
    .map_err(told)
}

fn told(error: Error) -> Failure {
    Failure::from(error)
}
