//! The vhost-user conversation beyond what an ordinary monitor does: memory that changes under a running queue, regions
//! one by one, a guest that never kicks, a reset.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use benches::descriptor::{Descriptor, link};
use benches::memory::GuestMemory;
use benches::queue::DriverQueue;
use benches::request::{Request, Status};
use benches::ring::RingLayout;
use common::{Bed, SECTOR};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

const SIZE: u16 = 1024;

/// A guest that does everything by hand.
struct Guest {
    memory: Arc<GuestMemory>,
    queue: DriverQueue,
    frontend: Frontend,
    stream: UnixStream,
    header: benches::descriptor::Descriptor,
}

impl Guest {
    /// Connects and negotiates; gives the daemon no memory and no queue yet.
    fn connect(bed: &Bed) -> Self {
        let memory = Arc::new(GuestMemory::new(1 << 20).unwrap());
        let mut arena = memory.arena();
        let ring_bytes = RingLayout::bytes(SIZE).next_multiple_of(4096);
        let mut rings = arena.split(ring_bytes).unwrap();
        let queue = DriverQueue::new(memory.clone(), &mut rings, SIZE).unwrap();
        let header = Descriptor::readable(arena.take(20480, 4096).unwrap(), 16);
        let stream = UnixStream::connect(bed.socket()).unwrap();
        let mut frontend = Frontend::from_stream(stream.try_clone().unwrap(), 1);
        frontend.set_owner().unwrap();
        assert_ne!(frontend.get_features().unwrap() & 1 << VIRTIO_F_VERSION_1, 0);
        let protocol = VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        assert!(frontend.get_protocol_features().unwrap().contains(protocol));
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let mut guest = Self { memory, queue, frontend, stream, header };
        guest.accept_features();
        guest
    }

    fn accept_features(&mut self) {
        let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let wanted = [VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC];
        let features = wanted.iter().fold(features, |bits, bit| bits | 1 << bit);
        self.frontend.set_features(features).unwrap();
        self.queue.set_event_idx(true);
    }

    fn describe_queue(&mut self) {
        let layout = self.queue.layout();
        let user = |address| self.memory.user_address(address).unwrap();
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: user(layout.descriptors),
            used_ring_addr: user(layout.used),
            avail_ring_addr: user(layout.available),
            log_addr: None,
        };
        let base = self.queue.used_index().unwrap();
        self.frontend.set_vring_num(0, SIZE).unwrap();
        self.frontend.set_vring_base(0, base).unwrap();
        self.frontend.set_vring_addr(0, &addresses).unwrap();
        self.frontend.set_vring_call(0, self.queue.call_fd()).unwrap();
    }

    /// Describes the queue and lets it run.
    fn run_queue(&mut self) {
        self.describe_queue();
        self.frontend.set_vring_kick(0, self.queue.kick_fd()).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
    }

    fn add_memory(&mut self) {
        let region = self.memory.region_info().unwrap();
        self.frontend.add_mem_region(&region).unwrap();
    }

    /// Tells the daemon that the guest never kicks: VHOST_USER_SET_VRING_KICK with the bit for "no descriptor".
    fn set_polled(&mut self) {
        let (message, version, len, no_descriptor) = (12u32, 1u32, 8u32, 0x100u64);
        let mut bytes = [message, version, len].map(u32::to_le_bytes).concat();
        bytes.extend(no_descriptor.to_le_bytes());
        self.stream.write_all(&bytes).unwrap();
    }

    /// Offers a bad chain again and again, always some ahead of the daemon, until `stop`.
    fn flood(&mut self, under_way: &Barrier, stop: &AtomicBool) {
        // A long chain: it takes the daemon longer to refuse than us to offer. The status byte tells that it has.
        let page = self.header.addr;
        let status = vm_memory::GuestAddress(page.0 + 16384);
        let mut table = vec![Descriptor::readable(page, 1); 1024];
        table[1023] = Descriptor::writable(status, 1);
        link(&mut table);
        let table: Vec<u8> = table.iter().flat_map(|d| d.encode()).collect();
        self.memory.write(page, &table).unwrap();
        self.memory.write(status, &[0xff]).unwrap();
        let head = self.queue.offer(&[Descriptor::indirect(page, 1024)]).unwrap();
        for _ in 0..SIZE - 2 {
            self.queue.offer_head(head).unwrap();
        }
        self.queue.publish().unwrap();
        let mut refused = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut answer = [0xff];
            self.memory.read(status, &mut answer).unwrap();
            if answer == [0xff] {
                continue;
            }
            self.memory.write(status, &[0xff]).unwrap();
            self.queue.offer_head(head).unwrap();
            self.queue.publish().unwrap();
            refused += 1;
            if refused == 100 {
                under_way.wait();
            }
        }
    }

    /// Reads sector 0 without kicking.
    fn read(&mut self) -> Option<Status> {
        let page = self.header.addr;
        let at = |offset| vm_memory::GuestAddress(page.0 + offset);
        let request = Request::Read { sector: 0, len: SECTOR as u32 };
        self.memory.write(page, &request.header()).unwrap();
        self.memory.write(at(1024), &[0xff]).unwrap();
        let mut chain =
            [self.header, Descriptor::writable(at(512), 512), Descriptor::writable(at(1024), 1)];
        link(&mut chain);
        self.queue.offer(&chain).unwrap();
        self.queue.publish().unwrap();
        while self.queue.collect().unwrap().is_none() {
            let woken = self.queue.wait(benches::session::PATIENCE).unwrap();
            assert_eq!(woken, benches::queue::Wake::Used);
        }
        let mut status = [0];
        self.memory.read(at(1024), &mut status).unwrap();
        Some(Status::from(status[0]))
    }
}

#[test]
fn a_guest_that_never_kicks_is_served() {
    let bed = Bed::new();
    let daemon = bed.serve(&["--queue-size", "1024"]);
    let mut guest = Guest::connect(&bed);
    guest.add_memory();
    guest.describe_queue();
    guest.set_polled();
    guest.frontend.set_vring_enable(0, true).unwrap();
    for _ in 0..100 {
        assert_eq!(guest.read(), Some(Status::Ok));
    }
    drop(guest);
    daemon.stop();
}

#[test]
fn a_queue_runs_once_it_has_memory_and_is_enabled() {
    let bed = Bed::new();
    let daemon = bed.serve(&["--queue-size", "1024"]);
    let mut guest = Guest::connect(&bed);
    guest.run_queue();
    guest.add_memory();
    assert_eq!(guest.read(), Some(Status::Ok));
    // Away and back.
    let region = guest.memory.region_info().unwrap();
    guest.frontend.remove_mem_region(&region).unwrap();
    assert!(guest.frontend.remove_mem_region(&region).is_err());
    guest.add_memory();
    assert_eq!(guest.read(), Some(Status::Ok));
    drop(guest);
    daemon.stop();
}

#[test]
fn a_reset_forgets_the_queues_and_the_features() {
    let bed = Bed::new();
    let daemon = bed.serve(&["--queue-size", "1024"]);
    let mut guest = Guest::connect(&bed);
    guest.add_memory();
    guest.run_queue();
    assert_eq!(guest.read(), Some(Status::Ok));
    guest.frontend.reset_device().unwrap();
    // Nothing is accepted now, so both sides must do without event indices.
    guest.queue.set_event_idx(false);
    guest.run_queue();
    for _ in 0..3 {
        assert_eq!(guest.read(), Some(Status::Ok));
    }
    // Accepted while the queue runs.
    guest.accept_features();
    for _ in 0..3 {
        assert_eq!(guest.read(), Some(Status::Ok));
    }
    drop(guest);
    daemon.stop();
}

#[test]
fn features_take_effect_on_a_running_queue() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    let all = session.connection().features();
    let plain = session.queue(0).prepare_read(0, 512).unwrap();
    for (features, used_len) in [(all & !(1 << VIRTIO_RING_F_INDIRECT_DESC), 0), (all, 513)] {
        session.connection().frontend().set_features(features).unwrap();
        let chain = session.queue(0).into_indirect(&plain).unwrap();
        let ticket = session.queue(0).submit(&chain).unwrap();
        assert_eq!(session.queue(0).wait(ticket).unwrap().used_len, used_len);
    }
    drop(session);
    daemon.stop();
}

#[test]
fn a_queue_that_loses_its_memory_waits_for_it() {
    let bed = Bed::new();
    let daemon = bed.serve(&["--queue-size", "1024"]);
    let mut guest = Guest::connect(&bed);
    guest.add_memory();
    guest.run_queue();
    assert_eq!(guest.read(), Some(Status::Ok));
    let (own, elsewhere) = (guest.memory.region_info().unwrap(), GuestMemory::new(4096).unwrap());
    let mut other = elsewhere.region_info().unwrap();
    other.guest_phys_addr = own.guest_phys_addr + own.memory_size;
    guest.frontend.add_mem_region(&other).unwrap();
    guest.frontend.remove_mem_region(&own).unwrap();
    guest.add_memory();
    assert_eq!(guest.read(), Some(Status::Ok));
    guest.frontend.set_mem_table(&[other]).unwrap();
    guest.frontend.set_mem_table(&[other, own]).unwrap();
    assert_eq!(guest.read(), Some(Status::Ok));
    drop(guest);
    daemon.stop();
}

#[test]
fn memory_and_eventfds_may_change_under_a_running_queue() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    let region = session.memory().region_info().unwrap();
    let mut tickets = Vec::new();
    for round in 0..16 {
        let request = Request::Write { sector: round * 128, data: &[round as u8 + 1; 65536] };
        tickets.push(session.queue(0).start(&request).unwrap());
        match round % 3 {
            0 => session.connection().frontend().set_mem_table(&[region]).map(drop).unwrap(),
            1 => {
                let call = session.queue(0).ring().call_fd().try_clone().unwrap();
                session.connection().frontend().set_vring_call(0, &call).unwrap();
            }
            _ => {
                let kick = session.queue(0).ring().kick_fd().try_clone().unwrap();
                session.connection().frontend().set_vring_kick(0, &kick).unwrap();
            }
        }
    }
    for ticket in tickets {
        assert_eq!(session.queue(0).wait(ticket).unwrap().status, Some(Status::Ok));
    }
    let bytes = session.queue(0).read(15 * 128, 65536).unwrap();
    assert!(bytes.iter().all(|&b| b == 16));
    drop(session);
    daemon.stop();
    bed.assert_clean();
}

#[test]
fn a_guest_that_offers_without_end_does_not_keep_the_daemon_from_stopping() {
    let bed = Bed::new();
    let daemon = bed.serve(&["--queue-size", "1024"]);
    let mut guest = Guest::connect(&bed);
    guest.add_memory();
    guest.run_queue();
    assert_eq!(guest.read(), Some(Status::Ok));
    let (under_way, stop) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        let flood = scope.spawn(|| guest.flood(&under_way, &stop));
        under_way.wait();
        daemon.stop();
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap();
    });
    bed.assert_clean();
}
