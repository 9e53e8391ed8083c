//! The socket and the thread behind it: one client after the other.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result};

use super::http::{self, Request, Response};
use super::{Call, Verb};
use crate::listener::Listener;
use crate::sandbox::{self, Role};

/// How long a client may take for a request before the next one has its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where clients of the API come.
#[derive(Debug)]
pub struct Server(Listener);

impl Server {
    /// Listens at `path`, where nothing may be.
    pub fn bind(path: &Path) -> Result<Self> {
        Ok(Self(Listener::bind(path).context("cannot make the API socket")?))
    }

    /// Where its socket is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Serves clients from a thread; each call goes to `machine`, which says whether it takes any.
    pub fn serve(&self, machine: impl Fn(Call) -> bool + Send + 'static) -> Result<()> {
        let socket = self.0.socket().try_clone()?;
        let body = move || {
            if let Err(error) = sandbox::confine_thread(Role::Server) {
                return eprintln!("vmm: there is no API: cannot confine a thread: {error:#}");
            }
            for stream in socket.incoming().flatten() {
                // A client that breaks off, or sends what is no request, is its own concern.
                let _ = serve_client(stream, &machine);
            }
        };
        std::thread::Builder::new().name("api".to_owned()).spawn(body)?;
        Ok(())
    }
}

fn serve_client(mut stream: UnixStream, machine: &impl Fn(Call) -> bool) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut rest = Vec::new();
    loop {
        let request = match http::read(&mut stream, &mut rest) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => {
                let response = Response::error(400, &format!("{error:#}"));
                return http::write(&mut stream, &response, false);
            }
        };
        http::write(&mut stream, &answer(&request, machine), request.keep_alive)?;
        if !request.keep_alive {
            return Ok(());
        }
    }
}

fn answer(request: &Request, machine: &impl Fn(Call) -> bool) -> Response {
    let verb = match parse(request) {
        Ok(verb) => verb,
        Err(response) => return response,
    };
    let (answer, answered) = channel();
    let gone = || Response::error(409, "the machine has ended");
    if machine(Call { verb, answer }) { answered.recv().unwrap_or_else(|_| gone()) } else { gone() }
}

fn parse(request: &Request) -> Result<Verb, Response> {
    let (method, verb) = match request.path.as_str() {
        "/v1/info" => ("GET", Verb::Info),
        "/v1/pause" => ("POST", Verb::Pause),
        "/v1/resume" => ("POST", Verb::Resume),
        "/v1/shutdown" if request.body["force"] == true => ("POST", Verb::PullPlug),
        "/v1/shutdown" => ("POST", Verb::PowerButton),
        path => return Err(Response::error(404, &format!("there is no {path}"))),
    };
    if request.method == method {
        Ok(verb)
    } else {
        Err(Response::error(405, &format!("{} wants {method}", request.path)))
    }
}
