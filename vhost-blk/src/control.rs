//! The thread that serves one disk.

use std::sync::mpsc::{Sender, channel};

use anyhow::Result;

use crate::disk::{Disk, Outcome};
use crate::io_thread;

/// A thread that waits for the disk it is to serve. Dropped without one, it ends.
#[derive(Debug)]
pub struct ControlThread {
    disk: Sender<Disk>,
}

impl ControlThread {
    /// Starts the thread, which will tell `ended` how its disk has ended.
    pub fn spawn(ended: impl FnOnce(Outcome) + Send + 'static) -> Result<Self> {
        let (disk, inbox) = channel::<Disk>();
        io_thread::spawn("control".to_owned(), move || {
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
