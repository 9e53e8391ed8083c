//! All rings of a disk: which run, and stopping and starting them around changes.
//!
//! Whatever changes under a ring - its settings, the guest's memory, the features - changes while it stands still: its
//! worker has finished every request and holds no memory of the guest.

use std::fs::File;
use std::sync::Arc;

use qcow::disk::uring;
use qcow::engine::FoundRedo;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::backend::Backend;
use crate::chain::Indirect;
use crate::command::Start;
use crate::inflight::{LogRoom, Record, RecordError, Region};
use crate::memory::{MemoryTable, QueueMemory};
use crate::recovery::Recovery;
use crate::ring_settings::{Kick, RingSettings};
use crate::virtqueue::Virtqueue;

/// A ring that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("there is no queue {0}")]
    NoSuchQueue(usize),
    #[error("queue {0} does not lie in the guest's memory, or is not aligned")]
    Place(usize),
    #[error("queue {index} cannot go on: {source}")]
    Record { index: usize, source: RecordError },
    #[error("the log of what the last process has changed cannot be replayed: {0}")]
    Log(#[from] qcow::Error),
}

/// The rings of one disk, each with its worker.
#[derive(Debug)]
pub struct RingSet<'a> {
    backend: &'a Backend,
    rings: Vec<RingSettings>,
    memory: Arc<MemoryTable>,
    /// Where it is noted what is in flight, if the frontend keeps that.
    inflight: Option<Arc<Region>>,
}

impl<'a> RingSet<'a> {
    /// One ring for each worker of `backend`; none runs.
    pub fn new(backend: &'a Backend) -> Self {
        let device = &backend.device;
        let size = device.shape().queue_size;
        let rings = backend.workers.iter().map(|_| RingSettings::new(size)).collect();
        // What the last driver accepted is not this one's.
        device.forget_features();
        Self { backend, rings, memory: Arc::default(), inflight: None }
    }

    /// Ring `index` as the frontend has described it.
    pub fn get(&self, index: usize) -> Result<&RingSettings, RingError> {
        self.rings.get(index).ok_or(RingError::NoSuchQueue(index))
    }

    /// The guest's memory.
    pub fn memory(&self) -> &MemoryTable {
        &self.memory
    }

    /// Changes ring `index` while it stands still, and lets it run afterwards if it is to run.
    ///
    /// # Errors
    /// There is no such ring, or it is to run and does not lie in the guest's memory.
    pub fn change(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut RingSettings),
    ) -> Result<(), RingError> {
        self.get(index)?;
        self.stop([index]);
        change(&mut self.rings[index]);
        self.start(index)
    }

    /// Changes how the guest is interrupted for ring `index`, which goes on running.
    pub fn set_call(&mut self, index: usize, call: Option<Arc<File>>) -> Result<(), RingError> {
        self.get(index)?;
        let ring = &mut self.rings[index];
        ring.call = call.clone();
        if ring.running {
            self.backend.workers[index].set_call(call);
        }
        Ok(())
    }

    /// Replaces the guest's memory while all rings stand still. A ring that it does not cover waits for memory that does.
    pub fn set_memory(&mut self, memory: MemoryTable) {
        self.stop_all();
        self.memory = Arc::new(memory);
        self.start_covered();
    }

    /// Notes in `region` what is in flight and what has changed from now on. What it has already is carried out first: the
    /// changes at once, what is in flight when its ring starts.
    ///
    /// # Errors
    /// The changes are not of the image as it is now, or the host failed. No ring runs then.
    pub fn set_inflight(&mut self, region: Region) -> Result<(), RingError> {
        self.stop_all();
        let region = Arc::new(region);
        let log = Arc::new(LogRoom(Arc::clone(&region)));
        let Backend { image, device, .. } = self.backend;
        let replayed = uring::block_on(image.attach_redo_log(log, FoundRedo::Replay));
        device.note_health(image.health());
        let clusters = replayed?;
        if clusters > 0 {
            let name = device.name();
            tracing::info!(
                "{name}: mapped {clusters} clusters as the last process had, before it was killed"
            );
        }
        self.inflight = Some(region);
        self.start_covered();
        Ok(())
    }

    /// Takes over the features that the driver has accepted, while all rings stand still.
    pub fn accept_features(&mut self, features: u64) {
        self.stop_all();
        self.backend.device.accept_features(features);
        self.start_covered();
    }

    /// Enables all rings: what a frontend without protocol features expects.
    pub fn enable_all(&mut self) {
        self.stop_all();
        self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        self.start_covered();
    }

    /// Stops all rings, and forgets what the frontend has told about them and what the driver has accepted.
    pub fn reset(&mut self) {
        self.stop_all();
        let size = self.backend.device.shape().queue_size;
        self.rings.fill_with(|| RingSettings::new(size));
        self.backend.device.forget_features();
    }

    /// Stops all rings.
    pub fn stop_all(&mut self) {
        self.stop(0..self.rings.len());
    }

    /// Stops these rings: asks all, then waits for each.
    fn stop(&mut self, indices: impl IntoIterator<Item = usize>) {
        let running = indices.into_iter().filter(|&index| self.rings[index].running);
        let asked: Vec<_> =
            running.map(|index| (index, self.backend.workers[index].stop())).collect();
        for (index, answer) in asked {
            let ring = &mut self.rings[index];
            ring.running = false;
            ring.base = answer.wait();
        }
    }

    /// Lets all rings, which stand still, run if they are to run and lie in the guest's memory.
    fn start_covered(&mut self) {
        for index in 0..self.rings.len() {
            if let Err(error) = self.start(index) {
                tracing::warn!(
                    "{}: {error}: it waits for other memory",
                    self.backend.device.name()
                );
            }
        }
    }

    /// Lets ring `index`, which stands still, run if it is to run.
    fn start(&mut self, index: usize) -> Result<(), RingError> {
        let ring = &self.rings[index];
        let Some(addresses) = ring.wanted().filter(|_| !self.memory.is_empty()) else {
            return Ok(());
        };
        let kick = match &ring.kick {
            Kick::Event(event) => Some(Arc::clone(event)),
            Kick::Unknown | Kick::Polled => None,
        };
        let memory = QueueMemory::new(Arc::clone(&self.memory));
        let event_idx = self.backend.device.has_feature(VIRTIO_RING_F_EVENT_IDX);
        let mut queue = Virtqueue::new(&memory, addresses, ring.size, ring.base, event_idx)
            .ok_or(RingError::Place(index))?;
        self.resume(index, &mut queue).map_err(|source| RingError::Record { index, source })?;
        self.backend.recovery.iter().for_each(Recovery::start);
        self.backend.workers[index].start(Start {
            ring: queue,
            memory,
            indirect: self.indirect(ring.size),
            kick,
            call: ring.call.clone(),
            error: ring.error.clone(),
        });
        tracing::debug!(
            "{}: queue {index} runs with {} entries",
            self.backend.device.name(),
            ring.size
        );
        self.rings[index].running = true;
        Ok(())
    }

    /// Lets `queue`, which is ring `index`, go on where its record says that it ended.
    fn resume(&self, index: usize, queue: &mut Virtqueue) -> Result<(), RecordError> {
        let Some(region) = &self.inflight else { return Ok(()) };
        let (region, used_index) = (Arc::clone(region), queue.next_used());
        let (record, unfinished) = Record::resume(region, index, queue.size(), used_index)?;
        if !unfinished.is_empty() {
            let (name, count) = (self.backend.device.name(), unfinished.len());
            tracing::info!(
                "{name}: queue {index} begins with {count} requests that were left in flight"
            );
        }
        queue.keep(record, unfinished);
        Ok(())
    }

    fn indirect(&self, size: u16) -> Indirect {
        if !self.backend.device.has_feature(VIRTIO_RING_F_INDIRECT_DESC) {
            return Indirect::Refused;
        }
        // Drivers fill tables up to the segment limit of the device, however short the ring is.
        Indirect::UpTo(size.max(self.backend.device.shape().queue_size).into())
    }
}
