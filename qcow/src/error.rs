//! The one error of the library: a small kind for programs, a full sentence for people.
//!
//! Callers match on [`ErrorKind`]; messages may grow freely. A message names the offset or field and what is wrong
//! with it; the file's name is added once, by the layer that knows it ([`Error::in_file`]). Errors are cheap to clone,
//! because everyone who waited for a flush gets the same one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

/// What a program needs to know to react.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The image contradicts the format or itself.
    Corrupt,
    /// A feature or option that this engine does not know or does not do yet.
    Unsupported,
    /// A value beyond what the engine is willing to handle (see `limits`).
    Limit,
    /// The host ran out of space.
    NoSpace,
    /// A write to something opened or found read-only.
    ReadOnly,
    /// The host failed an operation.
    Io,
    /// Policy forbids it: a file that the gate does not let through.
    Denied,
    /// Another program holds the image.
    Locked,
    /// A redo log that is not of the image as it is now.
    Stale,
    /// The file does not exist.
    NotFound,
    /// The caller asked for something that makes no sense, such as a range past the end of the disk.
    Invalid,
}

/// A failure, with everything a person needs to understand it.
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    file: Option<PathBuf>,
    errno: Option<i32>,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = printable(&message.into());
        Self { inner: Arc::new(Inner { kind, message, file: None, errno: None }) }
    }

    /// The image contradicts the format: `message` names the field or offset.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// A feature that is not there: `message` names it.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A value beyond a limit: `message` names both.
    pub fn limit(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, message)
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// A write to something that is read-only.
    pub fn read_only(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ReadOnly, message)
    }

    /// A failed host operation; `what` says which, with its offset (`"write at 0x10000"`).
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        let errno = error.raw_os_error();
        let kind = match (error.kind(), errno) {
            (io::ErrorKind::NotFound, _) => ErrorKind::NotFound,
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => ErrorKind::NoSpace,
            (io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied, _) => {
                ErrorKind::Denied
            }
            _ => ErrorKind::Io,
        };
        let message = format!("{what}: {}", reason(error));
        Self { inner: Arc::new(Inner { kind, message, file: None, errno }) }
    }

    /// The same error, said of `file`. A file that is named already stays.
    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        let inner = Arc::make_mut(&mut self.inner);
        inner.file.get_or_insert_with(|| file.to_owned());
        self
    }

    /// The same error with `prefix` and a colon before its message.
    #[must_use]
    pub fn context(mut self, prefix: impl fmt::Display) -> Self {
        let inner = Arc::make_mut(&mut self.inner);
        inner.message = printable(&format!("{prefix}: {}", inner.message));
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// What is wrong, without the file's name.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The file it happened to, if known.
    pub fn file(&self) -> Option<&Path> {
        self.inner.file.as_deref()
    }

    /// The host's error number, where the host failed.
    pub fn errno(&self) -> Option<i32> {
        self.inner.errno
    }
}

/// `text` with control characters escaped: names come out of hostile images, and messages go to terminals and logs.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The host's sentence for an error, without Rust's `(os error N)` behind it.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner.file {
            Some(file) => {
                write!(f, "{}: {}", printable(&file.to_string_lossy()), self.inner.message)
            }
            None => f.write_str(&self.inner.message),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.inner.kind)
    }
}

impl std::error::Error for Error {}
