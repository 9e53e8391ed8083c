//! Guests and frontends that break the rules: their request fails, and everything else goes on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;

use benches::descriptor::{Descriptor, INDIRECT, NEXT, WRITE, link};
use benches::frontend::Features;
use benches::request::{self, Status};
use benches::session::{BlockQueue, Chain, Completion, Session};
use common::{Bed, Daemon, MIB, SECTOR};
use vhost::VhostBackend;
use vm_memory::GuestAddress;

const NOWHERE: GuestAddress = GuestAddress(0xdead_0000_0000);

/// One disk under attack, which has to answer honest requests after each.
struct Attack {
    bed: Bed,
    daemon: Daemon,
    session: Session,
}

impl Attack {
    fn new(options: &[&str]) -> Self {
        let bed = Bed::new();
        let daemon = bed.serve(options);
        let session = daemon.connect();
        Self { bed, daemon, session }
    }

    fn disk(&mut self) -> &mut BlockQueue {
        self.session.queue(0)
    }

    fn send(&mut self, chain: &Chain) -> Completion {
        let ticket = self.disk().submit(chain).unwrap();
        let done = self.disk().wait(ticket).unwrap();
        assert_eq!(self.disk().read(0, 512).unwrap().len(), 512, "an honest request afterwards");
        done
    }

    /// The answer to a read of one sector that `spoil` has spoilt.
    fn spoilt_read(&mut self, spoil: impl FnOnce(&mut Chain)) -> Completion {
        let mut chain = self.disk().prepare_read(0, 512).unwrap();
        spoil(&mut chain);
        self.send(&chain)
    }

    /// The answer to a request with this header and these readable bytes behind it.
    fn odd_request(&mut self, header: &[u8], data: &[u8]) -> Option<Status> {
        let mut chain = self.disk().prepare_write(0, data).unwrap();
        chain.descriptors[0].addr = self.disk().place(header).unwrap();
        chain.descriptors[0].len = header.len() as u32;
        if data.is_empty() {
            chain.descriptors.remove(1);
            link(&mut chain.descriptors);
        }
        self.send(&chain).status
    }

    fn end(self) {
        drop(self.session);
        self.daemon.stop();
        self.bed.assert_clean();
    }
}

#[test]
fn chains_that_break_the_rules_fail_alone() {
    let mut attack = Attack::new(&[]);
    let io_error = Some(Status::IoError);
    assert_eq!(attack.spoilt_read(|c| c.descriptors[1].addr = NOWHERE).status, io_error);
    assert_eq!(attack.spoilt_read(|c| c.descriptors[0].addr = NOWHERE).status, io_error);
    assert_eq!(attack.spoilt_read(|c| c.descriptors[1].len = u32::MAX).status, io_error);
    assert_eq!(attack.spoilt_read(|c| c.descriptors[1].addr.0 = u64::MAX - 1).status, io_error);
    assert_eq!(attack.spoilt_read(|c| c.descriptors[1].len = 511).status, io_error);
    assert_eq!(attack.spoilt_read(|c| c.descriptors[0].len = 15).status, io_error);
    assert_eq!(attack.spoilt_read(|c| c.descriptors[0].len = 0).status, io_error);
    // A readable buffer behind a writable one.
    let swap = |c: &mut Chain| {
        c.descriptors.swap(0, 1);
        link(&mut c.descriptors);
    };
    assert_eq!(attack.spoilt_read(swap).status, io_error);
    attack.end();
}

#[test]
fn chains_without_a_place_for_the_status_are_returned_empty() {
    let mut attack = Attack::new(&[]);
    let spoilers: [fn(&mut Chain); 6] = [
        |c| c.descriptors[2].addr = NOWHERE,
        |c| c.descriptors[2].flags = NEXT,
        |c| (c.descriptors[2].flags, c.descriptors[2].next) = (WRITE | NEXT, 0),
        |c| (c.descriptors[2].flags, c.descriptors[2].next) = (WRITE | NEXT, 2),
        |c| (c.descriptors[0].flags, c.descriptors[0].next) = (NEXT, 0x7fff),
        |c| c.descriptors.iter_mut().for_each(|d| d.flags &= !WRITE),
    ];
    for (number, spoil) in spoilers.into_iter().enumerate() {
        let done = attack.spoilt_read(spoil);
        assert_eq!((done.status, done.used_len), (Some(Status::Untouched), 0), "spoiler {number}");
    }
    attack.end();
}

#[test]
fn indirect_tables_that_break_the_rules_are_returned_empty() {
    let mut attack = Attack::new(&[]);
    let spoilers: [fn(&mut Chain); 6] = [
        |c| c.descriptors[0].len += 1,
        |c| c.descriptors[0].len = 0,
        |c| c.descriptors[0].addr = NOWHERE,
        |c| c.descriptors[0].len = 16 * 257,
        |c| c.descriptors[0].len = u32::MAX - 15,
        |c| (c.descriptors[0].flags, c.descriptors[0].next) = (INDIRECT | NEXT, 0),
    ];
    for (number, spoil) in spoilers.into_iter().enumerate() {
        let plain = attack.disk().prepare_read(0, 512).unwrap();
        let mut chain = attack.disk().into_indirect(&plain).unwrap();
        spoil(&mut chain);
        let done = attack.send(&chain);
        assert_eq!((done.status, done.used_len), (Some(Status::Untouched), 0), "spoiler {number}");
    }
    // A table inside a table.
    let plain = attack.disk().prepare_read(0, 512).unwrap();
    let inner = attack.disk().into_indirect(&plain).unwrap();
    let outer = attack.disk().into_indirect(&inner).unwrap();
    assert_eq!(attack.send(&outer).used_len, 0);
    attack.end();
}

#[test]
fn an_indirect_table_that_was_not_negotiated_is_refused() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let features = Features { indirect: false, ..Features::default() };
    let mut session = daemon.connect_with(1, features);
    let plain = session.queue(0).prepare_read(0, 512).unwrap();
    let chain = session.queue(0).into_indirect(&plain).unwrap();
    let ticket = session.queue(0).submit(&chain).unwrap();
    assert_eq!(session.queue(0).wait(ticket).unwrap().used_len, 0);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    use virtio_bindings::virtio_blk::{
        VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    };
    let mut attack = Attack::new(&[]);
    let sectors = 64 * MIB / SECTOR as u64;
    let (io_error, unsupported) = (Some(Status::IoError), Some(Status::Unsupported));
    let write = |sector| request::header(VIRTIO_BLK_T_OUT, sector);
    assert_eq!(attack.odd_request(&write(sectors), &[1; 512]), io_error);
    assert_eq!(attack.odd_request(&write(sectors - 1), &[1; 1024]), io_error);
    assert_eq!(attack.odd_request(&write(u64::MAX), &[1; 512]), io_error);
    assert_eq!(attack.odd_request(&write(1 << 55), &[1; 512]), io_error);
    assert_eq!(attack.odd_request(&write(0), &[1; 100]), io_error);
    assert_eq!(attack.odd_request(&request::header(77, 0), &[1; 512]), unsupported);

    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let header = request::header(kind, 0);
        assert_eq!(attack.odd_request(&header, &request::segment(0, 8, 0)), Some(Status::Ok));
        assert_eq!(attack.odd_request(&header, &request::segment(0, 8, 4)), unsupported);
        assert_eq!(attack.odd_request(&header, &request::segment(sectors, 1, 0)), io_error);
        assert_eq!(attack.odd_request(&header, &request::segment(u64::MAX, 8, 0)), io_error);
        assert_eq!(attack.odd_request(&header, &request::segment(0, u32::MAX, 0)), io_error);
        assert_eq!(attack.odd_request(&header, &[0; 15]), io_error);
        assert_eq!(attack.odd_request(&header, &[]), io_error);
        assert_eq!(attack.odd_request(&header, &request::segment(0, 8, 0).repeat(33)), io_error);
    }
    let discard = request::header(VIRTIO_BLK_T_DISCARD, 0);
    assert_eq!(attack.odd_request(&discard, &request::segment(0, 8, 1)), unsupported);
    attack.end();
}

#[test]
fn several_ranges_in_one_request_are_checked_before_any_is_touched() {
    let mut attack = Attack::new(&[]);
    attack.disk().write(0, &[5; 4096]).unwrap();
    let header = request::header(virtio_bindings::virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES, 0);
    let (good, more) = (request::segment(0, 1, 0), request::segment(2, 1, 1));
    let bad = request::segment(u64::MAX, 1, 0);
    assert_eq!(attack.odd_request(&header, &[good, bad].concat()), Some(Status::IoError));
    assert_eq!(attack.disk().read(0, 512).unwrap(), [5; 512]);
    assert_eq!(attack.odd_request(&header, &[good, more].concat()), Some(Status::Ok));
    let bytes = attack.disk().read(0, 1536).unwrap();
    assert_eq!([bytes[0], bytes[512], bytes[1024]], [0, 5, 0]);
    attack.end();
}

#[test]
fn headers_and_status_bytes_may_lie_anywhere() {
    let mut attack = Attack::new(&[]);
    attack.disk().write(4, &[3; 512]).unwrap();
    // The header in two pieces; data and status in one buffer, which follows an empty one.
    let plain = attack.disk().prepare_read(4, 512).unwrap();
    let header = plain.descriptors[0].addr;
    let answer = attack.disk().reserve(513).unwrap();
    let mut descriptors = vec![
        Descriptor::readable(header, 7),
        Descriptor::readable(GuestAddress(header.0 + 7), 9),
        Descriptor::writable(answer, 0),
        Descriptor::writable(answer, 513),
    ];
    link(&mut descriptors);
    let status = Some(GuestAddress(answer.0 + 512));
    let done = attack.send(&Chain { descriptors, status, answer: (answer, 512) });
    assert_eq!((done.status, done.used_len), (Some(Status::Ok), 513));
    assert_eq!(done.data, [3; 512]);
    attack.end();
}

#[test]
fn a_broken_ring_stops_its_queue_only() {
    let bed = Bed::new();
    let daemon = bed.serve(&["--num-queues", "2"]);
    for head in [64, u16::MAX] {
        let mut session = daemon.connect_with(2, Features::default());
        session.queue(0).ring().offer_head(head).unwrap();
        session.queue(0).ring().publish().unwrap();
        session.queue(1).write(0, &[2; 512]).unwrap();
        // The queue can still be stopped in order.
        session.stop().unwrap();
    }
    let mut session = daemon.connect_with(2, Features::default());
    for _ in 0..65 {
        session.queue(0).ring().offer_head(0).unwrap();
    }
    session.queue(0).ring().publish().unwrap();
    session.queue(1).write(0, &[2; 512]).unwrap();
    session.stop().unwrap();
    assert_eq!(daemon.connect().queue(0).read(0, 512).unwrap(), [2; 512]);
    daemon.stop();
    bed.assert_clean();
}

#[test]
fn frontends_that_break_the_rules_are_cut_off() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let attacks: [fn(&mut Session) -> bool; 5] = [
        |s| s.connection().frontend().set_vring_num(0, 100).is_err(),
        |s| s.connection().frontend().set_vring_num(0, 512).is_err(),
        |s| s.connection().frontend().set_vring_base(7, 0).is_err(),
        |s| s.connection().frontend().set_features(u64::MAX).is_err(),
        |s| {
            let nowhere = vhost::VringConfigData {
                queue_max_size: 64,
                queue_size: 64,
                flags: 0,
                desc_table_addr: 0x10_0000_0000_0000,
                used_ring_addr: 0x10_0000_0001_0000,
                avail_ring_addr: 0x10_0000_0002_0000,
                log_addr: None,
            };
            s.connection().frontend().set_vring_addr(0, &nowhere).is_err()
        },
    ];
    for (number, attack) in attacks.into_iter().enumerate() {
        let mut session = daemon.connect();
        assert!(attack(&mut session), "attack {number}");
        drop(session);
        daemon.connect().queue(0).read(0, 512).unwrap();
    }
    for garbage in [&[0xff; 4096][..], &[0; 12], &[1], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = daemon.connect_raw();
        // The daemon may have hung up before the end.
        let _ = stream.write_all(garbage);
        drop(stream);
        daemon.connect().queue(0).read(0, 512).unwrap();
    }
    daemon.stop();
}

#[test]
fn guest_memory_past_the_end_of_its_file_is_refused() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    let mut region = session.memory().region_info().unwrap();
    region.memory_size += 4096;
    assert!(session.connection().frontend().set_mem_table(&[region]).is_err());
    drop(session);
    daemon.connect().queue(0).read(0, 512).unwrap();
    daemon.stop();
}

/// A small generator of random numbers: the same seed, the same attack.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// One descriptor of anything, whose buffer lies in `buffer` (64 KiB) or nowhere.
    fn descriptor(&mut self, buffer: GuestAddress) -> Descriptor {
        let inside = GuestAddress(buffer.0 + self.below(60000));
        let far = GuestAddress(u64::MAX - self.below(600));
        Descriptor {
            addr: self.pick(&[inside, inside, inside, inside, NOWHERE, far]),
            len: self.pick(&[16, 1, 512, 4096, 0, 17, 513, 0x1_0000, u32::MAX]),
            flags: self.pick(&[
                NEXT,
                NEXT,
                NEXT | WRITE,
                NEXT | WRITE,
                WRITE,
                0,
                INDIRECT,
                7,
                0xffff,
            ]),
            next: self.pick(&[0, 1, 2, 3, 4, 5, 63, 64, 0xffff]),
        }
    }
}

#[test]
fn random_chains_are_all_returned() {
    let seed = match std::env::var("HOSTILE_SEED") {
        Ok(seed) => seed.parse().expect("HOSTILE_SEED is a number"),
        Err(_) => std::process::id().into(),
    };
    println!(
        "again: HOSTILE_SEED={seed} cargo test -p vhost-blk --test hostile random_chains_are_all"
    );
    let mut random = Random(seed);
    let mut attack = Attack::new(&[]);
    // Headers of every type lie all over the buffer that the chains point into.
    let headers: Vec<u8> = (0..4096)
        .flat_map(|_| request::header(random.pick(&[0, 1, 4, 8, 11, 13, 99]), random.below(200)))
        .collect();
    for _ in 0..300 {
        let buffer = attack.disk().place(&headers).unwrap();
        let mut tickets = Vec::new();
        for _ in 0..8 {
            let count = 1 + random.below(6) as usize;
            let mut descriptors: Vec<_> = (0..count).map(|_| random.descriptor(buffer)).collect();
            if random.below(2) == 0 {
                link(&mut descriptors);
            }
            let mut chain = Chain { descriptors, status: None, answer: (buffer, 0) };
            if random.below(3) == 0 {
                chain = attack.disk().into_indirect(&chain).unwrap();
            }
            tickets.push(attack.disk().submit(&chain).unwrap());
        }
        for ticket in tickets {
            attack.disk().wait(ticket).unwrap();
        }
    }
    assert_eq!(attack.disk().read(0, 512).unwrap().len(), 512);
    attack.end();
}
