//! A UNIX socket on which this program listens, for as long as it does.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A listening socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, where nothing may be.
    pub fn bind(path: &Path) -> Result<Self> {
        let socket = UnixListener::bind(path).with_context(|| path.display().to_string())?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Where clients come.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Where its file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have removed it.
        let _ = fs::remove_file(&self.path);
    }
}
