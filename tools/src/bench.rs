//! `qcow bench`: many requests of one kind, so many at a time, and how long they take.

use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant};

use qcow::disk::uring::{CacheMode, block_on};
use qcow::disk::{Buffer, Payload};
use qcow::exec::{SlotPool, yield_now};
use serde_json::json;

use crate::arguments::one_file;
use crate::bounded::{INT_MAX, SIZE_MAX, parse_number, parse_size};
use crate::cache::Cache;
use crate::failure::{Failure, Outcome};
use crate::image::{self, HostImage, Opening};
use crate::output::{self, say};

const COMMAND: &str = "bench";

/// Requests, requests at a time, and bytes of a request where none are given.
const COUNT: u64 = 75_000;
const DEPTH: u64 = 64;
const LEN: u64 = 4096;

/// Send many requests of one kind to an image, and tell how long they take
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many requests; default 75000
    #[arg(short, long, value_name = "COUNT", allow_hyphen_values = true)]
    count: Option<String>,
    /// How many at a time; default 64
    #[arg(short, long, value_name = "DEPTH", allow_hyphen_values = true)]
    depth: Option<String>,
    /// Format of the image: qcow2, raw or luks; found out if not given
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Way of doing I/O: threads, native or io_uring are taken, and it is always io_uring
    #[arg(short = 'i', long, value_name = "AIO")]
    aio: Option<String>,
    /// The same as -i native
    #[arg(short, long)]
    native: bool,
    /// Byte of the disk where the first request starts, with an optional suffix; default 0
    #[arg(short, long, value_name = "OFFSET", allow_hyphen_values = true)]
    offset: Option<String>,
    /// Taken for compatibility: what was sent and how long it took is always told
    #[arg(short, long)]
    quiet: bool,
    /// Bytes of a request, with an optional suffix; default 4k
    #[arg(short = 's', long, value_name = "SIZE", allow_hyphen_values = true)]
    buffer_size: Option<String>,
    /// Bytes from the start of a request to the start of the next, with an optional suffix; default the bytes of a request
    #[arg(short = 'S', long, value_name = "SIZE", allow_hyphen_values = true)]
    step_size: Option<String>,
    /// Cache mode: writeback (default), none, directsync, writethrough or unsafe
    #[arg(short = 't', long, value_name = "MODE")]
    cache: Option<String>,
    /// Write instead of reading: what the image holds there is lost
    #[arg(short, long)]
    write: bool,
    /// Read the image even while another program writes it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Flush after every so many writes
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    flush_interval: Option<String>,
    /// Go on with writes while a flush is under way
    #[arg(long)]
    no_drain: bool,
    /// The byte that is written; default 0
    #[arg(long, value_name = "BYTE", allow_hyphen_values = true)]
    pattern: Option<String>,
    /// FILE is an option string, such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,
    /// Tell the result as JSON
    #[arg(long)]
    json: bool,
    /// The image
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What is to be sent.
#[derive(Debug)]
struct Job {
    count: u64,
    depth: u64,
    offset: u64,
    len: u64,
    step: u64,
    write: bool,
    /// Requests from flush to flush; 0 for no flushes.
    flush_interval: u64,
    drain: bool,
    pattern: u8,
    cache: Cache,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    let job = args.job()?;
    let path = one_file(COMMAND, &args.files)?;
    if !job.write && job.flush_interval > 0 {
        return Err(Failure::new("--flush-interval is only available in write tests"));
    }
    if job.flush_interval > 0 && job.flush_interval < job.depth {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }
    if args.is_native() && job.cache.mode != CacheMode::Direct {
        let reason =
            "aio=native was specified, but it requires cache.direct=on, which was not specified.";
        return Err(image::could_not_open(path, reason));
    }
    let opening = Opening {
        format: args.format.as_deref(),
        image_opts: args.image_opts,
        writable: job.write,
        cache: job.cache,
        shared: args.force_share,
        ..Opening::default()
    };
    let image = if job.write { opening.open_to_write(path)? } else { opening.open(path)? };
    if !args.json {
        job.announce();
    }
    let taken = block_on(Bench::new(&job, &image).run());
    // Also after a failed request: what was written stays in order.
    let closed = block_on(image.close());
    let seconds = taken?.as_secs_f64();
    closed.map_err(|e| failed("flush request", &e))?;
    match args.json {
        true => job.print_json(seconds),
        false => say!("Run completed in {seconds:3.3} seconds."),
    }
    Ok(())
}

impl Args {
    fn job(&self) -> Outcome<Job> {
        let number = |given: &Option<String>, name, default, bounds| match given {
            Some(text) => parse_number(name, text, bounds),
            None => Ok(default),
        };
        let size = |given: &Option<String>, name, default, bounds| match given {
            Some(text) => parse_size(name, text, bounds),
            None => Ok(default),
        };
        let count = number(&self.count, "request count", COUNT, 1..=INT_MAX)?;
        let depth = number(&self.depth, "queue depth", DEPTH, 1..=INT_MAX)?;
        self.check_aio()?;
        let offset = size(&self.offset, "offset", 0, 0..=SIZE_MAX)?;
        let len = size(&self.buffer_size, "buffer size", LEN, 1..=INT_MAX)?;
        let step = size(&self.step_size, "step size", 0, 0..=INT_MAX)?;
        let cache = match self.cache.as_deref() {
            Some(name) => Cache::parse(name).ok_or_else(|| Failure::new("Invalid cache mode"))?,
            None => Cache::WRITEBACK,
        };
        let pattern = number(&self.pattern, "pattern byte", 0, 0..=u8::MAX.into())?;
        let flush_interval = number(&self.flush_interval, "flush interval", 0, 0..=INT_MAX)?;
        Ok(Job {
            count,
            depth,
            offset,
            len,
            step: if step == 0 { len } else { step },
            write: self.write,
            flush_interval,
            drain: !self.no_drain,
            pattern: pattern as u8,
            cache,
        })
    }

    fn check_aio(&self) -> Outcome {
        match self.aio.as_deref() {
            None | Some("threads" | "native" | "io_uring") => Ok(()),
            Some(other) => Err(Failure::new(format!("Invalid aio option: {other}"))),
        }
    }

    fn is_native(&self) -> bool {
        self.native || self.aio.as_deref() == Some("native")
    }
}

impl Job {
    fn kind(&self) -> &'static str {
        if self.write { "write" } else { "read" }
    }

    fn announce(&self) {
        let Self { count, depth, offset, len, step, .. } = self;
        say!(
            "Sending {count} {} requests, {len} bytes each, {depth} in parallel (starting at offset {offset}, step size \
             {step})",
            self.kind()
        );
        if self.flush_interval > 0 {
            say!("Sending flush every {} requests", self.flush_interval);
        }
        output::flush();
    }

    fn print_json(&self, seconds: f64) {
        output::json(&json!({
            "type": self.kind(),
            "requests": self.count,
            "length": self.len,
            "depth": self.depth,
            "offset": self.offset,
            "step": self.step,
            "flush-interval": self.flush_interval,
            "seconds": seconds,
        }));
    }
}

/// What came to its end.
enum Ended {
    Request(qcow::Result<()>),
    /// A flush for which the requests wait.
    Flush(qcow::Result<()>),
    /// A flush beside the requests.
    FlushBeside(qcow::Result<()>),
}

type Running<'a> = Pin<Box<dyn Future<Output = Ended> + 'a>>;

/// Requests under way.
struct Bench<'a> {
    job: &'a Job,
    image: &'a HostImage,
    /// What all requests read into or write: nobody looks at it.
    payload: Payload,
    pool: SlotPool<Running<'a>>,
    /// Requests that have not ended.
    left: u64,
    in_flight: u64,
    offset: u64,
}

impl<'a> Bench<'a> {
    fn new(job: &'a Job, image: &'a HostImage) -> Self {
        let payload = Buffer::from_bytes(&vec![job.pattern; job.len as usize]).payload();
        // One more for the flush.
        let slots = job.depth.min(job.count) as usize + 1;
        let pool = SlotPool::new(slots);
        Self { job, image, payload, pool, left: job.count, in_flight: 0, offset: job.offset }
    }

    /// Sends all requests; how long that took.
    async fn run(&mut self) -> Outcome<Duration> {
        let start = Instant::now();
        let mut draining = false;
        while self.left > 0 {
            if !draining {
                self.submit();
            }
            match poll_fn(|context| self.pool.poll_next(context)).await {
                Ended::Request(result) => {
                    result.map_err(|e| failed("request", &e))?;
                    draining = self.request_ended();
                }
                Ended::Flush(result) => {
                    result.map_err(|e| failed("flush request", &e))?;
                    draining = false;
                }
                Ended::FlushBeside(result) => result.map_err(|e| failed("flush request", &e))?,
            }
        }
        Ok(start.elapsed())
    }

    /// Starts as many requests as there may be.
    fn submit(&mut self) {
        while self.left > self.in_flight && self.in_flight < self.job.depth && !self.pool.is_full()
        {
            let at = self.offset;
            self.in_flight += 1;
            self.offset = (at + self.job.step).checked_rem(self.image.virtual_size()).unwrap_or(0);
            self.start(self.request(at));
        }
    }

    /// Starts `running`, which waits before it does anything, so that it has not ended yet.
    fn start(&mut self, running: Running<'a>) {
        assert!(self.pool.insert(running).is_none(), "a request waits first");
    }

    fn request(&self, at: u64) -> Running<'a> {
        let (job, image, payload) = (self.job, self.image, self.payload.clone());
        Box::pin(async move {
            yield_now().await;
            let result = match job.write {
                true => image.write(at, &payload).await,
                false => image.read(at, &payload).await,
            };
            let durable = job.write && job.cache.writethrough && result.is_ok();
            Ended::Request(if durable { image.flush().await } else { result })
        })
    }

    /// Counts a request that has ended, and flushes where it is time to; whether no request may start for now.
    fn request_ended(&mut self) -> bool {
        let after = self.left - self.in_flight;
        self.left -= 1;
        self.in_flight -= 1;
        let (interval, drain) = (self.job.flush_interval, self.job.drain);
        if interval == 0 || !after.is_multiple_of(interval) {
            return false;
        }
        if (self.in_flight == 0 || !drain) && !self.pool.is_full() {
            let image = self.image;
            let flush: Running<'a> = Box::pin(async move {
                yield_now().await;
                let flushed = image.flush().await;
                if drain { Ended::Flush(flushed) } else { Ended::FlushBeside(flushed) }
            });
            self.start(flush);
        }
        drain
    }
}

fn failed(what: &str, error: &qcow::Error) -> Failure {
    Failure::new(format!("Failed {what}: {}", image::reason_of(error)))
}
