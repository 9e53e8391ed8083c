//! How an image is to be opened.

use std::fmt;
use std::str::FromStr;

use crate::limits;

/// An image format that the engine reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// The disk's bytes and nothing else.
    Raw,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "qcow2" => Ok(Self::Qcow2),
            "raw" => Ok(Self::Raw),
            other => Err(format!("Unknown driver '{other}'")),
        }
    }
}

/// What happens to the space of discarded clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Discards do nothing.
    Ignore,
    /// Their clusters become free, and the host gets the space back.
    Unmap,
}

/// What happens to writes of nothing but zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are written like everything else.
    Off,
    /// They become zero clusters that keep their space.
    On,
    /// They become zero clusters, and their space is given back.
    Unmap,
}

/// How an image is to be opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// For writing too.
    pub writable: bool,
    /// The format of the top image; found out from its first bytes where it is not given.
    pub format: Option<Format>,
    /// Open the backing files too. Without them, what they hold reads as zeros.
    pub backing: bool,
    /// Bytes of L2 tables to keep in memory, per image of the chain.
    pub l2_cache_bytes: u64,
    /// What a discard does.
    pub discard: Discard,
    /// What a write of zeros does.
    pub detect_zeroes: DetectZeroes,
    /// Whether flushes reach the disk. Without, a power cut loses everything (`cache=unsafe`).
    pub flushes: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            writable: false,
            format: None,
            backing: true,
            l2_cache_bytes: limits::L2_CACHE_BYTES_DEFAULT,
            discard: Discard::Unmap,
            detect_zeroes: DetectZeroes::Off,
            flushes: true,
        }
    }
}
