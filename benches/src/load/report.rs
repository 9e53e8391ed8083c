//! What a run found, for people and for programs.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Job;
use super::plan::{Access, Mix};
use super::worker::Tally;

/// What passed while requests were counted.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    time: Duration,
    server_cpu: Duration,
    own_cpu: Duration,
}

impl Window {
    /// From one sample of clock, server's CPU time and own CPU time to another.
    pub(super) fn between(
        before: (Instant, Duration, Duration),
        after: (Instant, Duration, Duration),
    ) -> Self {
        Self {
            time: after.0.saturating_duration_since(before.0),
            server_cpu: after.1.saturating_sub(before.1),
            own_cpu: after.2.saturating_sub(before.2),
        }
    }
}

/// The process that served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    pub pid: i32,
    /// See [`crate::process::resident`].
    pub resident: u64,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 % are not longer.
    pub p90: f64,
    /// 99 % are not longer.
    pub p99: f64,
    /// 99.9 % are not longer.
    #[serde(rename = "p99.9")]
    pub p999: f64,
    /// Longest.
    pub max: f64,
}

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Kind of load, in words.
    pub load: String,
    /// Queues.
    pub queues: u16,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Bytes per request.
    pub block_size: u64,
    /// What repeats the run.
    pub seed: u64,
    /// Length of the counted part in seconds.
    pub seconds: f64,
    /// Requests completed in the counted part.
    pub requests: u64,
    /// Of these, with a status other than success.
    pub errors: u64,
    /// Requests per second.
    pub iops: f64,
    /// Mebibytes per second; 0 for a load of flushes only.
    pub mib_per_second: f64,
    /// From making a request available to collecting it.
    pub latency_us: Latency,
    /// Process whose CPU time was counted.
    pub server_pid: i32,
    /// CPU time of the server for each request, in microseconds, user and system.
    pub server_cpu_us_per_request: f64,
    /// CPUs that the server kept busy on average.
    pub server_cpus: f64,
    /// Memory of the server at the end of the counted part in bytes, without what it shares: the guest's.
    pub server_resident_bytes: u64,
    /// CPU time of this program for each request, in microseconds.
    pub own_cpu_us_per_request: f64,
    /// Verified run: blocks read during the run and compared.
    pub checked_blocks: u64,
    /// Verified run: blocks read and compared after the run.
    pub checked_after: u64,
}

impl Report {
    pub(super) fn new(
        job: &Job,
        server: Server,
        window: &Window,
        tally: &Tally,
        checked_after: u64,
    ) -> Self {
        let seconds = window.time.as_secs_f64();
        let iops = ratio(tally.requests as f64, seconds);
        let per_request = |cpu: Duration| ratio(cpu.as_secs_f64() * 1e6, tally.requests as f64);
        let moves_bytes = job.mix.flush < 100;
        let bytes = if moves_bytes { job.block_size as f64 } else { 0.0 };
        Self {
            load: describe(&job.mix, job.access),
            queues: job.queues,
            depth: job.depth,
            block_size: job.block_size,
            seed: job.seed,
            seconds,
            requests: tally.requests,
            errors: tally.errors,
            iops,
            mib_per_second: iops * bytes / f64::from(1 << 20),
            latency_us: latency(tally),
            server_pid: server.pid,
            server_cpu_us_per_request: per_request(window.server_cpu),
            server_cpus: ratio(window.server_cpu.as_secs_f64(), seconds),
            server_resident_bytes: server.resident,
            own_cpu_us_per_request: per_request(window.own_cpu),
            checked_blocks: tally.checked,
            checked_after,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { mean, p50, p90, p99, p999, max } = self.latency_us;
        let (load, block) = (&self.load, self.block_size);
        let (queues, depth, seed) = (self.queues, self.depth, self.seed);
        writeln!(f, "{load}, {block} bytes, {queues} queue(s) x {depth} in flight, seed {seed}")?;
        writeln!(
            f,
            "  {:.0} requests/s   {:.1} MiB/s   {} requests in {:.2} s   {} errors",
            self.iops, self.mib_per_second, self.requests, self.seconds, self.errors
        )?;
        writeln!(
            f,
            "  latency us: mean {mean:.1}  p50 {p50:.1}  p90 {p90:.1}  p99 {p99:.1}  \
             p99.9 {p999:.1}  max {max:.1}"
        )?;
        write!(
            f,
            "  CPU us/request: server {:.2} (process {}, {:.2} CPUs busy)  this program {:.2}",
            self.server_cpu_us_per_request,
            self.server_pid,
            self.server_cpus,
            self.own_cpu_us_per_request
        )?;
        if self.checked_blocks + self.checked_after > 0 {
            let (during, after) = (self.checked_blocks, self.checked_after);
            write!(f, "\n  verified: {during} blocks during the run, {after} after it")?;
        }
        Ok(())
    }
}

fn latency(tally: &Tally) -> Latency {
    let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let quantile = |q| microseconds(tally.latency.value_at_quantile(q));
    Latency {
        mean: tally.latency.mean() / 1e3,
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        p999: quantile(0.999),
        max: microseconds(tally.latency.max()),
    }
}

/// Kind of load in words: `random read`, `sequential 70% read 30% write`.
pub fn describe(mix: &Mix, access: Access) -> String {
    let kinds = [
        (mix.read, "read"),
        (mix.write, "write"),
        (mix.discard, "discard"),
        (mix.write_zeroes, "write-zeroes"),
        (mix.flush, "flush"),
    ];
    let mut text = match access {
        Access::Random => "random".to_owned(),
        Access::Sequential => "sequential".to_owned(),
        Access::Scattered => "scattered".to_owned(),
    };
    for (share, kind) in kinds.into_iter().filter(|(share, _)| *share > 0) {
        if share == 100 {
            text.push_str(&format!(" {kind}"));
        } else {
            text.push_str(&format!(" {share}% {kind}"));
        }
    }
    text
}

fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}
