//! A vhost-user-blk driver in a process of its own: it plays the virtual machine, so that a daemon
//! can be tested and measured without one.
//!
//! - [`session`] asks single requests and waits for each: what a test of a daemon wants. Start at
//!   [`session::Session`].
//! - [`load`] keeps queues full and measures: what `blkload` and `blkcompare` run.
//! - [`compare`] alternates two daemons on equal images and sets their figures side by side.
//! - [`suite`] is what `make bench` runs: the cases that we hold ourselves to, against targets.
//!
//! Below these lie the parts of a driver: [`frontend`] (the vhost-user conversation), [`memory`]
//! (the guest's memory), [`queue`], [`ring`] and [`descriptor`] (split virtqueues, driver side), [`request`]
//! and [`config`] (virtio-blk).

pub mod compare;
pub mod config;
pub mod cpu;
pub mod descriptor;
pub mod error;
pub mod frontend;
pub mod load;
pub mod memory;
pub mod process;
pub mod queue;
pub mod request;
pub mod ring;
pub mod session;
pub mod size;
pub mod suite;

pub use error::{Error, Result};
