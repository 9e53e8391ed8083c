//! What `--disk` and `--vhost-user` say.

use std::path::PathBuf;
use std::str::FromStr;

use crate::virtio::DeviceKind;

/// A disk image that a daemon of our own is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The image.
    pub path: PathBuf,
    /// Whether it is never written to.
    pub readonly: bool,
    /// Queues; one per processor if nothing is said.
    pub queues: Option<u16>,
    /// The daemon's `--cache`.
    pub cache: Option<String>,
    /// The daemon's `--format`.
    pub format: Option<String>,
}

/// A backend that runs already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserSpec {
    /// Where it listens.
    pub socket: PathBuf,
    /// Queues; one per processor, as far as it has them, if nothing is said.
    pub queues: Option<u16>,
    /// What it is.
    pub kind: DeviceKind,
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, options) = split(text)?;
        let (mut readonly, mut queues, mut cache, mut format) = (false, None, None, None);
        for option in options {
            match option.split_once('=') {
                None if option == "readonly" => readonly = true,
                Some(("queues", count)) => queues = Some(parse_queues(count)?),
                Some(("cache", mode @ ("writeback" | "none" | "unsafe"))) => {
                    cache = Some(mode.to_owned());
                }
                Some(("format", name @ ("qcow2" | "raw"))) => format = Some(name.to_owned()),
                _ => {
                    return Err(format!(
                        "'{option}' is no option of a disk: say readonly, queues=N, \
                         cache=writeback|none|unsafe, or format=qcow2|raw"
                    ));
                }
            }
        }
        Ok(Self { path, readonly, queues, cache, format })
    }
}

impl FromStr for VhostUserSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (socket, options) = split(text)?;
        let (mut queues, mut kind) = (None, DeviceKind::BLOCK);
        for option in options {
            match option.split_once('=') {
                Some(("queues", count)) => queues = Some(parse_queues(count)?),
                Some(("device", number)) => kind = parse_kind(number)?,
                _ => {
                    return Err(format!(
                        "'{option}' is no option of a backend: say queues=N, or device=N"
                    ));
                }
            }
        }
        Ok(Self { socket, queues, kind })
    }
}

/// A path, and the options behind it, each after a comma. As with QEMU, two commas in the path stand for one.
fn split(text: &str) -> Result<(PathBuf, Vec<String>), String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let last = parts.last_mut().expect("there is always one");
        match c {
            ',' if rest.peek() == Some(&',') => {
                rest.next();
                last.push(',');
            }
            ',' => parts.push(String::new()),
            _ => last.push(c),
        }
    }
    let path = parts.remove(0);
    if path.is_empty() { Err("a path is missing".to_owned()) } else { Ok((path.into(), parts)) }
}

fn parse_queues(text: &str) -> Result<u16, String> {
    let count = text.parse().ok().filter(|count| (1..=128).contains(count));
    count.ok_or_else(|| format!("'{text}' is no number of queues: say 1 to 128"))
}

fn parse_kind(text: &str) -> Result<DeviceKind, String> {
    let number = text.parse().ok().filter(|number| (1..=DeviceKind::MAX).contains(number));
    number
        .map(DeviceKind)
        .ok_or_else(|| format!("'{text}' is no virtio device number: say 1 to {}", DeviceKind::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks() {
        let disk: DiskSpec = "a,,b.qcow2,readonly,queues=2,cache=none".parse().expect("good");
        assert_eq!(disk.path, PathBuf::from("a,b.qcow2"));
        assert_eq!(
            (disk.readonly, disk.queues, disk.cache.as_deref()),
            (true, Some(2), Some("none"))
        );
        for bad in ["", ",readonly", "a,queues=0", "a,queues=x", "a,cache=fast", "a,x", "a,"] {
            assert!(bad.parse::<DiskSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn backends() {
        let backend: VhostUserSpec = "s,device=26".parse().expect("good");
        assert_eq!(backend.kind, DeviceKind(26));
        for bad in ["", "s,device=0", "s,device=64", "s,readonly"] {
            assert!(bad.parse::<VhostUserSpec>().is_err(), "{bad}");
        }
    }
}
