//! One disk from start to end: its image, its socket, its workers, and one frontend after the other.

use anyhow::{Context, Result};
use qcow::disk::uring;

use crate::backend::Backend;
use crate::connection;
use crate::device::{Device, Shape};
use crate::image::{DiskImage, open_image};
use crate::sandbox::Sandbox;
use crate::settings::DiskSettings;
use crate::socket::Socket;
use crate::stop::Stop;

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
    backend: Backend,
    socket: Socket,
    stop: Stop,
}

impl Disk {
    /// Opens the image, then the socket: who can connect will be served. `socket` makes the socket.
    pub fn open(
        settings: &DiskSettings,
        sandbox: Sandbox,
        socket: impl FnOnce() -> Result<Socket>,
    ) -> Result<Self> {
        let image = open_image(settings)?;
        Self::prepare(settings, sandbox, image.clone(), socket)
            .inspect_err(|_| close_unserved(&image))
    }

    fn prepare(
        settings: &DiskSettings,
        sandbox: Sandbox,
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
        let stop = Stop::new().context("cannot make an eventfd")?;
        let backend = Backend::new(image, Device::new(shape, &settings.file), sandbox)?;
        let socket = socket()?;
        Ok(Self { backend, socket, stop })
    }

    /// A handle to stop the disk with.
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves frontends until the disk is stopped, then closes the image.
    pub fn serve(self) -> Outcome {
        let Self { backend, socket, stop } = self;
        tracing::info!("{}: serving {} bytes", backend.device.name(), backend.device.bytes());
        let accepted = serve_frontends(&backend, &socket, &stop);
        if let Err(e) = &accepted {
            tracing::error!("{}: {e:#}", backend.device.name());
        }
        let (image, device) = backend.end();
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
        close_unserved(&self.backend.end().0);
    }
}

fn close_unserved(image: &DiskImage) {
    if let Err(e) = uring::block_on(image.close()) {
        tracing::warn!("{e}");
    }
}

fn serve_frontends(backend: &Backend, socket: &Socket, stop: &Stop) -> Result<()> {
    let Backend { image, device, .. } = backend;
    while let Some(stream) = socket.accept(stop)? {
        connection::serve(stream, backend, stop);
        // The guest that just left will not flush any more.
        if let Err(e) = uring::block_on(image.flush()) {
            device.report(format_args!("cannot flush what the frontend left: {e}"));
            device.note_health(image.health());
        }
    }
    Ok(())
}
