//! The image behind a disk, and how it is opened.

use anyhow::Result;
use qcow::disk::uring::{self, UringDisk};
use qcow::engine::Format;
use qcow::gate::{BackingPolicy, HostGate};
use qcow::{ErrorKind, Image};

use crate::settings::DiskSettings;

/// The image behind a disk.
pub type DiskImage = Image<UringDisk>;

/// Opens the image that `settings` name, and what lies below it.
pub fn open_image(settings: &DiskSettings) -> Result<DiskImage> {
    let gate = HostGate {
        cache: settings.cache.mode(),
        shared: false,
        backing: BackingPolicy::Beside(settings.allow_backing.clone()),
    };
    let image = uring::block_on(Image::open(&gate, &settings.file, &settings.open_options()))?;
    let guessed = settings.format.is_none() && image.format() == Format::Raw;
    if guessed && image.is_writable() {
        // A guest that may write to a raw disk could turn it into an image of its own making.
        let what = "not a qcow2 image; say '-f raw' to serve it as it is";
        return Err(qcow::Error::new(ErrorKind::Denied, what).in_file(&settings.file).into());
    }
    Ok(image)
}
