//! One host file, read and written asynchronously: the engine's only way to the outside.
//!
//! Production ([`uring`]) and simulation ([`sim`]) implement the same [`Disk`], and the engine cannot tell them apart.
//! An operation belongs to the thread that polls it; a `Disk` itself may be used by many threads at once.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::Range;

use crate::addr::HostOffset;

pub mod buffer;
pub mod sim;
pub mod uring;

pub use buffer::{Buffer, Payload};

/// Tells host files apart, however they are named: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device that holds the file.
    pub device: u64,
    /// The file's number on that device.
    pub inode: u64,
}

/// A stretch of a file that is all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Bytes from the offset asked for to the end of the stretch.
    pub len: u64,
    /// Whether the host stores these bytes; a hole reads as zeros.
    pub data: bool,
}

/// Positioned asynchronous I/O on one host file.
///
/// A write or change of size is durable once a later [`Disk::sync`] that started after its completion has succeeded.
/// Operations that overlap in time may take effect in any order.
#[expect(clippy::len_without_is_empty, reason = "an empty file is nothing special")]
pub trait Disk: Debug + Send + Sync + Sized + 'static {
    /// Fills `into` from `at`; bytes past the end of the file read as zeros.
    fn read(&self, at: HostOffset, into: &Payload) -> impl Future<Output = io::Result<()>>;

    /// Writes all of `from` at `at`; the file grows as needed.
    fn write(&self, at: HostOffset, from: &Payload) -> impl Future<Output = io::Result<()>>;

    /// Makes `len` bytes at `at` read as zeros and keeps their space; the file grows as needed.
    fn write_zeroes(&self, at: HostOffset, len: u64) -> impl Future<Output = io::Result<()>>;

    /// Gives the space of `len` bytes at `at` back to the host where it can. Says whether they surely read as zeros now;
    /// otherwise what they read as is undefined.
    fn punch_hole(&self, at: HostOffset, len: u64) -> impl Future<Output = io::Result<bool>>;

    /// Makes `len` bytes at `at`, which lie inside the file, read as zeros, and gives their space back to the host where it
    /// can do both at once: at no moment do they read as anything but what they held or zeros.
    fn unmap_zeroes(&self, at: HostOffset, len: u64) -> impl Future<Output = io::Result<()>> {
        self.write_zeroes(at, len)
    }

    /// Reserves the space of `len` bytes at `at`, which keep their content or read as zeros; the file grows as needed.
    fn allocate(&self, at: HostOffset, len: u64) -> impl Future<Output = io::Result<()>>;

    /// Cuts or extends the file to `len` bytes; new bytes read as zeros.
    fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>>;

    /// Makes durable whatever completed before this call.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;

    /// Forgets what the host has cached of these bytes and what is not waiting to be written: after a flush has failed,
    /// the cache may show what the medium has lost. To be called after a sync; it may block.
    fn drop_cache(&self, bytes: Range<u64>) -> io::Result<()>;

    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Bytes that the host stores for the file.
    fn allocated_len(&self) -> io::Result<u64>;

    /// The stretch of data or hole that starts at `at`, which lies inside the file. For tools: it may block.
    fn extent_at(&self, at: HostOffset) -> io::Result<FileExtent>;

    /// Whether writes can succeed at all.
    fn is_writable(&self) -> bool;

    /// Which file this is.
    fn identity(&self) -> Identity;

    /// A number that nobody can expect: a random one.
    fn random_number(&self) -> u64;
}
