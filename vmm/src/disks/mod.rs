//! The disks of a machine, and who serves each: a daemon of our own, or a backend that runs already.

mod keeper;
mod spec;

pub use keeper::Keeper;
pub use spec::{DiskSpec, VhostUserSpec};
