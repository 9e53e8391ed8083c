//! How many rounds PBKDF2 makes for a new key slot: so many that a guess takes an attacker time.
//!
//! As in QEMU, the time is given and the rounds are measured, in processor time of this thread.

use std::time::Duration;

use crate::crypt::hash::Hash;
use crate::crypt::processor_time::processor_time;
use crate::limits::PBKDF2_ITERATIONS_MAX;

/// Fewest rounds (QEMU's `QCRYPTO_BLOCK_LUKS_MIN_SLOT_KEY_ITERS`).
const ITERATIONS_MIN: u32 = 1000;
/// Rounds that are measured first, and how much processor time a measurement has to take.
const FIRST_ITERATIONS: u32 = 1 << 12;
const MEASURED_TIME: Duration = Duration::from_millis(20);

/// What a guess of a passphrase is to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// So much time on this machine.
    Time(Duration),
    /// So many rounds: for tests.
    Iterations(u32),
}

impl Default for Cost {
    /// QEMU's: two seconds.
    fn default() -> Self {
        Self::Time(Duration::from_secs(2))
    }
}

impl Cost {
    /// A part of it.
    pub(super) fn divided(self, by: u32) -> Self {
        match self {
            Self::Time(time) => Self::Time(time / by),
            Self::Iterations(count) => Self::Iterations(count / by),
        }
    }

    /// Rounds for a key of `len` bytes.
    pub(super) fn iterations(self, hash: Hash, len: usize) -> u32 {
        let count = match self {
            Self::Iterations(count) => u64::from(count),
            Self::Time(time) => {
                let (iterations, taken) = measure(hash, len);
                let count = u128::from(iterations) * time.as_nanos() / taken.as_nanos().max(1);
                u64::try_from(count).unwrap_or(u64::MAX)
            }
        };
        count.clamp(ITERATIONS_MIN.into(), PBKDF2_ITERATIONS_MAX.into()) as u32
    }
}

/// So many rounds took so long.
fn measure(hash: Hash, len: usize) -> (u32, Duration) {
    let mut iterations = FIRST_ITERATIONS;
    let mut key = vec![0; len];
    loop {
        let start = processor_time();
        hash.pbkdf2(&[b'x'; 16], &[0; 32], iterations, &mut key);
        let taken = processor_time().saturating_sub(start);
        if taken >= MEASURED_TIME || iterations >= PBKDF2_ITERATIONS_MAX {
            return (iterations, taken);
        }
        iterations *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_time_is_more_rounds_within_limits() {
        let ask = |cost: Cost| cost.iterations(Hash::Sha256, 64);
        assert_eq!(ask(Cost::Time(Duration::ZERO)), ITERATIONS_MIN);
        assert_eq!(ask(Cost::Iterations(1)), ITERATIONS_MIN);
        assert_eq!(ask(Cost::Iterations(u32::MAX)), PBKDF2_ITERATIONS_MAX);
        assert!(ask(Cost::Time(Duration::from_secs(1 << 20))) == PBKDF2_ITERATIONS_MAX);
        let (short, long) = (Duration::from_millis(20), Duration::from_millis(400));
        assert!(ask(Cost::Time(long)) > 2 * ask(Cost::Time(short)));
    }
}
