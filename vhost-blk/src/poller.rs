//! Looking for more work before going to sleep, for as long as that pays.
//!
//! Going to sleep and being woken costs more than a short request does: the guest's kick, an interrupt of another core, two
//! changes of the thread. So a queue with nothing to do looks again for a while. How long, it learns from its sleeps: one
//! that ended so soon that looking on would have spared it makes the next look longer; a long one ends the habit. A queue
//! that is idle, or whose requests take long, looks at nothing and costs nothing.

use std::time::{Duration, Instant};

/// The longest look. Sleeping and waking take about a quarter of it, so at the worst a look costs a few of them.
const LOOK_MAX: Duration = Duration::from_micros(32);
/// The first look after a short sleep.
const LOOK_MIN: Duration = Duration::from_micros(4);

/// Decides whether to look again or to sleep.
#[derive(Debug, Default)]
pub struct Poller {
    /// How long to look before sleeping.
    look: Duration,
    /// Since when there has been nothing to do.
    idle_since: Option<Instant>,
    /// Whether the time from `idle_since` on is spent asleep.
    sleeping: bool,
}

impl Poller {
    /// Notes that there was something to do at `now`.
    pub fn busy(&mut self, now: impl FnOnce() -> Instant) {
        if std::mem::take(&mut self.sleeping)
            && let Some(since) = self.idle_since
        {
            self.learn(now().saturating_duration_since(since));
        }
        self.idle_since = None;
    }

    /// Notes that there is nothing to do at `now`; whether to look again rather than to sleep.
    pub fn looks_again(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.sleeping {
            return false;
        }
        let now = now();
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.look {
            return true;
        }
        self.sleeping = true;
        false
    }

    /// Learns from having had nothing to do for `idle` and having slept in that time.
    fn learn(&mut self, idle: Duration) {
        self.look = if idle <= LOOK_MAX {
            (self.look * 2).clamp(LOOK_MIN, LOOK_MAX)
        } else {
            // Looked in vain. Half, and soon nothing, so that one pause in a stream of requests does not end the habit.
            Some(self.look / 2).filter(|look| *look >= LOOK_MIN).unwrap_or_default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing to do for `idle`, looked at every microsecond; for how long it was looked at.
    fn pause(poller: &mut Poller, start: &mut Instant, idle: Duration) -> Duration {
        let end = *start + idle;
        let mut looked = Duration::ZERO;
        while poller.looks_again(|| *start + looked) && *start + looked < end {
            looked += Duration::from_micros(1);
        }
        *start = end;
        poller.busy(|| end);
        looked
    }

    #[test]
    fn short_pauses_come_to_be_bridged_and_long_ones_slept_through() {
        let (mut poller, mut now) = (Poller::default(), Instant::now());
        let short = Duration::from_micros(10);
        assert_eq!(pause(&mut poller, &mut now, short), Duration::ZERO, "nothing is known yet");
        for _ in 0..10 {
            pause(&mut poller, &mut now, short);
        }
        assert_eq!(pause(&mut poller, &mut now, short), short);
        let long = Duration::from_millis(10);
        for _ in 0..10 {
            pause(&mut poller, &mut now, long);
        }
        assert_eq!(pause(&mut poller, &mut now, long), Duration::ZERO);
    }

    #[test]
    fn a_sleeper_that_is_woken_for_nothing_sleeps_on() {
        let (mut poller, now) = (Poller::default(), Instant::now());
        assert!(!poller.looks_again(|| now));
        assert!(!poller.looks_again(|| now + Duration::from_secs(1)));
    }
}
