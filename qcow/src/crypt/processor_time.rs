//! Time that this thread has been given by a processor.
//!
//! What a guess of a passphrase is to cost is measured in it: on a busy machine a key slot is no weaker. This is the only
//! place below the programs that looks at a clock.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// All of it so far.
pub(super) fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("a thread has a usage");
    let micros = |t: TimeVal| {
        Duration::from_secs(t.tv_sec() as u64) + Duration::from_micros(t.tv_usec() as u64)
    };
    micros(usage.user_time()) + micros(usage.system_time())
}
