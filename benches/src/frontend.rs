//! The vhost-user conversation: features, configuration, memory, rings.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VringConfigData};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::config::{BlkConfig, CONFIG_LEN};
use crate::memory::GuestMemory;
use crate::queue::DriverQueue;
use crate::{Error, Result};

/// What the driver asks of the device, if the device offers it.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// VIRTIO_RING_F_EVENT_IDX: notifications by index, not by flag.
    pub event_idx: bool,
    /// VIRTIO_RING_F_INDIRECT_DESC: one ring slot per request.
    pub indirect: bool,
    /// VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD: a new daemon finishes what a crashed one left.
    pub inflight: bool,
}

impl Default for Features {
    /// Everything.
    fn default() -> Self {
        Self { event_idx: true, indirect: true, inflight: true }
    }
}

/// The shared record of requests in flight, which outlives a daemon.
pub struct Inflight {
    shape: VhostUserInflight,
    file: File,
}

impl std::fmt::Debug for Inflight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflight").field("file", &self.file).finish_non_exhaustive()
    }
}

/// One connection to a daemon.
pub struct Connection {
    frontend: Frontend,
    stream: UnixStream,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    queues: u16,
    config: BlkConfig,
}

impl Connection {
    /// Connects to `socket`, negotiates features and reads the device's configuration. The daemon
    /// must serve `queues` queues. It gets `timeout` for each answer.
    pub fn open(socket: &Path, queues: u16, wanted: Features, timeout: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .and_then(|stream| {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                Ok((stream.try_clone()?, stream))
            })
            .map_err(|cause| Error::Connect { path: socket.to_owned(), cause })?;
        let mut frontend = Frontend::from_stream(stream.0, queues.into());
        frontend.set_owner().map_err(Error::protocol("SET_OWNER"))?;
        let (features, protocol) = negotiate(&mut frontend, wanted)?;
        let served = served_queues(&mut frontend, protocol)?;
        if u64::from(queues) > served {
            return Err(Error::TooFewQueues { asked: queues, served });
        }
        let config = read_config(&mut frontend)?;
        Ok(Self { frontend, stream: stream.1, features, protocol, queues, config })
    }

    /// The negotiated virtio features, one bit each.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether the virtio feature with this bit number (`VIRTIO_BLK_F_*`, ..) was negotiated.
    pub fn has(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }

    /// The negotiated vhost-user protocol features.
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// The device's configuration, as read when the connection was made.
    pub fn config(&self) -> &BlkConfig {
        &self.config
    }

    /// Reads the device's configuration anew.
    pub fn refresh_config(&mut self) -> Result<&BlkConfig> {
        self.config = read_config(&mut self.frontend)?;
        Ok(&self.config)
    }

    /// The endpoint of crate `vhost`, to send any message.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Process that listens on the socket.
    pub fn server_pid(&self) -> Result<i32> {
        let peer = getsockopt(&self.stream, PeerCredentials)
            .map_err(Error::system("find the server's process"))?;
        Ok(peer.pid())
    }

    /// Gets a new inflight record for queues of `queue_size`, if the feature was negotiated.
    pub fn get_inflight(&mut self, queue_size: u16) -> Result<Option<Inflight>> {
        if !self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        let shape = VhostUserInflight::new(0, 0, self.queues, queue_size);
        let (shape, file) =
            self.frontend.get_inflight_fd(&shape).map_err(Error::protocol("GET_INFLIGHT_FD"))?;
        Ok(Some(Inflight { shape, file }))
    }

    /// Hands the daemon memory and queues, and lets it run. Each queue resumes where its used
    /// index stands: at 0 in fresh memory.
    pub fn start<'a>(
        &mut self,
        memory: &GuestMemory,
        inflight: Option<&Inflight>,
        queues: impl Iterator<Item = &'a mut DriverQueue>,
    ) -> Result<()> {
        if let Some(Inflight { shape, file }) = inflight {
            let frontend = &mut self.frontend;
            let sent = frontend.set_inflight_fd(shape, file.as_raw_fd());
            sent.map_err(Error::protocol("SET_INFLIGHT_FD"))?;
        }
        let regions = [memory.region_info()?];
        self.frontend.set_mem_table(&regions).map_err(Error::protocol("SET_MEM_TABLE"))?;
        for (index, queue) in queues.enumerate() {
            queue.set_event_idx(self.has(VIRTIO_RING_F_EVENT_IDX));
            queue.watch_connection(&self.stream)?;
            self.start_queue(index, queue, memory)?;
        }
        Ok(())
    }

    fn start_queue(&mut self, i: usize, queue: &DriverQueue, memory: &GuestMemory) -> Result<()> {
        let ring = queue.layout();
        let addresses = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: memory.user_address(ring.descriptors)?,
            used_ring_addr: memory.user_address(ring.used)?,
            avail_ring_addr: memory.user_address(ring.available)?,
            log_addr: None,
        };
        let base = queue.used_index()?;
        let frontend = &mut self.frontend;
        frontend.set_vring_num(i, ring.size).map_err(Error::protocol("SET_VRING_NUM"))?;
        frontend.set_vring_base(i, base).map_err(Error::protocol("SET_VRING_BASE"))?;
        frontend.set_vring_addr(i, &addresses).map_err(Error::protocol("SET_VRING_ADDR"))?;
        let (call, kick) = (queue.call_fd(), queue.kick_fd());
        frontend.set_vring_call(i, call).map_err(Error::protocol("SET_VRING_CALL"))?;
        frontend.set_vring_kick(i, kick).map_err(Error::protocol("SET_VRING_KICK"))?;
        frontend.set_vring_enable(i, true).map_err(Error::protocol("SET_VRING_ENABLE"))
    }

    /// Stops queue `index` in order: the daemon completes what it holds. Returns the available
    /// index up to which it took requests.
    pub fn stop_queue(&mut self, index: usize) -> Result<u32> {
        let frontend = &mut self.frontend;
        frontend.set_vring_enable(index, false).map_err(Error::protocol("SET_VRING_ENABLE"))?;
        frontend.get_vring_base(index).map_err(Error::protocol("GET_VRING_BASE"))
    }

    /// Closes the socket at once, whatever is in flight.
    pub fn abort(&self) -> Result<()> {
        // The endpoint of crate `vhost` holds the socket open too.
        match self.stream.shutdown(std::net::Shutdown::Both) {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => {
                Err(Error::system("close the connection")(e))
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("socket", &self.stream)
            .field("features", &format_args!("{:#x}", self.features))
            .field("protocol", &self.protocol)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

fn negotiate(
    frontend: &mut Frontend,
    wanted: Features,
) -> Result<(u64, VhostUserProtocolFeatures)> {
    let offered = frontend.get_features().map_err(Error::protocol("GET_FEATURES"))?;
    if offered & 1 << VIRTIO_F_VERSION_1 == 0 {
        return Err(Error::NotOffered("VIRTIO_F_VERSION_1"));
    }
    if offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
        return Err(Error::NotOffered("VHOST_USER_F_PROTOCOL_FEATURES"));
    }
    let protocol = negotiate_protocol(frontend, wanted)?;
    let features = offered & driver_features(wanted);
    frontend.set_features(features).map_err(Error::protocol("SET_FEATURES"))?;
    Ok((features, protocol))
}

fn negotiate_protocol(
    frontend: &mut Frontend,
    wanted: Features,
) -> Result<VhostUserProtocolFeatures> {
    type Protocol = VhostUserProtocolFeatures;
    let offered =
        frontend.get_protocol_features().map_err(Error::protocol("GET_PROTOCOL_FEATURES"))?;
    if !offered.contains(Protocol::CONFIG) {
        return Err(Error::NotOffered("VHOST_USER_PROTOCOL_F_CONFIG"));
    }
    let mut asked = Protocol::MQ | Protocol::REPLY_ACK | Protocol::CONFIG;
    asked.set(Protocol::INFLIGHT_SHMFD, wanted.inflight);
    let agreed = offered & asked;
    frontend.set_protocol_features(agreed).map_err(Error::protocol("SET_PROTOCOL_FEATURES"))?;
    if agreed.contains(Protocol::REPLY_ACK) {
        // Otherwise the errors of SET_ messages go unseen.
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(agreed)
}

fn driver_features(wanted: Features) -> u64 {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_RO,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ];
    let bits = always.iter().fold(0, |bits, bit| bits | 1 << bit);
    bits | u64::from(wanted.event_idx) << VIRTIO_RING_F_EVENT_IDX
        | u64::from(wanted.indirect) << VIRTIO_RING_F_INDIRECT_DESC
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

fn served_queues(frontend: &mut Frontend, protocol: VhostUserProtocolFeatures) -> Result<u64> {
    if protocol.contains(VhostUserProtocolFeatures::MQ) {
        frontend.get_queue_num().map_err(Error::protocol("GET_QUEUE_NUM"))
    } else {
        Ok(1)
    }
}

fn read_config(frontend: &mut Frontend) -> Result<BlkConfig> {
    let zeroes = [0; CONFIG_LEN];
    let flags = VhostUserConfigFlags::empty();
    let (_, bytes) = frontend
        .get_config(0, CONFIG_LEN as u32, flags, &zeroes)
        .map_err(Error::protocol("GET_CONFIG"))?;
    // Crate `vhost` lets no answer of another length through.
    Ok(BlkConfig::parse(&std::array::from_fn(|i| bytes[i])))
}
