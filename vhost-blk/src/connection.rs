//! One frontend, from the moment it is accepted until it is gone.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use qcow::sync::lock;
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::device::Device;
use crate::protocol::Protocol;
use crate::rings::Rings;
use crate::stop::Stop;
use crate::worker::Worker;

/// Serves the frontend behind `stream`, and finishes whatever it leaves in flight.
///
/// # Errors
/// A worker is dead, or the host is out of descriptors; what frontends do wrong is no error here.
pub fn serve(stream: UnixStream, device: &Device, workers: &[Worker], stop: &Stop) -> Result<()> {
    tracing::debug!("{}: a frontend has connected", device.name());
    let own = stream.try_clone().context("cannot duplicate the connection")?;
    let _guard = stop.guard(own);
    let protocol = Arc::new(Mutex::new(Protocol::new(device, Rings::new(device, workers))));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&protocol));
    let ended = loop {
        match handler.handle_request() {
            Ok(()) | Err(Error::SocketRetry(_) | Error::ReqHandlerError(_)) => {}
            Err(e) => break e,
        }
    };
    if !is_hangup(&ended) && !stop.is_requested() {
        tracing::warn!("{}: frontend cut off: {ended}", device.name());
    }
    let finished = lock(&protocol).end();
    tracing::debug!("{}: the frontend is gone", device.name());
    finished.context("cannot finish the requests in flight")
}

fn is_hangup(error: &Error) -> bool {
    matches!(error, Error::Disconnected | Error::SocketBroken(_) | Error::PartialMessage)
}
