//! One disk from start to end: its image, its socket, its workers, and one frontend after the other.

use std::sync::Arc;

use anyhow::{Context, Result};
use qcow::disk::uring;

use crate::connection;
use crate::device::{Device, Shape};
use crate::image::{DiskImage, open_image};
use crate::recovery::Recovery;
use crate::settings::DiskSettings;
use crate::socket::Socket;
use crate::stop::Stop;
use crate::worker::Worker;

/// How a disk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked, and the image is clean.
    Clean,
    /// The image could not be served or written back to the end.
    Lost,
}

/// A disk that is ready to serve.
#[derive(Debug)]
pub struct Disk {
    image: DiskImage,
    device: Arc<Device>,
    workers: Vec<Worker>,
    recovery: Option<Recovery>,
    socket: Socket,
    stop: Stop,
}

impl Disk {
    /// Opens the image, then the socket: who can connect will be served. `socket` makes the socket.
    pub fn open(settings: &DiskSettings, socket: impl FnOnce() -> Result<Socket>) -> Result<Self> {
        let image = open_image(settings)?;
        Self::prepare(settings, image.clone(), socket).inspect_err(|_| close_unserved(&image))
    }

    fn prepare(
        settings: &DiskSettings,
        image: DiskImage,
        socket: impl FnOnce() -> Result<Socket>,
    ) -> Result<Self> {
        let shape = Shape {
            bytes: image.virtual_size(),
            cluster: image.cluster_size(),
            writable: image.is_writable(),
            discard: settings.frees_discarded(),
            queue_count: settings.num_queues,
            queue_size: settings.queue_size,
            pin_memory: settings.pin_memory,
        };
        let device = Arc::new(Device::new(shape, &settings.file));
        let stop = Stop::new().context("cannot make an eventfd")?;
        let spawn = |index| Worker::spawn(index, image.clone(), Arc::clone(&device));
        let workers = (0..settings.num_queues).map(spawn).collect::<Result<_>>()?;
        let recovery = Recovery::spawn(&image, &device)?;
        let socket = socket()?;
        Ok(Self { image, device, workers, recovery, socket, stop })
    }

    /// A handle to stop the disk with.
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves frontends until the disk is stopped, then closes the image.
    pub fn serve(self) -> Outcome {
        let Self { image, device, workers, recovery, socket, stop } = self;
        tracing::info!("{}: serving {} bytes", device.name(), device.bytes());
        recovery.iter().for_each(Recovery::start);
        let accepted = serve_frontends(&image, &device, &workers, &socket, &stop);
        if let Err(e) = &accepted {
            tracing::error!("{}: {e:#}", device.name());
        }
        drop(recovery);
        drop(workers);
        device.note_health(image.health());
        if let Err(e) = uring::block_on(image.close()) {
            tracing::error!("cannot close the image: {e}");
            return Outcome::Lost;
        }
        tracing::info!("{}: closed", device.name());
        if accepted.is_err() || device.is_lost() { Outcome::Lost } else { Outcome::Clean }
    }

    /// Closes the image of a disk that will not be served after all.
    pub fn close(self) {
        let Self { image, workers, recovery, .. } = self;
        drop((workers, recovery));
        close_unserved(&image);
    }
}

fn close_unserved(image: &DiskImage) {
    if let Err(e) = uring::block_on(image.close()) {
        tracing::warn!("{e}");
    }
}

fn serve_frontends(
    image: &DiskImage,
    device: &Device,
    workers: &[Worker],
    socket: &Socket,
    stop: &Stop,
) -> Result<()> {
    while let Some(stream) = socket.accept(stop)? {
        connection::serve(stream, device, workers, stop);
        // The guest that just left will not flush any more.
        if let Err(e) = uring::block_on(image.flush()) {
            device.report(format_args!("cannot flush what the frontend left: {e}"));
            device.note_health(image.health());
        }
    }
    Ok(())
}
