//! One frontend, from the moment it is accepted until it is gone.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use qcow::sync::lock;
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::backend::Backend;
use crate::protocol::Protocol;
use crate::ring_set::RingSet;
use crate::stop::Stop;

/// Serves the frontend behind `stream`, and finishes whatever it leaves in flight.
pub fn serve(stream: UnixStream, backend: &Backend, stop: &Stop) {
    let device = &*backend.device;
    tracing::debug!("{}: a frontend has connected", device.name());
    let own = match stream.try_clone() {
        Ok(own) => own,
        Err(e) => {
            let why = qcow::error::reason(&e);
            tracing::warn!(
                "{}: frontend cut off: cannot duplicate its socket: {why}",
                device.name()
            );
            return;
        }
    };
    let _guard = stop.guard(own);
    let protocol = Arc::new(Mutex::new(Protocol::new(device, RingSet::new(backend))));
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
    lock(&protocol).end();
    tracing::debug!("{}: the frontend is gone", device.name());
}

fn is_hangup(error: &Error) -> bool {
    matches!(error, Error::Disconnected | Error::SocketBroken(_) | Error::PartialMessage)
}
