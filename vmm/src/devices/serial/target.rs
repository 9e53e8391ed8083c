//! What `--serial` says.

use std::path::PathBuf;
use std::str::FromStr;

/// Where what the guest says goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialTarget {
    /// This program's standard output; its standard input goes to the guest.
    Tty,
    /// Nowhere.
    Off,
    /// A file, made anew.
    File(PathBuf),
    /// Whoever has connected to a UNIX socket, made anew; what they say goes to the guest.
    Socket(PathBuf),
}

impl FromStr for SerialTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "tty" => Ok(Self::Tty),
            None if text == "off" => Ok(Self::Off),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            _ => {
                Err(format!("'{text}' is no serial line: say tty, off, file=PATH, or socket=PATH"))
            }
        }
    }
}
