//! The verbs: open, create, read, write (compressed, too), zero, discard, flush, map, resize, check, compact, close.
//!
//! An [`Image`] is a chain of [`layer::Layer`]s over [`Disk`]s. Requests are straight-line `async` code; what they know
//! about tables they ask of [`crate::meta`], which never waits, and what is missing there they load. Any number of
//! threads use one image at the same time, each driving its own requests on its own ring.

use std::path::Path;
use std::sync::Arc;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::header::CryptMethod;
use crate::sync::Exclusive;

mod amend;
mod backing;
pub mod bitmap;
pub mod check;
mod claim;
mod close;
pub mod compact;
mod compress;
mod condemn;
mod copy_up;
pub mod create;
mod data_file;
mod decompress;
mod dirty;
mod drop_tables;
mod encryption;
mod flush;
mod grow;
mod header;
mod holes;
pub mod info;
mod key_slots;
mod layer;
mod layout;
mod load;
mod make_empty;
mod map;
mod mark;
mod open;
mod options;
mod preallocate;
mod read;
mod reclaim;
mod recover;
mod redo;
mod regions;
mod resize;
mod sealed;
mod search;
pub mod snapshot;
mod surround;
mod table;
mod trim;
mod unpack;
mod write;
mod zero;

pub use crate::meta::redo::{SharedWords, words_for};
pub use crate::meta::snapshot::SnapshotChoice;
pub use compress::Packed;
pub use create::{create, create_with_data};
pub use map::MapExtent;
pub use options::{
    Below, CreateOptions, DataFileOptions, DetectZeroes, Discard, Format, NewEncryption,
    NewIntegrity, OpenOptions, Preallocation,
};
pub use recover::{Recovery, RecoveryEnd};
pub use redo::FoundRedo;
pub use resize::Resize;
pub use sealed::describe::{SealedInfo, SealedState};
pub use unpack::Unpackers;

use layer::{Layer, Qcow2};

/// An open virtual disk: a chain of images, the top one perhaps writable.
///
/// Cloning is cheap, and clones are the same disk. The futures of its methods belong to the thread that polls them.
/// A writable image has to be [closed](Image::close); one that is merely dropped is as after a crash.
#[derive(Debug)]
pub struct Image<D: Disk> {
    inner: Arc<Inner<D>>,
}

#[derive(Debug)]
struct Inner<D: Disk> {
    /// The top layer first.
    layers: Vec<Layer<D>>,
    options: OpenOptions,
    /// Held by whoever changes the disk's size.
    resizing: Exclusive,
}

impl<D: Disk> Clone for Image<D> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<D: Disk> Image<D> {
    /// Size of the virtual disk in bytes, a multiple of 512; [`Self::resize`] changes it.
    pub fn virtual_size(&self) -> u64 {
        self.top().virtual_size()
    }

    /// Cluster size of the top image in bytes; `None` where it has no clusters.
    pub fn cluster_size(&self) -> Option<u64> {
        match self.top() {
            Layer::Qcow2(qcow2) => Some(qcow2.geometry.cluster_size()),
            Layer::Sealed(sealed) => Some(sealed.cluster_len()),
            Layer::Raw(_) | Layer::Luks(_) => None,
        }
    }

    /// What the top image can have of the disk without the rest of its cluster, in bytes: a subcluster or a cluster; `None`
    /// where it has no clusters.
    pub fn subcluster_size(&self) -> Option<u64> {
        match self.top() {
            Layer::Qcow2(qcow2) => Some(qcow2.geometry.subcluster_size()),
            Layer::Sealed(sealed) => Some(sealed.cluster_len()),
            Layer::Raw(_) | Layer::Luks(_) => None,
        }
    }

    /// Format of the top image.
    pub fn format(&self) -> Format {
        match self.top() {
            Layer::Qcow2(_) | Layer::Sealed(_) => Format::Qcow2,
            Layer::Raw(_) => Format::Raw,
            Layer::Luks(_) => Format::Luks,
        }
    }

    /// How the top image is encrypted.
    pub fn encryption(&self) -> CryptMethod {
        match self.top() {
            Layer::Qcow2(qcow2) => crate::sync::lock(&qcow2.header).crypt_method,
            Layer::Sealed(_) | Layer::Raw(_) => CryptMethod::None,
            Layer::Luks(_) => CryptMethod::Luks,
        }
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.inner.options.writable
    }

    /// How many images the chain has.
    pub fn layer_count(&self) -> usize {
        self.inner.layers.len()
    }

    /// Bytes of the disk of the image `depth` places below the top, as that image has it.
    pub fn layer_virtual_size(&self, depth: usize) -> u64 {
        self.inner.layers[depth].virtual_size()
    }

    /// The file of the image `depth` places below the top.
    pub fn layer_path(&self, depth: usize) -> &Path {
        self.inner.layers[depth].path()
    }

    /// The file that holds the guest data of the image `depth` places below the top: that image's own, or its external
    /// data file.
    pub fn layer_data_path(&self, depth: usize) -> &Path {
        let layer = &self.inner.layers[depth];
        match layer {
            Layer::Qcow2(qcow2) => qcow2.data_path(),
            Layer::Sealed(sealed) => &sealed.path,
            Layer::Raw(_) | Layer::Luks(_) => layer.path(),
        }
    }

    /// Format of the image `depth` places below the top.
    pub fn layer_format(&self, depth: usize) -> Format {
        match &self.inner.layers[depth] {
            Layer::Qcow2(_) | Layer::Sealed(_) => Format::Qcow2,
            Layer::Raw(_) => Format::Raw,
            Layer::Luks(_) => Format::Luks,
        }
    }

    /// Fails once the image takes no more writes, with the reason: a lost flush, a corruption found.
    pub fn health(&self) -> Result<()> {
        match self.top() {
            Layer::Qcow2(qcow2) => crate::sync::lock(&qcow2.meta).check_writable(),
            Layer::Sealed(sealed) => sealed.health(),
            Layer::Raw(raw) => raw.health(),
            Layer::Luks(luks) => luks.raw().health(),
        }
    }

    fn top(&self) -> &Layer<D> {
        &self.inner.layers[0]
    }

    /// Checks that a request lies inside the disk.
    fn check_range(&self, at: u64, len: u64) -> Result<()> {
        let size = self.virtual_size();
        if at.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        let what = format!("a request for {len} bytes at {at:#x} of a disk of {size} bytes");
        Err(Error::invalid(what).in_file(self.top().path()))
    }

    /// Checks that a request whose bytes are in memory lies inside the disk and is not too large.
    fn check_transfer(&self, at: u64, len: u64) -> Result<()> {
        if len > crate::limits::REQUEST_BYTES_MAX {
            return Err(Error::limit(format!("a request for {len} bytes is too large")));
        }
        self.check_range(at, len)
    }

    /// Checks that a changing request may go on.
    fn check_change(&self, at: u64, len: u64) -> Result<()> {
        self.check_may_change(at, len)?;
        self.health()
    }

    /// As [`Self::check_change`], but for the image's health.
    fn check_may_change(&self, at: u64, len: u64) -> Result<()> {
        if !self.inner.options.writable {
            return Err(Error::read_only("the image is open read-only").in_file(self.top().path()));
        }
        self.check_range(at, len)
    }

    /// The chain's layers from `depth` down.
    fn layers_from(&self, depth: usize) -> &[Layer<D>] {
        &self.inner.layers[depth..]
    }
}

impl<D: Disk> Qcow2<D> {
    /// `error`, said of this image's file.
    fn named(&self, error: Error) -> Error {
        error.in_file(&self.path)
    }
}
