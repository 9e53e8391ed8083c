//! `-r`: no more than so many bytes a second.

use std::time::{Duration, Instant};

use crate::bounded::{self, SIZE_MAX};
use crate::failure::Outcome;

/// A limit of bytes per second, and what has been done since it began.
#[derive(Debug)]
pub struct Rate {
    per_second: u64,
    done: u64,
    started: Instant,
}

impl Rate {
    /// A limit that counts from now on; none if it is zero.
    pub fn new(per_second: u64) -> Self {
        Self { per_second, done: 0, started: Instant::now() }
    }

    /// Waits until another `bytes` are within the limit.
    pub fn wait_for(&mut self, bytes: u64) {
        self.done += bytes;
        if self.per_second == 0 {
            return;
        }
        let due = Duration::from_secs_f64(self.done as f64 / self.per_second as f64);
        std::thread::sleep(due.saturating_sub(self.started.elapsed()));
    }
}

/// The bytes per second that `text` gives.
pub fn parse(text: &str) -> Outcome<u64> {
    bounded::parse_size("rate limit", text, 0..=SIZE_MAX)
}
