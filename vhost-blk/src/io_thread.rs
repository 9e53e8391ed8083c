//! Threads that do I/O: each has its io_uring, and is confined, before it counts as started, so that a host that is short of
//! descriptors or memory is found out at the start, and not by a guest.

use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, anyhow};
use qcow::disk::uring;

/// Starts a thread called `name` that does `work` on a ring of its own, after `confine` has succeeded.
///
/// # Errors
/// The host has no thread or no io_uring to give, or `confine` fails; then `work` is not done.
pub fn spawn(
    name: String,
    confine: impl FnOnce() -> Result<()> + Send + 'static,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    spawn_without_ring(name, || prepare_this_thread().and_then(|()| confine()), work)
}

/// [`spawn`] for a thread that does no I/O.
pub fn spawn_without_ring(
    name: String,
    confine: impl FnOnce() -> Result<()> + Send + 'static,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    let what = format!("cannot start the thread '{name}'");
    let (report, outcome) = channel();
    let body = move || {
        let prepared = confine();
        let ready = prepared.is_ok();
        // It fails only while the process ends.
        let _ = report.send(prepared);
        if ready {
            work();
        }
    };
    let thread = Builder::new().name(name).spawn(body).with_context(|| what.clone())?;
    outcome.recv()?.context(what)?;
    Ok(thread)
}

/// Sets up the ring of the calling thread, before it opens anything.
pub fn prepare_this_thread() -> Result<()> {
    uring::set_up_ring().map_err(|e| ring_error(&e))
}

fn ring_error(error: &std::io::Error) -> anyhow::Error {
    anyhow!(
        "cannot set up an io_uring: {} (is kernel.io_uring_disabled set, or 'ulimit -Hn' too low?)",
        qcow::error::reason(error)
    )
}
