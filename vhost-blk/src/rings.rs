//! All rings of a disk: which run, and stopping and starting them around changes.
//!
//! Whatever changes under a ring - its addresses, the guest's memory - changes while it stands still: its worker has
//! finished every request and holds no memory of the guest.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::chain::Indirect;
use crate::command::Start;
use crate::device::Device;
use crate::memory::{MemoryTable, QueueMemory};
use crate::ring::Ring;
use crate::vring::{Kick, Vring};
use crate::worker::{Worker, WorkerGone};

/// A ring that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("there is no queue {0}")]
    NoSuchQueue(usize),
    #[error("queue {0} does not lie in the guest's memory, or is not aligned")]
    Place(usize),
    #[error("the thread of queue {0} has died")]
    WorkerGone(usize),
}

/// The rings of one disk, each with its worker.
#[derive(Debug)]
pub struct Rings<'a> {
    device: &'a Device,
    workers: &'a [Worker],
    vrings: Vec<Vring>,
    memory: Arc<MemoryTable>,
}

impl<'a> Rings<'a> {
    /// One ring for each of `workers`; none runs.
    pub fn new(device: &'a Device, workers: &'a [Worker]) -> Self {
        let size = device.shape().queue_size;
        let vrings = workers.iter().map(|_| Vring::new(size, false)).collect();
        // What the last driver accepted is not this one's.
        device.accept_features(0);
        Self { device, workers, vrings, memory: Arc::default() }
    }

    /// Ring `index` as the frontend has described it.
    pub fn get(&self, index: usize) -> Result<&Vring, RingError> {
        self.vrings.get(index).ok_or(RingError::NoSuchQueue(index))
    }

    /// The guest's memory.
    pub fn memory(&self) -> &MemoryTable {
        &self.memory
    }

    /// Changes ring `index` while it stands still, and lets it run afterwards if it is to run.
    pub fn change(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut Vring),
    ) -> Result<(), RingError> {
        self.get(index)?;
        self.stop([index])?;
        change(&mut self.vrings[index]);
        self.start(index)
    }

    /// Changes how the guest is interrupted for ring `index`, which goes on running.
    pub fn set_call(&mut self, index: usize, call: Option<Arc<File>>) -> Result<(), RingError> {
        self.get(index)?;
        let vring = &mut self.vrings[index];
        vring.call = call.clone();
        if vring.running {
            self.workers[index]
                .set_call(call)
                .map_err(|WorkerGone| RingError::WorkerGone(index))?;
        }
        Ok(())
    }

    /// Replaces the guest's memory while all rings stand still.
    pub fn set_memory(&mut self, memory: MemoryTable) -> Result<(), RingError> {
        self.stop_all()?;
        self.memory = Arc::new(memory);
        (0..self.vrings.len()).try_for_each(|index| self.start(index))
    }

    /// Enables all rings: what a frontend without protocol features expects.
    pub fn enable_all(&mut self) -> Result<(), RingError> {
        (0..self.vrings.len())
            .try_for_each(|index| self.change(index, |vring| vring.enabled = true))
    }

    /// Stops all rings and forgets what the frontend has told about them.
    pub fn reset(&mut self) -> Result<(), RingError> {
        self.stop_all()?;
        let size = self.device.shape().queue_size;
        self.vrings.fill_with(|| Vring::new(size, false));
        Ok(())
    }

    /// Stops all rings.
    pub fn stop_all(&mut self) -> Result<(), RingError> {
        self.stop(0..self.vrings.len())
    }

    /// Stops these rings: asks all, then waits for each.
    fn stop(&mut self, indices: impl IntoIterator<Item = usize>) -> Result<(), RingError> {
        let running = indices.into_iter().filter(|&index| self.vrings[index].running);
        let asked: Vec<(usize, Result<Receiver<u16>, WorkerGone>)> =
            running.map(|index| (index, self.workers[index].stop())).collect();
        let mut result = Ok(());
        for (index, answer) in asked {
            let vring = &mut self.vrings[index];
            vring.running = false;
            match answer.map(|answer| answer.recv()) {
                Ok(Ok(next)) => vring.base = next,
                _ => {
                    // I/O of the dead thread may still be under way: the memory it goes to must stay for good.
                    let _kept = ManuallyDrop::new(Arc::clone(&self.memory));
                    result = Err(RingError::WorkerGone(index));
                }
            }
        }
        result
    }

    /// Lets ring `index`, which stands still, run if it is to run.
    fn start(&mut self, index: usize) -> Result<(), RingError> {
        let vring = &self.vrings[index];
        let Some(addresses) = vring.wanted().filter(|_| !self.memory.is_empty()) else {
            return Ok(());
        };
        let kick = match &vring.kick {
            Kick::Event(event) => Some(Arc::clone(event)),
            Kick::Unknown | Kick::Polled => None,
        };
        let memory = QueueMemory::new(Arc::clone(&self.memory));
        let event_idx = self.device.has_feature(VIRTIO_RING_F_EVENT_IDX);
        let ring = Ring::new(&memory, addresses, vring.size, vring.base, event_idx)
            .ok_or(RingError::Place(index))?;
        let start = Start {
            ring,
            memory,
            indirect: self.indirect(vring.size),
            kick,
            call: vring.call.clone(),
            error: vring.error.clone(),
        };
        self.workers[index].start(start).map_err(|WorkerGone| RingError::WorkerGone(index))?;
        tracing::debug!("{}: queue {index} runs with {} entries", self.device.name(), vring.size);
        self.vrings[index].running = true;
        Ok(())
    }

    fn indirect(&self, size: u16) -> Indirect {
        if !self.device.has_feature(VIRTIO_RING_F_INDIRECT_DESC) {
            return Indirect::Refused;
        }
        // Drivers fill tables up to the segment limit of the device, however short the ring is.
        Indirect::UpTo(size.max(self.device.shape().queue_size).into())
    }
}
