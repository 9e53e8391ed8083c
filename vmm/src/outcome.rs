//! How a guest's machine ends.

/// Why there is nothing left to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered its machine off.
    PoweredOff,
    /// The guest reset its machine.
    Reset,
    /// The guest crashed: what its processor or KVM says of that.
    Crashed(String),
}
