//! Which host files an image may be made of.
//!
//! The user names the top image. Everything below it is named by bytes inside an image, which may be hostile: those
//! names are plain local paths or nothing, and a [`BackingPolicy`] says which directories they may lead to.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::disk::uring::{Access, CacheMode, UringDisk};
use crate::error::{Error, ErrorKind, Result};

/// Opens the files of a chain.
pub trait Gate {
    /// What the files are opened as.
    type Disk: Disk;

    /// Opens the image that the user named.
    fn open_image(&self, path: &Path, writable: bool) -> Result<Self::Disk>;

    /// Opens the file that `image` names as its backing file, read-only, and says where it is.
    fn open_backing(&self, image: &Path, name: &OsStr) -> Result<(PathBuf, Self::Disk)>;

    /// Opens the file that `image` names as its external data file, and says where it is.
    fn open_data(
        &self,
        image: &Path,
        name: &OsStr,
        writable: bool,
    ) -> Result<(PathBuf, Self::Disk)>;
}

/// A file that is open already, and nothing else: whatever an image names is refused.
#[derive(Clone, Debug)]
pub struct OneFile<D>(pub D);

impl<D: Disk + Clone> Gate for OneFile<D> {
    type Disk = D;

    fn open_image(&self, _: &Path, _: bool) -> Result<D> {
        Ok(self.0.clone())
    }

    fn open_backing(&self, image: &Path, _: &OsStr) -> Result<(PathBuf, D)> {
        Err(denied(image, "backing files are not allowed here"))
    }

    fn open_data(&self, image: &Path, _: &OsStr, _: bool) -> Result<(PathBuf, D)> {
        Err(denied(image, "external data files are not allowed here"))
    }
}

/// Which files an image may name as its backing file or as its external data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackingPolicy {
    /// None.
    Deny,
    /// Files in the image's own directory or below, and in or below these.
    Beside(Vec<PathBuf>),
    /// Any local file: for tools that a user runs on images of his own.
    Anywhere,
}

/// The host's file system.
#[derive(Clone, Debug)]
pub struct HostGate {
    /// Whether I/O goes through the page cache.
    pub cache: CacheMode,
    /// Take no locks: read an image that somebody else may be writing (`--force-share`), or trust that nobody does.
    pub shared: bool,
    /// Which files an image may name.
    pub backing: BackingPolicy,
}

impl Gate for HostGate {
    type Disk = UringDisk;

    fn open_image(&self, path: &Path, writable: bool) -> Result<UringDisk> {
        let access = match (writable, self.shared) {
            (true, true) => Access::ReadWriteShared,
            (true, false) => Access::ReadWrite,
            (false, true) => Access::ReadOnlyShared,
            (false, false) => Access::ReadOnly,
        };
        UringDisk::open(path, access, self.cache)
    }

    fn open_backing(&self, image: &Path, name: &OsStr) -> Result<(PathBuf, UringDisk)> {
        let path = resolve_name(image, name)?;
        let real = self.admit(image, &path, "backing file")?;
        let disk = self.open_image(&real, false)?;
        Ok((path, disk))
    }

    fn open_data(
        &self,
        image: &Path,
        name: &OsStr,
        writable: bool,
    ) -> Result<(PathBuf, UringDisk)> {
        let path = resolve_data_name(image, name)?;
        let real = self.admit(image, &path, "external data file")?;
        let disk = self.open_image(&real, writable)?;
        Ok((path, disk))
    }
}

impl HostGate {
    /// The file that `path` leads to, if it may be opened. Links are followed here and not once more at the opening.
    fn admit(&self, image: &Path, path: &Path, what: &str) -> Result<PathBuf> {
        let extra = match &self.backing {
            BackingPolicy::Anywhere => return Ok(path.to_owned()),
            BackingPolicy::Deny => {
                return Err(denied(path, &format!("{what}s are not allowed here")));
            }
            BackingPolicy::Beside(extra) => extra,
        };
        let real = canonical(path)?;
        let own = canonical(image)?;
        let own = own.parent().unwrap_or(Path::new("/"));
        let mut allowed = vec![own.to_owned()];
        for directory in extra {
            allowed.push(canonical(directory)?);
        }
        if allowed.iter().any(|directory| real.starts_with(directory)) {
            return Ok(real);
        }
        Err(denied(path, &format!("the {what} lies outside the directories that are allowed")))
    }
}

/// The path that `name`, found inside `image` as its backing file, stands for: relative names start from the image's
/// directory.
pub fn resolve_name(image: &Path, name: &OsStr) -> Result<PathBuf> {
    let path = plain_path(image, name, "backing file")?;
    Ok(match image.parent() {
        Some(directory) if path.is_relative() => directory.join(path),
        _ => path.to_owned(),
    })
}

/// The path that `name`, found inside `image` as its external data file, stands for: as in QEMU, relative names start
/// from the working directory.
pub fn resolve_data_name(image: &Path, name: &OsStr) -> Result<PathBuf> {
    plain_path(image, name, "external data file").map(Path::to_owned)
}

/// `name` as the path of a local file; `what` the image `image` names with it.
fn plain_path<'n>(image: &Path, name: &'n OsStr, what: &str) -> Result<&'n Path> {
    let text = name.as_bytes();
    let plain = text.strip_prefix(b"file:").unwrap_or(text);
    let before_slash = plain.split(|&b| b == b'/').next().unwrap_or_default();
    if before_slash.contains(&b':') || plain.contains(&0) || plain.is_empty() {
        let shown = String::from_utf8_lossy(text);
        let message = format!("{what} '{shown}': only plain local paths are opened");
        return Err(Error::new(ErrorKind::Denied, message).in_file(image));
    }
    Ok(Path::new(OsStr::from_bytes(plain)))
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| Error::io("Could not open", &e).in_file(path))
}

fn denied(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Denied, why).in_file(path)
}
