//! The thread that serves one disk.

use std::sync::mpsc::{Sender, channel};

use anyhow::Result;

use crate::disk::{Disk, Outcome};
use crate::io_thread;
use crate::sandbox::{Role, Sandbox};
use crate::settings::DiskSettings;

/// A thread that waits for the disk it is to serve. Dropped without one, it ends.
#[derive(Debug)]
pub struct ControlThread {
    disk: Sender<Disk>,
}

impl ControlThread {
    /// Starts the thread of the disk that `settings` describe. It will tell `ended` how that has ended.
    pub fn spawn(
        settings: &DiskSettings,
        sandbox: Sandbox,
        ended: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<Self> {
        let (disk, inbox) = channel::<Disk>();
        let directory = settings.socket.directory();
        let confine = move || sandbox.confine(Role::Control(directory.as_deref()));
        io_thread::spawn("control".to_owned(), confine, move || {
            if let Ok(disk) = inbox.recv() {
                ended(disk.serve());
            }
        })?;
        Ok(Self { disk })
    }

    /// Serves `disk` until it is stopped.
    pub fn serve(self, disk: Disk) {
        self.disk.send(disk).expect("the thread waits for its disk");
    }
}
