//! What the user wants served, wherever it was said.

use std::num::NonZero;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use qcow::crypt::Passphrase;
use qcow::disk::uring::CacheMode;
use qcow::engine::{self, OpenOptions, Unpackers};
use qcow::limits::CHAIN_DEPTH_MAX;
use serde::Deserialize;

/// Most queues of a disk: more than any guest has processors that pay for one.
pub const QUEUE_COUNT_MAX: u16 = 256;
/// Longest queue: what monitors set up at most, and as many segments as the kernel takes in one call.
pub const QUEUE_SIZE_MAX: u16 = 1024;
/// Shortest queue: a header, two buffers and a status byte.
pub const QUEUE_SIZE_MIN: u16 = 4;

/// One disk.
#[derive(Debug)]
pub struct DiskSettings {
    pub file: PathBuf,
    pub socket: SocketSettings,
    pub format: Option<Format>,
    pub read_only: bool,
    pub num_queues: u16,
    pub queue_size: u16,
    pub cache: Cache,
    pub discard: Discard,
    pub detect_zeroes: DetectZeroes,
    /// Bytes.
    pub l2_cache_size: Option<u64>,
    pub allow_backing: Vec<PathBuf>,
    pub pin_memory: bool,
    /// The passphrase of the image, and of those below it.
    pub key: Option<Arc<Passphrase>>,
}

/// Where a disk is served.
#[derive(Debug)]
pub enum SocketSettings {
    /// At a path, where the socket is made.
    Path(PathBuf),
    /// On a listening socket that came as this descriptor.
    Inherited(RawFd, UnixListener),
}

impl SocketSettings {
    /// The directory of the socket's file, if the program makes one.
    pub fn directory(&self) -> Option<PathBuf> {
        let Self::Path(path) = self else { return None };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Some(parent.unwrap_or(Path::new(".")).to_owned())
    }
}

/// Image formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Qcow2,
    Raw,
    Luks,
}

/// How the host caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Through the page cache; flushes reach the disk
    #[default]
    Writeback,
    /// Straight to the disk (O_DIRECT)
    None,
    /// Through the page cache; flushes do nothing, a power cut loses the image
    Unsafe,
}

impl Cache {
    /// Whether I/O goes through the page cache.
    pub fn mode(self) -> CacheMode {
        match self {
            Self::Writeback | Self::Unsafe => CacheMode::PageCache,
            Self::None => CacheMode::Direct,
        }
    }
}

/// What a discard does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// Gives the space back
    #[default]
    Unmap,
    /// Nothing: the guest is not offered any
    Ignore,
}

/// What a write of zeros does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DetectZeroes {
    /// It is written
    #[default]
    Off,
    /// It is noted in the tables; the space is kept
    On,
    /// It is noted in the tables; the space is given back
    Unmap,
}

/// Most threads that unpack compressed clusters of one disk: as many as QEMU has.
const UNPACK_THREADS_MAX: usize = 4;

/// Threads that unpack compressed clusters: they only take cores from each other where there are more.
fn unpack_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(UNPACK_THREADS_MAX)
}

impl DiskSettings {
    /// Whether discards free space.
    pub fn frees_discarded(&self) -> bool {
        self.discard == Discard::Unmap
    }

    /// How the engine is to open the image.
    pub fn open_options(&self) -> OpenOptions {
        let defaults = OpenOptions::default();
        OpenOptions {
            writable: !self.read_only,
            format: self.format.map(|format| match format {
                Format::Qcow2 => engine::Format::Qcow2,
                Format::Raw => engine::Format::Raw,
                Format::Luks => engine::Format::Luks,
            }),
            l2_cache_bytes: self.l2_cache_size,
            unpackers: Unpackers::threads(unpack_threads()),
            discard: match self.discard {
                Discard::Unmap => engine::Discard::Unmap,
                Discard::Ignore => engine::Discard::Ignore,
            },
            detect_zeroes: match self.detect_zeroes {
                DetectZeroes::Off => engine::DetectZeroes::Off,
                DetectZeroes::On => engine::DetectZeroes::On,
                DetectZeroes::Unmap => engine::DetectZeroes::Unmap,
            },
            keys: vec![self.key.clone(); CHAIN_DEPTH_MAX],
            flushes: self.cache != Cache::Unsafe,
            ..defaults
        }
    }

    /// Refuses values that contradict each other or lie out of range.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=QUEUE_COUNT_MAX).contains(&self.num_queues) {
            return Err(format!("num-queues must lie between 1 and {QUEUE_COUNT_MAX}"));
        }
        let sizes = QUEUE_SIZE_MIN..=QUEUE_SIZE_MAX;
        if !sizes.contains(&self.queue_size) || !self.queue_size.is_power_of_two() {
            return Err(format!(
                "queue-size must be a power of two between {QUEUE_SIZE_MIN} and {QUEUE_SIZE_MAX}"
            ));
        }
        if self.detect_zeroes == DetectZeroes::Unmap && self.discard == Discard::Ignore {
            return Err("detect-zeroes=unmap needs discard=unmap".to_owned());
        }
        Ok(())
    }
}
