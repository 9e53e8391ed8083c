//! The cases that we hold ourselves to, each side in turn, and what came of them against targets:
//! what `make bench` runs.
//!
//! In each round of a [`scenario`] each side has a [`turn`], on the same file or on a fresh copy of
//! the same one where the load writes. The order of the sides alternates, and ratios are medians of
//! the rounds' ratios, so that a drift of the machine hits all sides.

mod grid;
mod host;
mod idle;
pub mod images;
pub mod outcome;
mod readme;
pub mod results;
pub mod scenario;
mod svg;
mod text;
mod turn;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::compare::daemon::Template;
use crate::load::report::Report;
use host::Host;
use images::Images;
use outcome::{Outcome, Round};
use results::{Failure, Results};
use scenario::{Load, Scenario, Side, Work};
use turn::Turns;

/// How to start the daemons.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Ours.
    pub ours: Template,
    /// QEMU's.
    pub peer: Template,
}

/// A run to be made.
#[derive(Debug)]
pub struct Suite {
    /// The daemons.
    pub programs: Programs,
    /// What to measure.
    pub scenarios: Vec<Scenario>,
    /// Rounds of each scenario.
    pub rounds: u32,
    /// Time measured in each turn.
    pub time: Duration,
    /// Load before that.
    pub warmup: Duration,
    /// A directory with room for the images; what is made in it is removed.
    pub work_dir: PathBuf,
    /// What repeats the run.
    pub command: String,
}

impl Suite {
    /// Measures. A scenario that cannot be finished is noted in the results. `tell` hears a line now
    /// and then.
    pub fn run(&self, mut tell: impl FnMut(&str)) -> Results {
        let mut results = Results {
            host: Host::look(&self.programs, &self.work_dir),
            command: self.command.clone(),
            rounds: self.rounds,
            seconds: self.time.as_secs_f64(),
            outcomes: Vec::new(),
            failures: Vec::new(),
        };
        for group in self.scenarios.chunk_by(|a, b| a.image == b.image) {
            let names: Vec<_> = group.iter().map(|scenario| scenario.name).collect();
            tell(&format!("make the image for {}", names.join(", ")));
            let images = self.images(group);
            for scenario in group {
                let outcome = match &images {
                    Ok(images) => self.measure(scenario, images, &mut tell),
                    Err(error) => Err(anyhow::anyhow!("no image: {error:#}")),
                };
                match outcome {
                    Ok(outcome) => results.outcomes.push(outcome),
                    Err(error) => {
                        tell(&format!("{}: {error:#}", scenario.name));
                        results.failures.push(Failure::new(scenario, &error));
                    }
                }
            }
        }
        results
    }

    fn images(&self, group: &[Scenario]) -> Result<Images> {
        let raw = group.iter().any(|scenario| scenario.sides().iter().any(|side| side.is_raw()));
        Images::make(group[0].image, raw, &self.work_dir, &self.programs.ours)
    }

    fn measure(
        &self,
        scenario: &Scenario,
        images: &Images,
        tell: &mut impl FnMut(&str),
    ) -> Result<Outcome> {
        let (programs, time, warmup) = (&self.programs, self.time, self.warmup);
        let turns = Turns { scenario, images, programs, time, warmup };
        let mut rounds: Vec<Round> = Vec::new();
        for number in 1..=self.rounds {
            let mut sides = scenario.sides();
            if number % 2 == 0 {
                sides.reverse();
            }
            let mut round = Round::default();
            for side in sides {
                let heading = side.heading();
                let found = match &scenario.work {
                    Work::Load(load) => loaded(&turns, &mut round, side, load),
                    Work::Idle => idle(&turns, &mut round, side),
                };
                let found = found.context(heading)?;
                let name = scenario.name;
                tell(&format!("{name}, round {number} of {}: {heading}: {found}", self.rounds));
            }
            rounds.push(round);
        }
        Outcome::new(scenario, images, &rounds)
    }
}

fn loaded(turns: &Turns<'_>, round: &mut Round, side: Side, load: &Load) -> Result<String> {
    let report = turns.load(side, load)?;
    let Report { iops, server_cpu_us_per_request: cpu, .. } = report;
    round.reports.insert(side, report);
    Ok(format!("{iops:.0} requests/s, {cpu:.2} us of CPU time each"))
}

fn idle(turns: &Turns<'_>, round: &mut Round, side: Side) -> Result<String> {
    let wake_ups = turns.idle(side)?;
    round.wake_ups.insert(side, wake_ups);
    Ok(format!("{wake_ups} wake-ups"))
}
