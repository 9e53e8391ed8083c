//! The API: HTTP/1.1 and JSON over a UNIX socket, for `curl --unix-socket`.
//!
//! | request | what it does |
//! |---|---|
//! | `GET /v1/info` | what the machine is, and what it does |
//! | `POST /v1/pause` | holds all processors |
//! | `POST /v1/resume` | lets them go on |
//! | `POST /v1/shutdown` | presses the power button; with `{"force": true}` pulls the plug |

mod http;
mod server;

use std::sync::mpsc::Sender;

pub use http::Response;
pub use server::Server;

/// What somebody wants of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// To know what it is and does.
    Info,
    /// To hold all processors.
    Pause,
    /// To let them go on.
    Resume,
    /// To press the power button.
    PowerButton,
    /// To pull the plug.
    PullPlug,
}

/// A verb, and who waits for the answer.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is wanted.
    pub verb: Verb,
    /// Where the answer goes.
    pub answer: Sender<Response>,
}
