//! Makes a failing case smaller: leaves requests out, shortens the others, lets fewer run at a time; and tries other seeds,
//! because with every change the order of events is another one.

use std::time::{Duration, Instant};

use crate::case::Case;

/// How long that may take.
const TIME_MAX: Duration = Duration::from_secs(12);
/// Few enough requests.
const ENOUGH: usize = 8;

/// The smallest case found that still fails, and its message. `seeds` are tried for each step.
pub fn shrink(
    case: Case,
    message: String,
    seeds: u64,
    fails: impl Fn(&Case) -> Option<String>,
) -> (Case, String) {
    let mut shrinking =
        Shrinking { best: (case, message), seeds, fails: &fails, start: Instant::now() };
    shrinking.leave_requests_out();
    shrinking.simplify();
    shrinking.best
}

struct Shrinking<'f> {
    best: (Case, String),
    seeds: u64,
    fails: &'f dyn Fn(&Case) -> Option<String>,
    start: Instant,
}

impl Shrinking<'_> {
    fn leave_requests_out(&mut self) {
        let mut chunk = self.best.0.ops.len() / 2;
        while chunk > 0 && self.best.0.ops.len() > ENOUGH {
            let before = self.best.0.ops.len();
            let mut at = 0;
            while at < self.best.0.ops.len() {
                let mut smaller = self.best.0.clone();
                smaller.ops.drain(at..(at + chunk).min(smaller.ops.len()));
                if !self.adopt(smaller) {
                    at += chunk;
                }
            }
            // What could not be left out before may be left out now.
            if chunk > 1 || self.best.0.ops.len() == before {
                chunk /= 2;
            }
        }
    }

    fn simplify(&mut self) {
        let mut alone = self.best.0.clone();
        alone.depth = 1;
        self.adopt(alone);
        for index in 0..self.best.0.ops.len() {
            for count in [1, 2, 4, 8] {
                let mut shorter = self.best.0.clone();
                if shorter.ops[index].shorten(count) && self.adopt(shorter) {
                    break;
                }
            }
        }
    }

    /// Goes on with `smaller` if it fails with any of the seeds.
    fn adopt(&mut self, mut smaller: Case) -> bool {
        if smaller.ops.is_empty() || smaller == self.best.0 || self.start.elapsed() > TIME_MAX {
            return false;
        }
        for seed in std::iter::once(smaller.seed).chain(1..self.seeds) {
            smaller.seed = seed;
            if let Some(message) = (self.fails)(&smaller) {
                self.best = (smaller, message);
                return true;
            }
        }
        false
    }
}
