//! What came of one scenario.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::images::{ImageKind, Images};
use super::scenario::{Scenario, Side, Work};
use crate::compare::image;
use crate::compare::table::{Figures, ratio};
use crate::load::report::Report;

/// What one round brought, by side.
#[derive(Debug, Default)]
pub struct Round {
    /// Of a load.
    pub reports: BTreeMap<Side, Report>,
    /// Of an idle daemon.
    pub wake_ups: BTreeMap<Side, u64>,
}

/// What all rounds of a scenario brought.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The scenario's name.
    pub name: String,
    /// The scenario in words.
    pub title: String,
    /// Its load, as [`crate::compare::case::Case`] reads it.
    pub case: Option<String>,
    /// Medians, and all rounds. Empty for an idle daemon.
    pub figures: BTreeMap<Side, Figures>,
    /// Memory above what the caches may hold, in bytes, the most of all rounds: of daemons on qcow2.
    pub above_caches: BTreeMap<Side, f64>,
    /// The most of all rounds. Empty for a load.
    pub wake_ups: BTreeMap<Side, u64>,
    /// What was asked for, and whether it was reached.
    pub verdicts: Vec<Verdict>,
}

/// One number that somebody asks for.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Of what.
    pub measure: Measure,
    /// Whose figure ours was divided by.
    pub against: Option<Side>,
    /// The number: a ratio if there is somebody that it is against.
    pub value: f64,
    /// What it has to be.
    pub target: Option<Target>,
    /// The number that the bare loop has against the same: no daemon can be much better here.
    pub floor: Option<f64>,
}

/// What a number tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Requests or bytes per second.
    Throughput,
    /// CPU time of the server per request.
    Cpu,
    /// Wake-ups of an idle daemon.
    WakeUps,
    /// MiB of memory above what the caches may hold.
    Memory,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Target {
    /// Whether `value` keeps it.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }

    /// The bound.
    pub fn bound(self) -> f64 {
        match self {
            Self::AtMost(bound) | Self::AtLeast(bound) => bound,
        }
    }
}

impl Verdict {
    /// Whether the target is kept, if there is one.
    pub fn met(&self) -> Option<bool> {
        self.target.map(|target| target.holds(self.value))
    }

    /// Whether not even the bare loop keeps the target.
    pub fn is_beyond_floor(&self) -> bool {
        let target = self.target.zip(self.floor);
        target.is_some_and(|(target, floor)| !target.holds(floor))
    }
}

impl Outcome {
    /// Sums the rounds of `scenario` on `images` up.
    pub fn new(scenario: &Scenario, images: &Images, rounds: &[Round]) -> Result<Self> {
        let reports = by_side(rounds, |round| &round.reports);
        let wake_ups = by_side(rounds, |round| &round.wake_ups);
        let wake_ups =
            wake_ups.into_iter().filter_map(|(side, all)| Some((side, all.into_iter().max()?)));
        let wake_ups: BTreeMap<_, _> = wake_ups.collect();
        let mut verdicts = ratios(scenario, &reports);
        verdicts.extend(wake_ups.get(&Side::Ours).map(|wake_ups| Verdict {
            measure: Measure::WakeUps,
            against: None,
            value: *wake_ups as f64,
            target: Some(Target::AtMost(0.0)),
            floor: None,
        }));
        let case = match scenario.work {
            Work::Load(load) => Some(load.case.to_owned()),
            Work::Idle => None,
        };
        Ok(Self {
            name: scenario.name.to_owned(),
            title: scenario.title.to_owned(),
            case,
            above_caches: above_caches(scenario, images, &reports)?,
            figures: reports.iter().map(|(side, all)| (*side, Figures::new(all))).collect(),
            wake_ups,
            verdicts,
        })
    }

    /// What was found of `measure` against `side`.
    pub fn verdict(&self, measure: Measure, side: Side) -> Option<&Verdict> {
        self.verdicts.iter().find(|v| v.measure == measure && v.against == Some(side))
    }
}

fn by_side<T: Clone>(
    rounds: &[Round],
    of: impl Fn(&Round) -> &BTreeMap<Side, T>,
) -> BTreeMap<Side, Vec<T>> {
    let mut all: BTreeMap<Side, Vec<T>> = BTreeMap::new();
    for (side, found) in rounds.iter().flat_map(of) {
        all.entry(*side).or_default().push(found.clone());
    }
    all
}

/// Ours to each rival's.
fn ratios(scenario: &Scenario, reports: &BTreeMap<Side, Vec<Report>>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let Some(ours) = reports.get(&Side::Ours) else { return verdicts };
    for rival in scenario.rivals {
        let Some(theirs) = reports.get(&rival.side) else { continue };
        let bare = reports.get(&Side::Bare).filter(|_| rival.side != Side::Bare);
        let mut push = |measure, of: fn(&Report) -> f64, target| {
            let floor = bare.map(|bare| ratio(bare, theirs, of));
            let value = ratio(ours, theirs, of);
            verdicts.push(Verdict { measure, against: Some(rival.side), value, target, floor });
        };
        let throughput_min = rival.throughput_min.map(Target::AtLeast);
        push(Measure::Throughput, |report| report.iops, throughput_min);
        let cpu_max = rival.cpu_max.map(Target::AtMost);
        push(Measure::Cpu, |report| report.server_cpu_us_per_request, cpu_max);
    }
    verdicts
}

/// Both daemons' L2 cache when nothing else is said.
const L2_CACHE_DEFAULT: u64 = 32 << 20;
/// Our cache of unpacked compressed clusters.
const DECODED_CACHE: u64 = 8 << 20;

fn above_caches(
    scenario: &Scenario,
    images: &Images,
    reports: &BTreeMap<Side, Vec<Report>>,
) -> Result<BTreeMap<Side, f64>> {
    // A cache holds no more than there is, so that a small disk does not excuse other memory.
    let mappings = image::l2_bytes(&images.source("qcow2"))?;
    let compressed = matches!(scenario.image, ImageKind::Compressed { .. });
    let caches = [
        (Side::Ours, mappings.min(L2_CACHE_DEFAULT) + if compressed { DECODED_CACHE } else { 0 }),
        (
            Side::Peer,
            if scenario.default_caches { mappings.min(L2_CACHE_DEFAULT) } else { mappings },
        ),
    ];
    let above = |(side, cache): (Side, u64)| {
        let all = reports.get(&side)?.iter().map(|report| report.server_resident_bytes);
        Some((side, all.max()? as f64 - cache as f64))
    };
    Ok(caches.into_iter().filter_map(above).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_the_bare_loop_misses_is_beyond_the_floor() {
        let verdict = |target, floor| Verdict {
            measure: Measure::Cpu,
            against: Some(Side::Peer),
            value: 1.0,
            target,
            floor,
        };
        assert!(verdict(Some(Target::AtMost(0.5)), Some(0.6)).is_beyond_floor());
        assert!(!verdict(Some(Target::AtMost(0.5)), Some(0.5)).is_beyond_floor());
        assert!(!verdict(Some(Target::AtMost(0.5)), None).is_beyond_floor());
        assert!(!verdict(None, Some(0.6)).is_beyond_floor());
    }

    #[test]
    fn targets_hold_at_their_bound() {
        assert!(Target::AtMost(0.5).holds(0.5) && !Target::AtMost(0.5).holds(0.51));
        assert!(Target::AtLeast(2.0).holds(2.0) && !Target::AtLeast(2.0).holds(1.99));
        assert!(!Target::AtLeast(2.0).holds(f64::NAN) && !Target::AtMost(0.0).holds(f64::NAN));
    }
}
