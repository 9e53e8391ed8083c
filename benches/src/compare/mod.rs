//! Two daemons, the same image, the same load, in turn: what can be said on a machine that others
//! use too is the ratio of the two in one run.
//!
//! In each round each side gets a fresh copy of the image at the same path, serves all cases, and
//! ends. The order of the sides alternates, so that a drift of the machine hits both.

pub mod case;
pub mod daemon;
pub mod image;
pub mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::load::report::Report;
use crate::load::{self, Limit};
use case::Case;
use daemon::{Daemon, Settings, Template};
use table::{Row, Table};

/// A comparison to be made.
#[derive(Debug)]
pub struct Comparison {
    /// How to start our daemon.
    pub ours: Template,
    /// How to start the other one.
    pub peer: Template,
    /// The image that each side gets a copy of.
    pub source: PathBuf,
    /// What both sides are to do with it.
    pub settings: Settings,
    /// A directory with room for one copy of the image.
    pub work_dir: PathBuf,
    /// The loads.
    pub cases: Vec<Case>,
    /// Rounds; the table shows medians over them.
    pub rounds: u32,
    /// Time measured for each case.
    pub time: Duration,
    /// Load before that, which fills the daemon's caches.
    pub warmup: Duration,
}

/// What each round brought for each case, for one side.
type Results = Vec<Vec<Report>>;

impl Comparison {
    /// Makes the comparison. `tell` hears one line for each turn of a side.
    pub fn run(&self, mut tell: impl FnMut(&str)) -> Result<Table> {
        let mut results: [Results; 2] = [Results::new(), Results::new()];
        for round in 0..self.rounds {
            let mut turns = [(0, "ours", &self.ours), (1, "peer", &self.peer)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (side, name, template) in turns {
                tell(&format!("round {} of {}: {name}", round + 1, self.rounds));
                let reports = self.turn(template).with_context(|| name.to_owned())?;
                results[side].push(reports);
            }
        }
        let [ours, peer] = results;
        let rows = self.cases.iter().enumerate().map(|(i, case)| {
            let of_case = |results: &Results| -> Vec<Report> {
                results.iter().map(|round| round[i].clone()).collect()
            };
            Row::new(case, &of_case(&ours), &of_case(&peer))
        });
        Ok(Table { ours: self.ours.version(), peer: self.peer.version(), rows: rows.collect() })
    }

    /// One side serves all cases on a fresh copy of the image.
    fn turn(&self, template: &Template) -> Result<Vec<Report>> {
        let image = self.work_dir.join("disk.img");
        image::copy(&self.source, &image)?;
        let socket = self.work_dir.join("disk.sock");
        let daemon = Daemon::start(template, &image, &socket, &self.settings)?;
        // A daemon may have dropped what was cached, to see what is on disk; and pages that came into the cache in
        // different ways differ in size, and a write to them several times in price. So all come in anew.
        image::cool(&image)?;
        image::warm(&image)?;
        let mut reports = Vec::new();
        for case in &self.cases {
            let job = case.job(&socket, Limit::Time(self.time), self.warmup);
            let report = load::run(&job).with_context(|| format!("case {case}"))?;
            anyhow::ensure!(report.errors == 0, "case {case}: {} requests failed", report.errors);
            reports.push(report);
        }
        daemon.stop()?;
        Ok(reports)
    }
}
