//! The thread that gives back what an unclean shutdown has leaked, while the disk is served.
//!
//! It begins when the first queue does, and not before: until then a frontend may hand over a log of what the last process
//! has changed, and what that names is not leaked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::Result;
use qcow::disk::uring;
use qcow::engine::RecoveryEnd;
use qcow::sync::lock;

use crate::device::Device;
use crate::image::DiskImage;
use crate::io_thread;
use crate::sandbox::{Role, Sandbox};

/// A thread that waits to be started. Dropped, it is told to stop, and waited for.
#[derive(Debug)]
pub struct Recovery {
    go: Mutex<Option<Sender<()>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recovery {
    /// Makes the thread; `None` where the image was closed cleanly the last time.
    pub fn spawn(
        image: &DiskImage,
        device: &Arc<Device>,
        sandbox: Sandbox,
    ) -> Result<Option<Self>> {
        if !image.needs_recovery() {
            return Ok(None);
        }
        let (go, started) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (image, device, stopped) = (image.clone(), Arc::clone(device), Arc::clone(&stop));
        let confine = move || sandbox.confine(Role::Worker);
        let thread = io_thread::spawn("recovery".to_owned(), confine, move || {
            if started.recv().is_ok() {
                recover(&image, &device, &stopped);
            }
        })?;
        Ok(Some(Self { go: Mutex::new(Some(go)), stop, thread: Some(thread) }))
    }

    /// Lets it begin, unless it has. A redo log that is to be replayed has to be attached before: nothing that it names may
    /// be given back.
    pub fn start(&self) {
        if let Some(go) = lock(&self.go).take() {
            go.send(()).expect("the thread waits for its start");
        }
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        *lock(&self.go) = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a panic ends the process");
        }
    }
}

fn recover(image: &DiskImage, device: &Device, stop: &AtomicBool) {
    let recovery = match uring::block_on(image.recover_leaks(stop)) {
        Ok(recovery) => recovery,
        Err(e) => {
            tracing::warn!("cannot look for what an unclean shutdown has leaked: {e}");
            return;
        }
    };
    let end = match recovery.end {
        RecoveryEnd::Complete => "",
        RecoveryEnd::Stopped => ", and stopped before the end",
        RecoveryEnd::Doubtful(_) => ", and cannot tell of others",
        RecoveryEnd::Corrupt => ", and stopped at a contradiction",
    };
    let (name, clusters) = (device.name(), recovery.clusters);
    tracing::info!("{name}: after an unclean shutdown, gave {clusters} leaked clusters back{end}");
}
