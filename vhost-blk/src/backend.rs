//! What serves the rings of one disk, whichever frontend there is.

use std::sync::Arc;

use anyhow::Result;

use crate::device::Device;
use crate::image::DiskImage;
use crate::recovery::Recovery;
use crate::sandbox::Sandbox;
use crate::worker::Worker;

/// An image, the device that the guest sees, and the threads between them.
#[derive(Debug)]
pub struct Backend {
    pub image: DiskImage,
    pub device: Arc<Device>,
    /// One for each queue.
    pub workers: Vec<Worker>,
    /// What an unclean shutdown has left to do, if anything.
    pub recovery: Option<Recovery>,
}

impl Backend {
    /// Makes the threads that `device` needs to serve `image`.
    pub fn new(image: DiskImage, device: Device, sandbox: Sandbox) -> Result<Self> {
        let device = Arc::new(device);
        let spawn = |index| Worker::spawn(index, image.clone(), Arc::clone(&device), sandbox);
        let workers = (0..device.shape().queue_count).map(spawn).collect::<Result<_>>()?;
        let recovery = Recovery::spawn(&image, &device, sandbox)?;
        Ok(Self { image, device, workers, recovery })
    }

    /// Ends the threads; what is left is the image.
    pub fn end(self) -> (DiskImage, Arc<Device>) {
        let Self { image, device, workers, recovery } = self;
        drop(recovery);
        drop(workers);
        (image, device)
    }
}
