//! Where what the guest reads from its serial line comes from, and the thread that waits for it.

use std::io;
use std::path::Path;
use std::thread::Builder;

use anyhow::Result;

use super::{Client, RawTerminal, SerialLine};
use crate::listener::Listener;
use crate::sandbox::{self, Role};

/// Where it comes from.
#[derive(Debug)]
pub enum Input {
    /// Nobody says anything.
    Nothing,
    /// This program's standard input.
    Terminal,
    /// Clients, one after the other.
    Socket(Listener, Client),
}

/// As long as it is there, somebody listens. A terminal is as it was afterwards, and a socket's file gone.
#[derive(Debug)]
pub struct Listening {
    _terminal: Option<RawTerminal>,
    socket: Option<Listener>,
}

impl Listening {
    /// Where the socket's file is, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.socket.as_ref().map(Listener::path)
    }
}

impl Input {
    /// Gives it to `line`, from a thread.
    ///
    /// # Errors
    /// There can be no thread, or the terminal is not to be had.
    pub fn listen(self, line: SerialLine) -> Result<Listening> {
        match self {
            Self::Nothing => Ok(Listening { _terminal: None, socket: None }),
            Self::Terminal => {
                let terminal = RawTerminal::enter()?;
                start(Role::Listener, move || line.feed(io::stdin()))?;
                Ok(Listening { _terminal: terminal, socket: None })
            }
            Self::Socket(listener, client) => {
                let socket = listener.socket().try_clone()?;
                start(Role::Server, move || {
                    for stream in socket.incoming().flatten() {
                        if let Ok(said) = client.connect(stream) {
                            line.feed(said);
                        }
                        client.disconnect();
                    }
                })?;
                Ok(Listening { _terminal: None, socket: Some(listener) })
            }
        }
    }
}

fn start(role: Role, listen: impl FnOnce() + Send + 'static) -> Result<()> {
    let body = move || match sandbox::confine_thread(role) {
        Ok(()) => listen(),
        Err(error) => eprintln!("vmm: keys are not heard: cannot confine a thread: {error:#}"),
    };
    Builder::new().name("serial".to_owned()).spawn(body)?;
    Ok(())
}
