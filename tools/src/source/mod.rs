//! Images as the command line names them: a path, `file:` before one, `json:{...}`, or an option string (`--image-opts`).
//!
//! [`options`] turns text into options, [`node`] takes from them what this program serves and refuses the rest. Only what
//! people type is read here: a name that is found inside an image is a plain path or nothing (`qcow::gate`).

mod blkdebug;
mod json;
mod node;
mod options;
mod qcow2;

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub use node::{Below, Source};
pub use options::Options;

/// Protocols that QEMU knows and this program does not.
pub const FOREIGN_PROTOCOLS: [&str; 26] = [
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "copy-before-write",
    "copy-on-read",
    "fat",
    "ftp",
    "ftps",
    "gluster",
    "gluster+rdma",
    "gluster+tcp",
    "gluster+unix",
    "http",
    "https",
    "iscsi",
    "nbd",
    "nbd+tcp",
    "nbd+unix",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "quorum",
    "rbd",
    "ssh",
];

/// Where an image lies that the command line names `name`.
enum Name {
    Path(PathBuf),
    /// A file behind a blkdebug without a configuration.
    Debugged(PathBuf),
    Json(String),
}

/// What `name` is.
///
/// # Errors
/// In QEMU's words where it has some: the protocol before the first colon is none that is served.
fn name(name: &Path) -> Result<Name, String> {
    let bytes = name.as_os_str().as_bytes();
    let protocol = bytes.iter().position(|byte| b":/".contains(byte));
    let Some(colon) = protocol.filter(|&at| bytes[at] == b':') else {
        return Ok(Name::Path(name.to_owned()));
    };
    let (protocol, rest) = (String::from_utf8_lossy(&bytes[..colon]), &bytes[colon + 1..]);
    match &*protocol {
        "json" => Ok(Name::Json(String::from_utf8_lossy(rest).into_owned())),
        "file" | "host_device" | "host_cdrom" => Ok(Name::Path(OsStr::from_bytes(rest).into())),
        "blkdebug" if rest.starts_with(b":") => {
            Ok(Name::Debugged(OsStr::from_bytes(&rest[1..]).into()))
        }
        known if FOREIGN_PROTOCOLS.contains(&known) => {
            Err(format!("protocol '{known}' is not supported"))
        }
        unknown => Err(format!("Unknown protocol '{unknown}'")),
    }
}

/// The file that a new image called `given` is to be made of.
///
/// # Errors
/// As for names of images that exist; and `json:{...}` names no file that could be made.
pub fn new_file(given: &Path) -> Result<PathBuf, String> {
    match name(given)? {
        Name::Path(path) => Ok(path),
        Name::Json(_) => Err("Unknown protocol 'json'".to_owned()),
        Name::Debugged(_) => Err("protocol 'blkdebug' is not supported".to_owned()),
    }
}

/// The image that the command line calls `given`, a file's name or, with `image_opts`, an option string.
///
/// # Errors
/// In QEMU's words where it has some, without the name.
pub fn parse(given: &Path, format: Option<&str>, image_opts: bool) -> Result<Source, String> {
    let mut options = Options::default();
    if image_opts {
        let text = given.as_os_str().to_string_lossy();
        options = Options::parse(&text, Some("file"));
    } else if let Some(format) = format {
        options.set("driver", format);
    }
    with_options((!image_opts).then_some(given), options)
}

/// The image in the file called `given`, if a file is called anything, that `options` say more about.
///
/// # Errors
/// As for [`parse`].
pub fn with_options(given: Option<&Path>, mut options: Options) -> Result<Source, String> {
    let path = match given.map(name).transpose()? {
        Some(Name::Json(text)) => {
            options.add_missing(json::parse(&text)?);
            None
        }
        Some(Name::Path(path)) => Some(path),
        Some(Name::Debugged(path)) => {
            if options.get("driver") != Some(blkdebug::DRIVER) {
                options.set("file.driver", blkdebug::DRIVER);
            }
            Some(path)
        }
        None => None,
    };
    node::top(path, options)
}

/// `text` as a path.
fn to_path(text: &str) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(text.as_bytes().to_vec()))
}
