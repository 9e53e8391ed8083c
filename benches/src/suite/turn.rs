//! One side's turn in one round of a scenario.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::images::Images;
use super::scenario::{FULL_SECONDS, Load, Scenario, Side};
use super::{Programs, idle};
use crate::compare::case::Case;
use crate::compare::daemon::{Daemon, Settings, Template};
use crate::compare::image;
use crate::load::report::Report;
use crate::load::{self, Job, Limit, bare};

/// What all turns of a scenario have in common.
#[derive(Debug)]
pub struct Turns<'a> {
    /// What is measured.
    pub scenario: &'a Scenario,
    /// On what.
    pub images: &'a Images,
    /// The daemons.
    pub programs: &'a Programs,
    /// Time measured.
    pub time: Duration,
    /// Load before that.
    pub warmup: Duration,
}

impl Turns<'_> {
    /// Puts `side` under the load.
    pub fn load(&self, side: Side, load: &Load) -> Result<Report> {
        let case: Case = load.case.parse().map_err(|e: String| anyhow!(e))?;
        let report = if case.modifies() {
            let copy = self.images.copy(file(side))?;
            self.serve(side, copy.path(), &case, load)?
        } else {
            self.serve(side, &self.images.source(file(side)), &case, load)?
        };
        ensure!(report.errors == 0, "{} requests failed", report.errors);
        Ok(report)
    }

    fn serve(&self, side: Side, image: &Path, case: &Case, load: &Load) -> Result<Report> {
        let socket = self.images.socket();
        let job = self.job(case, load, &socket);
        let Some(template) = self.programs.of(side) else {
            self.settle(image)?;
            return Ok(bare::run(&job, image, self.images.backing_raw(), self.scenario.direct)?);
        };
        let settings = self.settings(side, image, case.queues)?;
        let daemon = Daemon::start(template, image, &socket, &settings)?;
        // A daemon may have dropped what was cached, to see what is on disk: so this comes after its start.
        self.settle(image)?;
        let report = load::run(&job)?;
        if case.modifies() {
            // The copy is thrown away: no reason to wait until a gigabyte is on disk.
            drop(daemon);
        } else {
            daemon.stop()?;
        }
        Ok(report)
    }

    /// Counts how often `side` wakes up with a client that wants nothing.
    pub fn idle(&self, side: Side) -> Result<u64> {
        let template = self.programs.of(side).context("there is no daemon to be idle")?;
        let (image, socket) = (self.images.source(file(side)), self.images.socket());
        let settings = self.settings(side, &image, 1)?;
        let daemon = Daemon::start(template, &image, &socket, &settings)?;
        let wake_ups = idle::wake_ups(&socket)?;
        daemon.stop()?;
        Ok(wake_ups)
    }

    /// The same state of disk and page cache for everybody: nothing left to be written back, and the
    /// image in memory. Pages that came there in different ways differ in size; a large one makes reads
    /// a third cheaper and writes several times dearer. So all files are read anew: see [`image::warm`].
    /// With O_DIRECT no page of the image is in memory: the kernel would have to drop it before it writes.
    fn settle(&self, image: &Path) -> Result<()> {
        nix::unistd::sync();
        for file in self.images.below(image) {
            image::cool(file)?;
            if !self.scenario.direct {
                image::warm(file)?;
            }
        }
        Ok(())
    }

    fn job(&self, case: &Case, load: &Load, socket: &Path) -> Job {
        let (limit, warmup) = match load.requests {
            None => (Limit::Time(self.time), self.warmup),
            Some(requests) => {
                let part = (self.time.as_secs_f64() / FULL_SECONDS).min(1.0);
                (Limit::Requests((requests as f64 * part).ceil() as u64), Duration::ZERO)
            }
        };
        Job { range: load.range, ..case.job(socket, limit, warmup) }
    }

    fn settings(&self, side: Side, image: &Path, queues: u16) -> Result<Settings> {
        let own_choice = side.is_raw() || self.scenario.default_caches;
        Ok(Settings {
            format: format(side).to_owned(),
            direct: self.scenario.direct,
            queues,
            l2_cache: if own_choice { 0 } else { image::l2_cache(image)? },
            key: self.images.key().filter(|_| side == Side::Ours),
        })
    }
}

impl Programs {
    /// The daemon of a side.
    pub fn of(&self, side: Side) -> Option<&Template> {
        match side {
            Side::Ours | Side::OursRaw | Side::OursPlain => Some(&self.ours),
            Side::Peer => Some(&self.peer),
            Side::Bare => None,
        }
    }
}

/// How the name of a side's image ends.
fn file(side: Side) -> &'static str {
    if side == Side::OursPlain { "plain" } else { format(side) }
}

fn format(side: Side) -> &'static str {
    if side.is_raw() { "raw" } else { "qcow2" }
}
