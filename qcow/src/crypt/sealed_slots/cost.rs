//! What a new key slot makes a guess of its passphrase cost.
//!
//! As with LUKS, the time is given, and what takes it is measured. Memory stays the same, so that what one machine makes,
//! another one with less of it opens; passes are added.

use std::time::Duration;

use super::argon::{Argon, SALT_LEN};
use crate::crypt::processor_time::processor_time;
use crate::crypt::secret::Passphrase;
use crate::error::Result;
use crate::limits::ARGON_PASSES_MAX;

/// Memory in KiB, passes at least, and lanes: RFC 9106's second recommendation (section 4) but for the lanes, which are
/// computed one after the other here, so that more of them would only help those who guess.
const LEAST: Argon = Argon { memory_kib: 64 << 10, passes: 3, lanes: 1 };

/// What a guess of a passphrase is to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotCost {
    /// So much time on this machine, or a little less; at least three passes over 64 MiB.
    Time(Duration),
    /// Exactly that.
    Exactly(Argon),
}

impl Default for SlotCost {
    /// Two seconds.
    fn default() -> Self {
        Self::Time(Duration::from_secs(2))
    }
}

impl SlotCost {
    /// The cheapest that works: for tests.
    pub const TINY: Self = Self::Exactly(Argon { memory_kib: 8, passes: 1, lanes: 1 });

    /// Parameters of a slot.
    pub(super) fn argon(self) -> Result<Argon> {
        match self {
            Self::Exactly(argon) => Ok(argon),
            Self::Time(time) => Ok(Argon { passes: passes(time, time_of_a_pass()?), ..LEAST }),
        }
    }
}

/// Passes that take `time`, if one takes `pass`.
fn passes(time: Duration, pass: Duration) -> u32 {
    let count = time.as_nanos() / pass.as_nanos().max(1);
    count.clamp(LEAST.passes.into(), ARGON_PASSES_MAX.into()) as u32
}

/// What one pass takes, with all that is done once.
fn time_of_a_pass() -> Result<Duration> {
    let passphrase = Passphrase::read(&b"measured"[..])?;
    let start = processor_time();
    Argon { passes: 1, ..LEAST }.key(&passphrase, &[0; SALT_LEN])?;
    Ok(processor_time().saturating_sub(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_time_is_more_passes_within_limits() {
        let millis = Duration::from_millis;
        assert_eq!(passes(millis(2000), millis(100)), 20);
        assert_eq!(passes(millis(2000), millis(1900)), LEAST.passes);
        assert_eq!(passes(Duration::ZERO, millis(1)), LEAST.passes);
        assert_eq!(passes(Duration::MAX, Duration::ZERO), ARGON_PASSES_MAX);
        assert_eq!(passes(Duration::from_secs(1 << 40), millis(1)), ARGON_PASSES_MAX);
        LEAST.check().unwrap();
    }
}
