//! The record of requests in flight, as frontends hand it over: made here and kept, made up, damaged, or a trap.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use benches::descriptor::{Descriptor, link};
use benches::frontend::{Connection, Features};
use benches::memory::GuestMemory;
use benches::queue::{DriverQueue, Wake};
use benches::ring::RingLayout;
use benches::session::PATIENCE;
use common::{Bed, Daemon, SECTOR};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use qcow::disk::sim::Random;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::GuestAddress;

const SIZE: u16 = 64;
/// Bytes from one queue's part to the next, by the specification's layout and rounded up to 64.
const PART: u64 = 16 + 16 * SIZE as u64 + 48;
/// The used ring's index within a part.
const USED_INDEX_AT: u64 = 14;

/// A guest with one queue, in memory of its own, that talks about its record itself.
struct Guest {
    connection: Connection,
    memory: Arc<GuestMemory>,
    queue: DriverQueue,
    buffers: GuestAddress,
}

impl Guest {
    fn connect(bed: &Bed) -> Self {
        let connection = Connection::open(&bed.socket(), 1, Features::default(), PATIENCE).unwrap();
        let memory = Arc::new(GuestMemory::new(1 << 20).unwrap());
        let mut arena = memory.arena();
        let ring_bytes = RingLayout::bytes(SIZE).next_multiple_of(4096);
        let mut rings = arena.split(ring_bytes).unwrap();
        let queue = DriverQueue::new(memory.clone(), &mut rings, SIZE).unwrap();
        let buffers = arena.take(65536, 4096).unwrap();
        Self { connection, memory, queue, buffers }
    }

    fn get(&mut self, queues: u16, size: u16) -> (VhostUserInflight, File) {
        let wanted = VhostUserInflight::new(0, 0, queues, size);
        self.connection.frontend().get_inflight_fd(&wanted).unwrap()
    }

    fn set(&mut self, shape: VhostUserInflight, file: &File) -> bool {
        self.connection.frontend().set_inflight_fd(&shape, file.as_raw_fd()).is_ok()
    }

    /// Lets the queue run; whether the daemon agrees.
    fn run(&mut self) -> bool {
        self.connection.start(&self.memory, None, [&mut self.queue].into_iter()).is_ok()
    }

    /// The descriptors of a write of one sector of `byte` to sector `number`; the status byte's place.
    fn write(&self, number: u64, byte: u8) -> (Vec<Descriptor>, GuestAddress) {
        let at = |offset| GuestAddress(self.buffers.0 + number * 2048 + offset);
        let header = [&1u64.to_le_bytes()[..], &number.to_le_bytes()].concat();
        self.memory.write(at(0), &header).unwrap();
        self.memory.write(at(512), &[byte; SECTOR]).unwrap();
        self.memory.write(at(1024), &[0xff]).unwrap();
        let mut chain = vec![
            Descriptor::readable(at(0), 16),
            Descriptor::readable(at(512), SECTOR as u32),
            Descriptor::writable(at(1024), 1),
        ];
        link(&mut chain);
        (chain, at(1024))
    }

    fn status(&self, place: GuestAddress) -> u8 {
        let mut status = [0];
        self.memory.read(place, &mut status).unwrap();
        status[0]
    }

    /// The next head in the used ring.
    fn used(&mut self) -> u16 {
        loop {
            if let Some(used) = self.queue.collect().unwrap() {
                return used.head;
            }
            assert_eq!(self.queue.wait(PATIENCE).unwrap(), Wake::Used);
        }
    }
}

/// Sets what the record says of the descriptor `head` of queue 0.
fn put_entry(file: &File, head: u16, in_flight: bool, next: u16, number: u64) {
    let at = 16 + 16 * u64::from(head);
    file.write_all_at(&[in_flight.into()], at).unwrap();
    file.write_all_at(&next.to_le_bytes(), at + 6).unwrap();
    file.write_all_at(&number.to_le_bytes(), at + 8).unwrap();
}

fn put_header(file: &File, last_batch_head: u16, used_index: u16) {
    let fields = [1, SIZE, last_batch_head, used_index].map(u16::to_le_bytes);
    file.write_all_at(&fields.concat(), 8).unwrap();
}

fn read_u16(file: &File, at: u64) -> u16 {
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, at).unwrap();
    u16::from_le_bytes(bytes)
}

fn assert_serving(daemon: &Daemon) {
    let mut session = daemon.connect();
    assert_eq!(session.queue(0).read(0, 512).unwrap().len(), 512);
}

#[test]
fn a_new_record_has_the_layout_of_the_specification_and_cannot_be_cut() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut guest = Guest::connect(&bed);
    let (shape, file) = guest.get(3, SIZE);
    assert_eq!((shape.mmap_offset, shape.num_queues, shape.queue_size), (0, 3, SIZE));
    assert_eq!(shape.mmap_size, (3 * PART).next_multiple_of(4096) + (1 << 20));
    assert_eq!(file.metadata().unwrap().len(), shape.mmap_size);
    assert!(file.set_len(0).is_err() && file.set_len(shape.mmap_size - 1).is_err());
    assert!(guest.set(shape, &file) && guest.run());
    let (chain, status) = guest.write(7, 0x77);
    let head = guest.queue.offer(&chain).unwrap();
    guest.queue.publish().unwrap();
    assert_eq!((guest.used(), guest.status(status)), (head, 0));
    // Stopped, the daemon has noted all there is.
    guest.connection.stop_queue(0).unwrap();
    assert_eq!(read_u16(&file, 8), 1, "version");
    assert_eq!(read_u16(&file, 10), SIZE);
    assert_eq!(read_u16(&file, 12), head, "head of the last batch");
    assert_eq!(read_u16(&file, USED_INDEX_AT), 1);
    assert_eq!(read_u16(&file, 16 + 16 * u64::from(head)), 0, "in flight");
    drop(guest);
    daemon.stop();
}

#[test]
fn what_a_record_has_in_flight_is_done_in_order_and_what_was_shown_is_not() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut guest = Guest::connect(&bed);
    // As a killed daemon has left it: four taken, of which it has shown one, without noting that.
    let statuses: Vec<_> = (0..5u64)
        .map(|number| {
            let (chain, status) = guest.write(number, 0x10 + number as u8);
            (guest.queue.offer(&chain).unwrap(), status)
        })
        .collect();
    guest.queue.publish().unwrap();
    let (heads, places): (Vec<u16>, Vec<GuestAddress>) = statuses.into_iter().unzip();
    let layout = *guest.queue.layout();
    let entry = [u32::from(heads[1]).to_le_bytes(), 1u32.to_le_bytes()].concat();
    guest.memory.write(layout.used_entry(0), &entry).unwrap();
    guest.memory.write(layout.used_index(), &1u16.to_le_bytes()).unwrap();
    let (shape, file) = guest.get(1, SIZE);
    put_header(&file, heads[1], 0);
    for (index, number) in [(0, 8), (1, 5), (2, 7), (3, 6)] {
        put_entry(&file, heads[index], true, 0, number);
    }
    assert!(guest.set(shape, &file) && guest.run());
    assert_eq!(guest.used(), heads[1], "what the dead one had shown");
    let mut done: Vec<u16> = (0..4).map(|_| guest.used()).collect();
    // They are started in order; what is done first of those is for the disk to say.
    done.sort_unstable();
    let mut expected = [heads[0], heads[2], heads[3], heads[4]];
    expected.sort_unstable();
    assert_eq!(done, expected);
    let statuses: Vec<u8> = places.iter().map(|place| guest.status(*place)).collect();
    assert_eq!(statuses, [0, 0xff, 0, 0, 0], "the one that was shown is not done again");
    drop(guest);
    daemon.stop();
    bed.assert_clean();
    let content = bed.content(5 * SECTOR);
    let bytes: Vec<u8> = content.chunks(SECTOR).map(|sector| sector[511]).collect();
    assert_eq!(bytes, [0x10, 0, 0x12, 0x13, 0x14]);
}

#[test]
fn records_that_lie_or_are_traps_end_the_conversation_only() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let shape = {
        let mut guest = Guest::connect(&bed);
        guest.get(1, SIZE).0
    };
    let memory = |len, seals| {
        let file = File::from(memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        file.set_len(len).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        file
    };
    let len = shape.mmap_size;
    let good = || memory(len, SealFlag::F_SEAL_SHRINK);
    let plain = tempfile::tempfile().unwrap();
    plain.set_len(len).unwrap();
    let new = VhostUserInflight::new;
    let lies = [
        ("not sealed", shape, memory(len, SealFlag::empty())),
        ("a file", shape, plain),
        ("no file", shape, File::open("/dev/null").unwrap()),
        ("too short", shape, memory(len - 4096, SealFlag::F_SEAL_SHRINK)),
        ("empty", shape, memory(0, SealFlag::F_SEAL_SHRINK)),
        (
            "sealed against writing",
            shape,
            memory(len, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE),
        ),
        ("offset behind the end", new(len, 4096, 1, SIZE), good()),
        ("offset that wraps", new(len, u64::MAX - 4095, 1, SIZE), good()),
        ("odd offset", new(len, 1, 1, SIZE), good()),
        ("other size", new(len + 4096, 0, 1, SIZE), good()),
        ("more queues", new(len, 0, 256, SIZE), good()),
        ("too many queues", new(len, 0, u16::MAX, SIZE), good()),
        ("longer queues", new(len, 0, 1, 1024), good()),
        ("too long queues", new(len, 0, 1, u16::MAX), good()),
    ];
    for (what, shape, file) in lies {
        let mut guest = Guest::connect(&bed);
        assert!(!guest.set(shape, &file), "{what}");
        assert!(!guest.run(), "{what}: no queue runs without its record");
    }
    let mut guest = Guest::connect(&bed);
    assert!(guest.set(shape, &good()) && guest.run());
    drop(guest);
    assert_serving(&daemon);
    daemon.stop();
}

#[test]
fn records_of_another_kind_keep_the_queue_from_running() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    // Where, and what: features, version, descriptors.
    for (at, value) in [(0, 1u16), (8, 2), (8, 0xffff), (10, SIZE - 1), (10, SIZE + 1), (10, 0)] {
        let mut guest = Guest::connect(&bed);
        let (shape, file) = guest.get(1, SIZE);
        put_header(&file, 0, 0);
        file.write_all_at(&value.to_le_bytes(), at).unwrap();
        assert!(!(guest.set(shape, &file) && guest.run()), "{value} at {at}");
    }
    // A record for shorter queues than the guest has.
    let mut guest = Guest::connect(&bed);
    let (shape, file) = guest.get(1, SIZE / 2);
    assert!(!(guest.set(shape, &file) && guest.run()));
    drop(guest);
    assert_serving(&daemon);
    daemon.stop();
}

#[test]
fn whatever_stands_in_a_record_and_a_ring_the_daemon_goes_on() {
    let bed = Bed::new();
    // A daemon's log holds what some frontends make it say.
    for first in (0..200).step_by(40) {
        let daemon = bed.serve(&[]);
        (first..first + 40).for_each(|seed| hand_over_rubbish(&bed, seed));
        assert_serving(&daemon);
        daemon.stop();
        bed.assert_clean();
    }
}

fn hand_over_rubbish(bed: &Bed, seed: u64) {
    let mut random = Random::new(seed);
    let mut guest = Guest::connect(bed);
    let (shape, file) = guest.get(1, SIZE);
    let mut bytes: Vec<u8> = (0..PART).map(|_| random.draw() as u8).collect();
    for head in 0..usize::from(SIZE) {
        bytes[16 + 16 * head] %= 2;
    }
    file.write_all_at(&bytes, 0).unwrap();
    if !seed.is_multiple_of(8) {
        file.write_all_at(&[0; 8], 0).unwrap();
        put_header(&file, random.draw() as u16 % (2 * SIZE), random.below(100) as u16);
    }
    if seed.is_multiple_of(5) {
        let log: Vec<u8> = (0..4096).map(|_| random.draw() as u8).collect();
        file.write_all_at(&log, shape.mmap_size - (1 << 20)).unwrap();
    }
    // Descriptors of small buffers in memory, most of them, that lead anywhere.
    let layout = *guest.queue.layout();
    for index in 0..SIZE {
        let addr = GuestAddress(guest.buffers.0 + random.below(70_000));
        let mut descriptor = Descriptor::readable(addr, random.below(600) as u32);
        (descriptor.flags, descriptor.next) =
            (random.below(8) as u16, random.below(u64::from(SIZE) + 1) as u16);
        guest.memory.write(layout.descriptor(index), &descriptor.encode()).unwrap();
    }
    let index = random.below(100) as u16;
    guest.memory.write(layout.used_index(), &index.to_le_bytes()).unwrap();
    let available = index.wrapping_add(random.below(80) as u16);
    guest.memory.write(layout.available_index(), &available.to_le_bytes()).unwrap();
    if guest.set(shape, &file) && guest.run() {
        guest.queue.kick().unwrap();
        // All that can be finished is finished.
        guest.connection.stop_queue(0).unwrap();
    }
}
