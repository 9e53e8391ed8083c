//! What came of a run, for people and for programs.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::grid::Grid;
use super::host::Host;
use super::outcome::{Measure, Outcome, Target, Verdict};
use super::scenario::{MEMORY_ABOVE_CACHES_MAX, Scenario, Side};
use super::{readme, svg};
use crate::compare::table::Figures;

/// All of a run.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Where and with what.
    pub host: Host,
    /// What repeats the run.
    pub command: String,
    /// Rounds of each scenario.
    pub rounds: u32,
    /// Seconds measured in each turn.
    pub seconds: f64,
    /// Finished scenarios.
    pub outcomes: Vec<Outcome>,
    /// The others.
    pub failures: Vec<Failure>,
}

/// A scenario that could not be finished.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// Why.
    pub error: String,
}

impl Failure {
    pub(super) fn new(scenario: &Scenario, error: &anyhow::Error) -> Self {
        Self { name: scenario.name.to_owned(), error: format!("{error:#}") }
    }
}

/// Bars of the plots.
const PLOTS: [(Measure, &str); 2] = [(Measure::Throughput, "throughput"), (Measure::Cpu, "cpu")];

impl Results {
    /// Writes `results.json`, `README.md` and plots into `dir`, which is made if need be.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write("results.json", serde_json::to_string_pretty(self)? + "\n")?;
        write("README.md", readme::page(self))?;
        for (measure, name) in PLOTS {
            write(
                &format!("{name}.svg"),
                svg::plot(&self.bars(measure), title(measure), &self.origin()),
            )?;
        }
        Ok(())
    }

    /// Every target, and every ratio without one.
    pub(super) fn targets(&self) -> Grid {
        let mut grid =
            Grid::new(&["case", "measured", "against", "value", "target", "met", "floor"]);
        for outcome in &self.outcomes {
            for verdict in &outcome.verdicts {
                grid.push(verdict_row(&outcome.title, verdict));
            }
        }
        if let Some((case, verdict)) = self.memory() {
            grid.push(verdict_row(&format!("most of all: {case}"), &verdict));
        }
        grid
    }

    /// Medians of all sides.
    pub(super) fn figures(&self) -> Grid {
        let mut heading = vec!["case".to_owned(), "unit".to_owned()];
        for what in ["per second", "CPU us", "p99 us"] {
            heading.extend(Side::ALL.map(|side| format!("{what}, {}", side.heading())));
        }
        heading
            .extend([Side::Ours, Side::Peer].map(|side| format!("memory MiB, {}", side.heading())));
        let mut grid = Grid::of(heading);
        for outcome in self.outcomes.iter().filter(|outcome| !outcome.figures.is_empty()) {
            grid.push(figures_row(outcome));
        }
        grid
    }

    /// How many of the targets were reached, in words.
    pub(super) fn score(&self) -> String {
        let of_outcomes = self.outcomes.iter().flat_map(|outcome| &outcome.verdicts).cloned();
        let all = of_outcomes.chain(self.memory().map(|(_, verdict)| verdict));
        let all: Vec<_> = all.filter(|verdict| verdict.target.is_some()).collect();
        let count = |is: fn(&Verdict) -> bool| all.iter().filter(|verdict| is(verdict)).count();
        let met = count(|verdict| verdict.met() == Some(true));
        let beyond = count(|verdict| verdict.met() == Some(false) && verdict.is_beyond_floor());
        format!("{met} of {} targets met, {beyond} beyond the floor", all.len())
    }

    /// The most memory that our daemon took above its caches, and where.
    fn memory(&self) -> Option<(&str, Verdict)> {
        let ours = |outcome: &Outcome| outcome.above_caches.get(&Side::Ours).copied();
        let all = self.outcomes.iter().filter_map(|o| Some((o.title.as_str(), ours(o)?)));
        let (case, bytes) = all.max_by(|a, b| a.1.total_cmp(&b.1))?;
        let verdict = Verdict {
            measure: Measure::Memory,
            against: None,
            value: mib(bytes),
            target: Some(Target::AtMost(mib(MEMORY_ABOVE_CACHES_MAX as f64))),
            floor: None,
        };
        Some((case, verdict))
    }

    fn bars(&self, measure: Measure) -> Vec<svg::Bar> {
        let bar = |outcome: &Outcome| {
            let verdict = outcome.verdict(measure, Side::Peer)?;
            Some(svg::Bar {
                label: outcome.title.clone(),
                value: verdict.value,
                target: verdict.target,
            })
        };
        self.outcomes.iter().filter_map(bar).collect()
    }

    /// One line on where the numbers come from.
    fn origin(&self) -> String {
        let Host { date, cpu, cpus, peer, .. } = &self.host;
        format!("{peer}; {cpus} x {cpu}; medians of {} rounds; {date}", self.rounds)
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, value) in self.host.lines() {
            writeln!(f, "{what}: {value}")?;
        }
        writeln!(f, "\n{}\n{}", self.figures().text(), self.targets().text())?;
        for Failure { name, error } in &self.failures {
            writeln!(f, "{name} failed: {error}")?;
        }
        write!(f, "{}", self.score())
    }
}

fn title(measure: Measure) -> &'static str {
    match measure {
        Measure::Cpu => "Server CPU per request, ours / qemu-storage-daemon: less is better",
        _ => "Requests or bytes per second, ours / qemu-storage-daemon: more is better",
    }
}

fn verdict_row(case: &str, verdict: &Verdict) -> Vec<String> {
    let measure = match verdict.measure {
        Measure::Throughput => "per second",
        Measure::Cpu => "CPU per request",
        Measure::WakeUps => "wake-ups in 2 s",
        Measure::Memory => "MiB of memory above the caches",
    };
    let target = match verdict.target {
        None => String::new(),
        Some(Target::AtMost(bound)) => format!("at most {bound}"),
        Some(Target::AtLeast(bound)) => format!("at least {bound}"),
    };
    let met = match verdict.met() {
        None => "",
        Some(true) => "yes",
        Some(false) if verdict.is_beyond_floor() => "NO, nor by the floor",
        Some(false) => "NO",
    };
    vec![
        case.to_owned(),
        measure.to_owned(),
        verdict.against.map_or("", Side::heading).to_owned(),
        format!("{:.2}", verdict.value),
        target,
        met.to_owned(),
        verdict.floor.map_or(String::new(), |floor| format!("{floor:.2}")),
    ]
}

fn figures_row(outcome: &Outcome) -> Vec<String> {
    let by_side = |tell: &dyn Fn(&Figures) -> String| {
        Side::ALL.map(|side| outcome.figures.get(&side).map_or(String::new(), tell))
    };
    let bytes = in_bytes(outcome);
    let rate = |figures: &Figures| if bytes { figures.mib_per_second } else { figures.iops };
    let above =
        |side| outcome.above_caches.get(&side).map_or(String::new(), |b| format!("{:.1}", mib(*b)));
    let mut row = vec![outcome.title.clone(), if bytes { "MiB" } else { "requests" }.to_owned()];
    row.extend(by_side(&|figures| format!("{:.0}", rate(figures))));
    row.extend(by_side(&|figures| format!("{:.2}", figures.cpu_us_per_request)));
    row.extend(by_side(&|figures| format!("{:.0}", figures.p99_us)));
    row.extend([Side::Ours, Side::Peer].map(above));
    row
}

/// Large requests are told in bytes.
fn in_bytes(outcome: &Outcome) -> bool {
    let first = outcome.figures.values().next().and_then(|figures| figures.rounds.first());
    first.is_some_and(|report| report.block_size >= 64 << 10)
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}
