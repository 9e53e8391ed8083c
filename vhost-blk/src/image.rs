//! The image behind a disk, and how it is opened.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use qcow::disk::uring::{self, UringDisk};
use qcow::engine::Format;
use qcow::gate::{BackingPolicy, HostGate};
use qcow::{ErrorKind, Image};

use crate::settings::DiskSettings;

/// The image behind a disk.
pub type DiskImage = Image<UringDisk>;

/// How often a locked image is tried again, and after how long: two seconds in all.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Opens the image that `settings` name, and what lies below it.
pub fn open_image(settings: &DiskSettings) -> Result<DiskImage> {
    let gate = HostGate {
        cache: settings.cache.mode(),
        shared: false,
        backing: BackingPolicy::Beside(settings.allow_backing.clone()),
    };
    let image = open_patiently(&gate, settings)?;
    let guessed = settings.format.is_none() && image.format() == Format::Raw;
    if guessed && image.is_writable() {
        // A guest that may write to a raw disk could turn it into an image of its own making.
        let what = "not a qcow2 image; say '-f raw' to serve it as it is, or --read-only";
        return Err(qcow::Error::new(ErrorKind::Denied, what).in_file(&settings.file).into());
    }
    Ok(image)
}

/// Opens the image; where it is locked, after a while. The kernel takes a moment to let go of the files of a daemon that
/// was killed, and its successor should not fail for that.
fn open_patiently(gate: &HostGate, settings: &DiskSettings) -> qcow::Result<DiskImage> {
    let options = settings.open_options();
    for _ in 0..LOCK_TRIES {
        match uring::block_on(Image::open(gate, &settings.file, &options)) {
            Err(e) if e.kind() == ErrorKind::Locked => sleep(LOCK_PAUSE),
            opened => return opened,
        }
    }
    uring::block_on(Image::open(gate, &settings.file, &options))
}
