//! One conversation with a backend, from connecting to it until either side is gone.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Ring;
use super::notices::Notices;
use crate::ram::GuestMemory;

type Protocol = VhostUserProtocolFeatures;

/// How long a backend may take for an answer: when it introduces itself, and later, when it may have to wait for its disk.
const PATIENCE_AT_FIRST: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Features that pass from device to guest: those of its kind, and of the transport those that need nothing from this program:
/// indirect descriptors, event indices, version 1.
const FEATURES_PASSED: u64 = 0xff_ffff | 1 << 28 | 1 << 29 | 1 << 32;
/// Virtio 1.
const VERSION_1: u64 = 1 << 32;

/// The record of requests in flight, which outlives a backend.
pub struct Inflight {
    shape: VhostUserInflight,
    file: File,
}

impl std::fmt::Debug for Inflight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflight").field("file", &self.file).finish_non_exhaustive()
    }
}

/// See the module.
pub struct Session {
    frontend: Frontend,
    stream: UnixStream,
    offered: u64,
    protocol: Protocol,
    queue_max: u16,
    notices: Option<Notices>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Session {
    /// Connects to the backend that listens at `path`, and learns what it has.
    pub fn open(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("nobody serves this socket")?;
        set_patience(&stream, PATIENCE_AT_FIRST)?;
        let mut frontend = Frontend::from_stream(stream.try_clone()?, 1);
        frontend.set_owner().context("SET_OWNER")?;
        let offered = frontend.get_features().context("GET_FEATURES")?;
        ensure!(offered & VERSION_1 != 0, "the backend does not offer virtio 1");
        ensure!(
            offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0,
            "the backend does not offer protocol features"
        );
        let protocol = negotiate(&mut frontend)?;
        let queue_max = if protocol.contains(Protocol::MQ) {
            frontend.get_queue_num().context("GET_QUEUE_NUM")?.try_into().unwrap_or(u16::MAX)
        } else {
            1
        };
        ensure!(queue_max > 0, "the backend has no queues");
        let notices = listen(&mut frontend, protocol)?;
        set_patience(&stream, PATIENCE)?;
        Ok(Self { frontend, stream, offered, protocol, queue_max, notices })
    }

    /// The features that a guest may be offered, one bit each.
    pub fn features(&self) -> u64 {
        self.offered & FEATURES_PASSED
    }

    /// Most queues.
    pub fn queue_max(&self) -> u16 {
        self.queue_max
    }

    /// The first `len` bytes of the device's configuration.
    pub fn read_config(&mut self, len: usize) -> Result<Vec<u8>> {
        if len == 0 {
            return Ok(Vec::new());
        }
        ensure!(
            self.protocol.contains(Protocol::CONFIG),
            "the backend does not tell its configuration"
        );
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) =
            self.frontend.get_config(0, len as u32, flags, &vec![0; len]).context("GET_CONFIG")?;
        ensure!(bytes.len() == len, "GET_CONFIG: {} bytes, not {len}", bytes.len());
        Ok(bytes)
    }

    /// Changes bytes of the device's configuration.
    pub fn write_config(&mut self, at: u32, bytes: &[u8]) -> Result<()> {
        let flags = VhostUserConfigFlags::WRITABLE;
        self.frontend.set_config(at, flags, bytes).context("SET_CONFIG")
    }

    /// A record for requests in flight in `queues` queues of up to `size` entries; `None` if the backend keeps none.
    pub fn new_inflight(&mut self, queues: u16, size: u16) -> Result<Option<Inflight>> {
        if !self.protocol.contains(Protocol::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        let shape = VhostUserInflight::new(0, 0, queues, size);
        let (shape, file) = self.frontend.get_inflight_fd(&shape).context("GET_INFLIGHT_FD")?;
        Ok(Some(Inflight { shape, file }))
    }

    /// Hands over a record that an earlier backend has kept.
    pub fn set_inflight(&mut self, inflight: &Inflight) -> Result<()> {
        let fd = inflight.file.as_raw_fd();
        self.frontend.set_inflight_fd(&inflight.shape, fd).context("SET_INFLIGHT_FD")
    }

    /// Lets the backend serve `rings` in `memory`, each from the request on that `base` says.
    pub fn start(
        &mut self,
        features: u64,
        rings: &[Ring],
        memory: &GuestMemory,
        base: impl Fn(&Ring) -> Result<u16>,
    ) -> Result<()> {
        ensure!(
            features & !self.features() == 0,
            "the backend lacks features that the guest uses: {:#x}",
            features & !self.features()
        );
        let features = features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_features(features).context("SET_FEATURES")?;
        self.frontend.set_mem_table(&regions(memory)?).context("SET_MEM_TABLE")?;
        for ring in rings {
            self.set_ring(ring, memory, base(ring)?)?;
        }
        for ring in rings {
            self.frontend.set_vring_enable(ring.index, true).context("SET_VRING_ENABLE")?;
        }
        Ok(())
    }

    fn set_ring(&mut self, ring: &Ring, memory: &GuestMemory, base: u16) -> Result<()> {
        let Ring { index, size, .. } = *ring;
        let addresses = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: user_address(memory, ring.descriptors)?,
            used_ring_addr: user_address(memory, ring.used)?,
            avail_ring_addr: user_address(memory, ring.available)?,
            log_addr: None,
        };
        let frontend = &self.frontend;
        frontend.set_vring_num(index, size).context("SET_VRING_NUM")?;
        frontend.set_vring_base(index, base).context("SET_VRING_BASE")?;
        frontend.set_vring_addr(index, &addresses).context("SET_VRING_ADDR")?;
        frontend.set_vring_call(index, &ring.call).context("SET_VRING_CALL")?;
        frontend.set_vring_kick(index, &ring.kick).context("SET_VRING_KICK")
    }

    /// Lets the backend finish what is in flight, and take no more.
    pub fn stop(&mut self, rings: &[Ring]) -> Result<()> {
        for ring in rings {
            self.frontend.set_vring_enable(ring.index, false).context("SET_VRING_ENABLE")?;
            self.frontend.get_vring_base(ring.index).context("GET_VRING_BASE")?;
        }
        if self.protocol.contains(Protocol::RESET_DEVICE) {
            self.frontend.reset_device().context("RESET_DEVICE")?;
        }
        Ok(())
    }

    /// What the backend says unasked comes here, if it can.
    pub fn notices(&mut self) -> Option<&mut Notices> {
        self.notices.as_mut()
    }

    /// See [`Self::notices`]: what to wait for.
    pub fn notices_fd(&self) -> Option<BorrowedFd<'_>> {
        self.notices.as_ref().map(Notices::as_fd)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn set_patience(stream: &UnixStream, patience: Duration) -> Result<()> {
    stream.set_read_timeout(Some(patience))?;
    Ok(stream.set_write_timeout(Some(patience))?)
}

fn negotiate(frontend: &mut Frontend) -> Result<Protocol> {
    let offered = frontend.get_protocol_features().context("GET_PROTOCOL_FEATURES")?;
    let wanted = Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::CONFIG
        | Protocol::BACKEND_REQ
        | Protocol::INFLIGHT_SHMFD
        | Protocol::RESET_DEVICE;
    let agreed = offered & wanted;
    frontend.set_protocol_features(agreed).context("SET_PROTOCOL_FEATURES")?;
    if agreed.contains(Protocol::REPLY_ACK) {
        // Without it nobody would learn of what a backend refuses.
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(agreed)
}

fn listen(frontend: &mut Frontend, protocol: Protocol) -> Result<Option<Notices>> {
    if !protocol.contains(Protocol::BACKEND_REQ) {
        return Ok(None);
    }
    let (notices, theirs) = Notices::new()?;
    frontend.set_backend_request_fd(&theirs).context("SET_BACKEND_REQ_FD")?;
    Ok(Some(notices))
}

fn regions(memory: &GuestMemory) -> Result<Vec<VhostUserMemoryRegionInfo>> {
    let info = |region| VhostUserMemoryRegionInfo::from_guest_region(region).map_err(Into::into);
    memory.iter().map(info).collect()
}

/// Where this program has a guest address mapped: that is what rings are told by.
fn user_address(memory: &GuestMemory, address: u64) -> Result<u64> {
    let region = memory.find_region(GuestAddress(address));
    let region = region
        .with_context(|| format!("a ring at {address:#x}, which is not in the guest's memory"))?;
    Ok(region.as_ptr() as u64 + (address - region.start_addr().0))
}
