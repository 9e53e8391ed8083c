//! Single requests to a daemon, each waited for; and whatever a driver should not send.
//!
//! ```no_run
//! use benches::request::Status;
//! use benches::session::Session;
//! use benches::{Error, frontend::Features};
//!
//! # fn main() -> benches::Result<()> {
//! let mut session = Session::connect("/run/disk.sock".as_ref(), 1, 128, Features::default())?;
//! let disk = session.queue(0);
//! disk.write(0, &[7; 4096])?;
//! disk.flush()?;
//! assert_eq!(disk.read(0, 4096)?, [7; 4096]);
//!
//! // A request whose data buffer lies outside the guest's memory.
//! let mut chain = disk.prepare_read(0, 4096)?;
//! chain.descriptors[1].addr.0 = 0xdead_0000;
//! let ticket = disk.submit(&chain)?;
//! assert_eq!(disk.wait(ticket)?.status, Some(Status::IoError));
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vm_memory::GuestAddress;

use crate::config::BlkConfig;
use crate::descriptor::{DESCRIPTOR_LEN, Descriptor, link};
use crate::frontend::{Connection, Features, Inflight};
use crate::memory::{Arena, GuestMemory};
use crate::queue::{DriverQueue, Used, Wake};
use crate::request::{HEADER_LEN, Request, SEGMENT_LEN, STATUS_UNTOUCHED, Status};
use crate::ring::RingLayout;
use crate::{Error, Result};

/// How long a daemon may take for an answer or a completion before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Guest memory for the buffers of one queue: bounds the sum of the requests in flight. Buffers are
/// taken back only when all this is used up and nothing is in flight.
pub const BUFFER_BYTES: u64 = 64 << 20;

/// A connected disk. Its memory and rings outlive a daemon: see [`Session::reconnect`].
#[derive(Debug)]
pub struct Session {
    socket: PathBuf,
    features: Features,
    connection: Connection,
    memory: Arc<GuestMemory>,
    inflight: Option<Inflight>,
    queues: Vec<BlockQueue>,
}

impl Session {
    /// Connects to the daemon at `socket` with `queues` queues of `queue_size` descriptors each (a
    /// power of two) and the given features, as far as the daemon offers them.
    pub fn connect(
        socket: &Path,
        queues: u16,
        queue_size: u16,
        features: Features,
    ) -> Result<Self> {
        let mut connection = Connection::open(socket, queues, features, PATIENCE)?;
        let ring_bytes = RingLayout::bytes(queue_size).next_multiple_of(4096);
        let share = ring_bytes + BUFFER_BYTES;
        let memory = Arc::new(GuestMemory::new(share * u64::from(queues))?);
        let mut arena = memory.arena();
        let mut block_queues = Vec::new();
        for _ in 0..queues {
            let ring = DriverQueue::new(memory.clone(), &mut arena.split(ring_bytes)?, queue_size)?;
            let buffers = arena.split(BUFFER_BYTES)?;
            block_queues.push(BlockQueue::new(ring, memory.clone(), buffers));
        }
        let inflight = connection.get_inflight(queue_size)?;
        let mut session = Self {
            socket: socket.to_owned(),
            features,
            connection,
            memory,
            inflight,
            queues: block_queues,
        };
        session.start()?;
        Ok(session)
    }

    /// Queue `index`. Panics if there is none.
    pub fn queue(&mut self, index: usize) -> &mut BlockQueue {
        &mut self.queues[index]
    }

    /// All queues, to be driven from a thread each.
    pub fn queues(&mut self) -> &mut [BlockQueue] {
        &mut self.queues
    }

    /// The conversation with the daemon: features, protocol messages of one's own, its process.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The device's configuration, as read when the connection was made.
    pub fn config(&self) -> &BlkConfig {
        self.connection.config()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Whether a daemon that takes over from a crashed one will finish what that left.
    pub fn survives_crash(&self) -> bool {
        self.inflight.is_some()
    }

    /// Connects to the daemon anew with the same memory and the same rings, as a monitor does when
    /// the daemon crashed or was replaced. Requests in flight are finished by the new daemon if
    /// [`Self::survives_crash`]; wait for their tickets as before. Otherwise have none in flight.
    pub fn reconnect(&mut self) -> Result<()> {
        let queues = self.queues.len() as u16;
        self.disconnect()?;
        self.connection = Connection::open(&self.socket, queues, self.features, PATIENCE)?;
        self.start()
    }

    /// Closes the connection at once, whatever is in flight. Memory and rings stay for
    /// [`Self::reconnect`].
    pub fn disconnect(&mut self) -> Result<()> {
        self.connection.abort()
    }

    /// Stops all queues in order: the daemon completes what it holds. Then closes the connection.
    pub fn stop(mut self) -> Result<()> {
        for index in 0..self.queues.len() {
            self.connection.stop_queue(index)?;
        }
        self.disconnect()
    }

    fn start(&mut self) -> Result<()> {
        let rings = self.queues.iter_mut().map(|queue| &mut queue.ring);
        self.connection.start(&self.memory, self.inflight.as_ref(), rings)?;
        for queue in &mut self.queues {
            queue.indirect = self.connection.has(VIRTIO_RING_F_INDIRECT_DESC);
            // The last daemon may have eaten a kick without doing the work.
            queue.ring.kick()?;
        }
        Ok(())
    }
}

/// A request as descriptors, ready for [`BlockQueue::submit`], or for being spoilt first.
#[derive(Clone, Debug)]
pub struct Chain {
    /// What goes into the descriptor table. `next` counts within this list.
    pub descriptors: Vec<Descriptor>,
    /// Where the device is expected to put the status byte.
    pub status: Option<GuestAddress>,
    /// Where and how many bytes the device is expected to answer.
    pub answer: (GuestAddress, u32),
}

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a request in flight holds descriptors and buffers until it is waited for"]
pub struct Ticket {
    head: u16,
    status: Option<GuestAddress>,
    answer: (GuestAddress, u32),
}

/// What a completed request brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The status byte; `None` if the chain had no place for one.
    pub status: Option<Status>,
    /// Bytes that the device says it wrote, status byte included.
    pub used_len: u32,
    /// The answer's buffer, whatever the status is.
    pub data: Vec<u8>,
}

/// One queue of the disk, and the buffers of its requests.
#[derive(Debug)]
pub struct BlockQueue {
    ring: DriverQueue,
    memory: Arc<GuestMemory>,
    buffers: Arena,
    indirect: bool,
    /// Chains that were collected while waiting for others.
    collected: Vec<Used>,
}

impl BlockQueue {
    fn new(ring: DriverQueue, memory: Arc<GuestMemory>, buffers: Arena) -> Self {
        Self { ring, memory, buffers, indirect: false, collected: Vec::new() }
    }

    /// Reads `len` bytes from `sector` (of 512 bytes) on.
    pub fn read(&mut self, sector: u64, len: u32) -> Result<Vec<u8>> {
        self.ask(&Request::Read { sector, len })
    }

    /// Writes `data` from `sector` on.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        self.ask(&Request::Write { sector, data }).map(drop)
    }

    /// Makes all completed writes durable.
    pub fn flush(&mut self) -> Result<()> {
        self.ask(&Request::Flush).map(drop)
    }

    /// Gives up the contents of `sectors` sectors.
    pub fn discard(&mut self, sector: u64, sectors: u32) -> Result<()> {
        self.ask(&Request::Discard { sector, sectors }).map(drop)
    }

    /// Zeroes `sectors` sectors, and allows the device to free them with `unmap`.
    pub fn write_zeroes(&mut self, sector: u64, sectors: u32, unmap: bool) -> Result<()> {
        self.ask(&Request::WriteZeroes { sector, sectors, unmap }).map(drop)
    }

    /// The disk's serial number, as far as its first zero byte.
    pub fn get_id(&mut self) -> Result<Vec<u8>> {
        let mut id = self.ask(&Request::GetId)?;
        id.truncate(id.iter().position(|byte| *byte == 0).unwrap_or(id.len()));
        Ok(id)
    }

    /// Sends a request and waits for it. Any status but success is an [`Error::Status`].
    pub fn ask(&mut self, request: &Request<'_>) -> Result<Vec<u8>> {
        let ticket = self.start(request)?;
        let done = self.wait(ticket)?;
        match done.status {
            Some(Status::Ok) => Ok(done.data),
            status => Err(Error::Status(status.unwrap_or(Status::Untouched))),
        }
    }

    /// Sends a request and does not wait for it.
    pub fn start(&mut self, request: &Request<'_>) -> Result<Ticket> {
        let mut chain = self.prepare(request)?;
        if self.indirect {
            chain = self.into_indirect(&chain)?;
        }
        self.submit(&chain)
    }

    /// Lays a request out in guest memory: header, data or segment if any, status byte, linked in
    /// this order in the queue's own table.
    pub fn prepare(&mut self, request: &Request<'_>) -> Result<Chain> {
        let header = self.place(&request.header())?;
        let mut descriptors = vec![Descriptor::readable(header, HEADER_LEN)];
        if let Request::Write { data, .. } = request {
            let place = self.place(data)?;
            descriptors.push(Descriptor::readable(place, data.len() as u32));
        }
        if let Some(segment) = request.segment() {
            let place = self.place(&segment)?;
            descriptors.push(Descriptor::readable(place, SEGMENT_LEN));
        }
        let answer = (self.reserve(request.answer_len().into())?, request.answer_len());
        if answer.1 > 0 {
            descriptors.push(Descriptor::writable(answer.0, answer.1));
        }
        let status = self.place(&[STATUS_UNTOUCHED])?;
        descriptors.push(Descriptor::writable(status, 1));
        link(&mut descriptors);
        Ok(Chain { descriptors, status: Some(status), answer })
    }

    /// [`Self::prepare`] for a read: descriptor 0 is the header, 1 the data, 2 the status byte.
    pub fn prepare_read(&mut self, sector: u64, len: u32) -> Result<Chain> {
        self.prepare(&Request::Read { sector, len })
    }

    /// [`Self::prepare`] for a write: descriptor 0 is the header, 1 the data, 2 the status byte.
    pub fn prepare_write(&mut self, sector: u64, data: &[u8]) -> Result<Chain> {
        self.prepare(&Request::Write { sector, data })
    }

    /// Moves a chain, however spoilt, into an indirect table of its own.
    pub fn into_indirect(&mut self, chain: &Chain) -> Result<Chain> {
        let count = chain.descriptors.len() as u16;
        let table: Vec<u8> = chain.descriptors.iter().flat_map(|d| d.encode()).collect();
        let place = self.reserve_aligned(table.len() as u64, DESCRIPTOR_LEN)?;
        self.memory.write(place, &table)?;
        Ok(Chain { descriptors: vec![Descriptor::indirect(place, count)], ..chain.clone() })
    }

    /// Copies `bytes` into a buffer of their own.
    pub fn place(&mut self, bytes: &[u8]) -> Result<GuestAddress> {
        let place = self.reserve(bytes.len() as u64)?;
        self.memory.write(place, bytes)?;
        Ok(place)
    }

    /// Sets aside a buffer of `len` bytes, aligned to pages if it holds a page.
    pub fn reserve(&mut self, len: u64) -> Result<GuestAddress> {
        self.reserve_aligned(len, if len >= 4096 { 4096 } else { 16 })
    }

    fn reserve_aligned(&mut self, len: u64, align: u64) -> Result<GuestAddress> {
        let idle = self.ring.chains_in_flight() == 0 && self.collected.is_empty();
        match self.buffers.take(len, align) {
            Err(Error::MemoryFull { .. }) if idle => {
                self.buffers.reset();
                self.buffers.take(len, align)
            }
            taken => taken,
        }
    }

    /// Offers a chain as it stands, and kicks.
    pub fn submit(&mut self, chain: &Chain) -> Result<Ticket> {
        let head = self.ring.offer(&chain.descriptors)?;
        self.ring.publish()?;
        Ok(Ticket { head, status: chain.status, answer: chain.answer })
    }

    /// Waits until the device has completed a request. An [`Error::Timeout`] or [`Error::Hangup`]
    /// leaves the request in flight: wait again after a reconnect.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Completion> {
        self.wait_for(ticket, PATIENCE)
    }

    /// [`Self::wait`], but not longer than `patience`.
    pub fn wait_for(&mut self, ticket: Ticket, patience: Duration) -> Result<Completion> {
        let deadline = Instant::now() + patience;
        let used = loop {
            if let Some(used) = self.find_collected(ticket.head)? {
                break used;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.ring.wait(left)? {
                Wake::Used => {}
                Wake::Hangup => return Err(Error::Hangup),
                Wake::Timeout => return Err(Error::Timeout(patience)),
            }
        };
        self.complete(ticket, used)
    }

    /// The virtqueue below, for lies about rings: [`DriverQueue::offer_head`].
    pub fn ring(&mut self) -> &mut DriverQueue {
        &mut self.ring
    }

    fn find_collected(&mut self, head: u16) -> Result<Option<Used>> {
        while let Some(used) = self.ring.collect()? {
            self.collected.push(used);
        }
        let position = self.collected.iter().position(|used| used.head == head);
        Ok(position.map(|i| self.collected.swap_remove(i)))
    }

    fn complete(&self, ticket: Ticket, used: Used) -> Result<Completion> {
        let mut status = [0];
        let mut data = vec![0; ticket.answer.1 as usize];
        self.memory.read(ticket.answer.0, &mut data)?;
        if let Some(place) = ticket.status {
            self.memory.read(place, &mut status)?;
        }
        let status = ticket.status.map(|_| Status::from(status[0]));
        Ok(Completion { status, used_len: used.len, data })
    }
}
