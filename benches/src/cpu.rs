//! CPU time of a process, ours or another's.

use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::{Error, Result};

/// The clock that counts a process's CPU time: user and system, of all its threads, those that
/// ended and the kernel's io_uring workers for it included. Nanoseconds, where `/proc/PID/stat`
/// counts in steps of 10 ms.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// The clock of process `pid`.
    pub fn of(pid: i32) -> Result<Self> {
        let clock = clock_getcpuclockid(Pid::from_raw(pid))
            .map_err(Error::system("find the CPU clock of the server process"))?;
        Ok(Self(clock))
    }

    /// The clock of this process.
    pub fn own() -> Self {
        Self(ClockId::CLOCK_PROCESS_CPUTIME_ID)
    }

    /// CPU time spent so far.
    pub fn read(self) -> Result<Duration> {
        let time = clock_gettime(self.0)
            .map_err(Error::system("read the CPU clock (did the server process end?)"))?;
        Ok(Duration::from(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_clock_is_the_same_by_process_id() {
        let before = CpuClock::own().read().unwrap();
        let by_pid = CpuClock::of(std::process::id() as i32).unwrap().read().unwrap();
        let after = CpuClock::own().read().unwrap();
        assert!(before <= by_pid && by_pid <= after);
    }
}
