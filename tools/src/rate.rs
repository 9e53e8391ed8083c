//! `-r`: no more than so many bytes a second.

use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome};
use crate::size::{self, SizeError};

/// A limit of bytes per second, and what has been done since it began.
#[derive(Debug)]
pub struct Rate {
    per_second: u64,
    done: u64,
    started: Instant,
}

impl Rate {
    /// The limit that `text` gives; none of zero.
    pub fn parse(text: &str) -> Outcome<Self> {
        let limit = size::parse(text).and_then(|limit| match i64::try_from(limit) {
            Ok(_) => Ok(limit),
            Err(_) => Err(SizeError::OutOfRange),
        });
        let per_second = limit.map_err(|error| match error {
            SizeError::Malformed => {
                Failure::new(format!("Invalid rate limit specified: '{text}'."))
            }
            SizeError::OutOfRange => Failure::new(format!(
                "Invalid rate limit specified. Must be between 0 and {}.",
                i64::MAX
            )),
        })?;
        Ok(Self { per_second, done: 0, started: Instant::now() })
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
