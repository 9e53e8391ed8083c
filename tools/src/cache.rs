//! Cache modes: `-t` and `-T`.

use qcow::disk::uring::CacheMode;

use crate::failure::{Failure, Outcome};

/// How an image's writes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Past the host's page cache or through it.
    pub mode: CacheMode,
    /// Whether every write is flushed.
    pub writethrough: bool,
    /// Whether flushes are carried out at all.
    pub flushes: bool,
}

impl Cache {
    /// Through the page cache, with flushes.
    pub const WRITEBACK: Self =
        Self { mode: CacheMode::PageCache, writethrough: false, flushes: true };
    /// Through the page cache, and flushed at once.
    pub const WRITETHROUGH: Self = Self { writethrough: true, ..Self::WRITEBACK };
    /// Through the page cache, and without any flush.
    pub const UNSAFE: Self =
        Self { mode: CacheMode::PageCache, writethrough: false, flushes: false };

    /// The mode that an option gives for `what` (`cache` or `source cache`); `default` if it is not given.
    pub fn parse_option(given: Option<&str>, what: &str, default: Self) -> Outcome<Self> {
        let Some(name) = given else { return Ok(default) };
        Self::parse(name).ok_or_else(|| Failure::new(format!("Invalid {what} option: {name}")))
    }

    /// The mode of that name.
    pub fn parse(name: &str) -> Option<Self> {
        let direct = Self { mode: CacheMode::Direct, ..Self::WRITEBACK };
        match name {
            "none" | "off" => Some(direct),
            "directsync" => Some(Self { writethrough: true, ..direct }),
            "writeback" => Some(Self::WRITEBACK),
            "writethrough" => Some(Self::WRITETHROUGH),
            "unsafe" => Some(Self::UNSAFE),
            _ => None,
        }
    }
}
