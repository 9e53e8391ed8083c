//! How a guest's machine ends, and what else happens to it.

use crate::api::Call;

/// Why there is nothing left to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered its machine off.
    PoweredOff,
    /// The guest reset its machine.
    Reset,
    /// The guest crashed: what its processor or KVM says of that.
    Crashed(String),
    /// Somebody pulled the plug: the API, or a signal.
    Unplugged,
}

/// What the machine's thread waits for.
#[derive(Debug)]
pub enum Event {
    /// The machine ends.
    Ended(Outcome),
    /// Somebody wants something of it.
    Called(Call),
}
