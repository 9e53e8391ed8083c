//! The result of a comparison, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::case::Case;
use crate::load::report::Report;

/// All cases.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Version of our daemon.
    pub ours: String,
    /// Version of the other.
    pub peer: String,
    /// One row for each case.
    pub rows: Vec<Row>,
}

impl Table {
    /// The highest of the cases' CPU ratios.
    pub fn worst_cpu_ratio(&self) -> f64 {
        self.rows.iter().map(|row| row.cpu_ratio).fold(0.0, f64::max)
    }
}

/// Medians over the rounds of one case. A ratio is ours to the peer's, and is the median of the
/// rounds' ratios.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The case as it was given.
    pub case: String,
    /// Our figures.
    pub ours: Figures,
    /// The peer's.
    pub peer: Figures,
    /// Above 1: ours is faster.
    pub iops_ratio: f64,
    /// Below 1: ours takes less CPU time.
    pub cpu_ratio: f64,
    /// Below 1: ours answers sooner.
    pub p99_ratio: f64,
}

/// Medians of one side.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Requests per second.
    pub iops: f64,
    /// CPU time of the daemon per request in microseconds.
    pub cpu_us_per_request: f64,
    /// Mebibytes per second.
    pub mib_per_second: f64,
    /// Memory of the daemon in bytes, without what it shares.
    pub resident_bytes: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// Latency that 99 % do not exceed, in microseconds.
    pub p99_us: f64,
    /// What each round brought.
    pub rounds: Vec<Report>,
}

impl Row {
    /// Sums one case up. Both sides have as many rounds.
    pub fn new(case: &Case, ours: &[Report], peer: &[Report]) -> Self {
        let ratio = |figure| ratio(ours, peer, figure);
        Self {
            case: case.to_string(),
            iops_ratio: ratio(|r| r.iops),
            cpu_ratio: ratio(|r| r.server_cpu_us_per_request),
            p99_ratio: ratio(|r| r.latency_us.p99),
            ours: Figures::new(ours),
            peer: Figures::new(peer),
        }
    }
}

impl Figures {
    /// Sums up what the rounds brought.
    pub fn new(rounds: &[Report]) -> Self {
        let of = |figure: fn(&Report) -> f64| median(rounds.iter().map(figure));
        Self {
            iops: of(|r| r.iops),
            cpu_us_per_request: of(|r| r.server_cpu_us_per_request),
            mib_per_second: of(|r| r.mib_per_second),
            resident_bytes: of(|r| r.server_resident_bytes as f64),
            p50_us: of(|r| r.latency_us.p50),
            p99_us: of(|r| r.latency_us.p99),
            rounds: rounds.to_vec(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ours: {}\npeer: {}", self.ours, self.peer)?;
        writeln!(
            f,
            "{:28} {:>9} {:>9} {:>6}   {:>8} {:>8} {:>6}   {:>9} {:>9} {:>6}",
            "", "IOPS", "", "", "CPU us", "/request", "", "p99 us", "", ""
        )?;
        write!(
            f,
            "{:28} {:>9} {:>9} {:>6}   {:>8} {:>8} {:>6}   {:>9} {:>9} {:>6}",
            "case", "ours", "peer", "ratio", "ours", "peer", "ratio", "ours", "peer", "ratio"
        )?;
        for row in &self.rows {
            let (ours, peer) = (&row.ours, &row.peer);
            write!(
                f,
                "\n{:28} {:9.0} {:9.0} {:6.2}   {:8.2} {:8.2} {:6.2}   {:9.1} {:9.1} {:6.2}",
                row.case,
                ours.iops,
                peer.iops,
                row.iops_ratio,
                ours.cpu_us_per_request,
                peer.cpu_us_per_request,
                row.cpu_ratio,
                ours.p99_us,
                peer.p99_us,
                row.p99_ratio
            )?;
        }
        Ok(())
    }
}

/// Median over the rounds of one side's `figure` to another's in the same round.
pub fn ratio(one: &[Report], other: &[Report], figure: fn(&Report) -> f64) -> f64 {
    median(one.iter().zip(other).map(|(a, b)| figure(a) / figure(b)))
}

/// Middle of the numbers in order; of an even count, the mean of the two in the middle.
fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => numbers[middle],
        _ => f64::midpoint(numbers[middle - 1], numbers[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median([].into_iter()).is_nan());
    }
}
