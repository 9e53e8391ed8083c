//! Simulation: the real engine on a simulated disk that reorders, fails, kills and loses power, against a model that knows
//! for each sector which values it may hold.
//!
//! * [`schedules`]: requests that overlap in time and place, in orders that follow a seed, linearizable for each sector.
//! * [`crash`]: the power is cut at every event of a case, and the states that may be left are opened, checked, compared,
//!   used and closed; QEMU looks at a sample ([`qemu`]).
//! * [`kills`]: the process is killed at every event of a case, and its redo log is replayed; [`redo`]: logs that must not
//!   be, because they are stale or hostile.
//! * [`sequences`]: every sequence of two requests, with power cuts at every event.
//! * [`faults`]: a fault at every operation of a case.
//! * [`snapshots`]: internal snapshots come, go and become the disk, with power cuts at every event;
//!   [`snapshot_faults`]: with a fault at every operation; [`snapshot_kills`]: the process is killed at every event.
//! * `bugs` (with the feature `seeded-bugs`): bugs that engines have really had, each to be found by one of the above.
//!
//! Every case is a line of text that says all. What fails is made small, and the command that repeats it is printed.
//! `SIMULATION_SEED` chooses other cases, `SOAK_FACTOR` more of them, `SIMULATION_SHARE=20` one in 20.

#[cfg(feature = "seeded-bugs")]
mod bugs;
mod case;
mod crash;
mod creation;
mod cut;
mod drive;
mod faults;
mod history;
mod hunt;
mod kills;
mod memory;
mod qemu;
mod recover;
mod redo;
mod regressions;
mod schedules;
mod sequences;
mod shrink;
mod snapshot_faults;
mod snapshot_kills;
mod snapshots;
mod start;
