//! Logging to stderr, and keeping a guest from filling it.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use qcow::sync::lock;
use tracing::Level;

use crate::args::LogFormat;

/// How often something that repeats is shown.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Starts logging in `format`, from `level` up.
pub fn start(format: LogFormat, level: Level) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr);
    match format {
        LogFormat::Plain => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

/// Lets one message through per second, and counts the others.
#[derive(Debug, Default)]
pub struct RateLimit {
    state: Mutex<Option<Shown>>,
}

#[derive(Debug)]
struct Shown {
    at: Instant,
    suppressed: u64,
}

impl RateLimit {
    /// Whether to show a message now: how many were kept back since the last one that was.
    pub fn allow(&self) -> Option<u64> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        match &mut *state {
            Some(shown) if now - shown.at < REPORT_INTERVAL => {
                shown.suppressed += 1;
                None
            }
            shown => {
                let suppressed = shown.as_ref().map_or(0, |s| s.suppressed);
                *shown = Some(Shown { at: now, suppressed });
                Some(suppressed)
            }
        }
    }
}
