//! What a guest gets: every request type, every feature, over the socket, from the built daemon.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::thread;

use benches::Error;
use benches::frontend::Features;
use benches::request::{Request, Status};
use benches::session::Session;
use common::{Bed, Daemon, MIB, SECTOR, vhost_blk};
use vhost::VhostBackend;

const PLAIN: Features = Features { event_idx: false, indirect: false, inflight: false };

#[test]
fn all_requests_with_and_without_ring_features() {
    for features in [Features::default(), PLAIN] {
        let bed = Bed::new();
        let daemon = bed.serve(&[]);
        let mut session = daemon.connect_with(1, features);
        let disk = session.queue(0);
        assert_eq!(disk.read(0, 4096).unwrap(), [0; 4096]);
        disk.write(8, &[7; 8192]).unwrap();
        disk.write(10, &[9; 512]).unwrap();
        disk.flush().unwrap();
        let bytes = disk.read(9, 1536).unwrap();
        assert_eq!([bytes[0], bytes[512], bytes[1024]], [7, 9, 7]);
        disk.write_zeroes(8, 2, false).unwrap();
        disk.write_zeroes(10, 2, true).unwrap();
        assert_eq!(disk.read(8, 2048).unwrap(), [0; 2048]);
        assert_eq!(disk.get_id().unwrap(), b"disk.img");
        session.stop().unwrap();
        daemon.stop();
        bed.assert_clean();
        let content = bed.content(24 * SECTOR);
        assert!(content[12 * SECTOR..].iter().all(|&b| b == 7));
    }
}

#[test]
fn discarded_clusters_give_their_space_back() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    assert_eq!(session.config().discard_sector_alignment, 128);
    let disk = session.queue(0);
    disk.write(0, &vec![1; MIB as usize]).unwrap();
    disk.flush().unwrap();
    let before = bed.image().metadata().unwrap().blocks();
    disk.discard(0, 2048).unwrap();
    disk.flush().unwrap();
    session.stop().unwrap();
    daemon.stop();
    bed.assert_clean();
    let after = bed.image().metadata().unwrap().blocks();
    assert!(after + 2048 - 256 <= before, "{before} blocks, then {after}");
}

#[test]
fn compressed_clusters_are_unpacked_by_threads_that_start_late() {
    let bed = Bed::with_image(&["-f", "raw"]);
    let content: Vec<u8> = (0..MIB as usize).map(|at| (at / SECTOR % 251) as u8).collect();
    std::fs::write(bed.path("plain.raw"), &content).unwrap();
    let mut convert = std::process::Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2", "-c"]);
    assert!(convert.arg(bed.path("plain.raw")).arg(bed.image()).status().unwrap().success());
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    assert_eq!(session.queue(0).read(0, MIB as u32).unwrap(), content);
    session.stop().unwrap();
    daemon.stop();
    bed.assert_clean();
}

#[test]
fn every_cache_mode_and_raw_images() {
    for (create, serve) in [
        (["-f", "qcow2"], ["--cache", "none"]),
        (["-f", "qcow2"], ["--cache", "unsafe"]),
        (["-f", "raw"], ["-f", "raw"]),
    ] {
        let bed = Bed::with_image(&create);
        let daemon = bed.serve(&serve);
        let mut session = daemon.connect();
        let disk = session.queue(0);
        // Odd offsets and lengths, unaligned for direct I/O.
        disk.write(3, &[5; 1536]).unwrap();
        disk.flush().unwrap();
        assert_eq!(disk.read(2, 512).unwrap(), [0; 512]);
        assert_eq!(disk.read(3, 1536).unwrap(), [5; 1536]);
        session.stop().unwrap();
        daemon.stop();
        assert_eq!(std::fs::metadata(bed.image()).unwrap().len() == 64 * MIB, create[1] == "raw");
    }
}

#[test]
fn a_read_only_disk_says_so_and_stays_as_it_is() {
    let bed = Bed::new();
    let before = std::fs::read(bed.image()).unwrap();
    let daemon = bed.serve(&["--read-only"]);
    let mut session = daemon.connect();
    assert!(session.connection().has(virtio_bindings::virtio_blk::VIRTIO_BLK_F_RO));
    let disk = session.queue(0);
    assert!(matches!(disk.write(0, &[1; 512]), Err(Error::Status(Status::IoError))));
    assert!(matches!(disk.discard(0, 128), Err(Error::Status(Status::Unsupported))));
    assert!(matches!(disk.write_zeroes(0, 1, false), Err(Error::Status(Status::Unsupported))));
    disk.flush().unwrap();
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
    session.stop().unwrap();
    daemon.stop();
    assert_eq!(std::fs::read(bed.image()).unwrap(), before);
}

#[test]
fn a_frontend_that_goes_away_and_comes_back_is_served_again() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    for round in 1..20u8 {
        session.queue(0).write(u64::from(round), &[round; SECTOR]).unwrap();
        session.reconnect().unwrap();
        assert_eq!(session.queue(0).read(round.into(), 512).unwrap(), [round; SECTOR]);
    }
    drop(session);
    let mut other = daemon.connect();
    assert_eq!(other.queue(0).read(19, 512).unwrap(), [19; SECTOR]);
    drop(other);
    daemon.stop();
    bed.assert_clean();
}

#[test]
fn a_frontend_that_leaves_with_requests_in_flight_harms_nobody() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    for round in 0..10u8 {
        let mut session = daemon.connect();
        for index in 0..16 {
            let request = Request::Write { sector: index * 256, data: &[round; 65536] };
            let _left_behind = session.queue(0).start(&request).unwrap();
        }
        session.disconnect().unwrap();
    }
    let mut session = daemon.connect();
    session.queue(0).write(0, &[1; 512]).unwrap();
    drop(session);
    daemon.stop();
    bed.assert_clean();
}

#[test]
fn two_queues_serve_one_disk_at_the_same_time() {
    let bed = Bed::new();
    let daemon = bed.serve(&["--num-queues", "2"]);
    let mut session = daemon.connect_with(2, Features::default());
    thread::scope(|scope| {
        for (index, queue) in session.queues().iter_mut().enumerate() {
            scope.spawn(move || {
                for round in 0..200u64 {
                    let sector = round * 16 + index as u64 * 8;
                    queue.write(sector, &[index as u8 + 1; 4096]).unwrap();
                }
                queue.flush().unwrap();
            });
        }
    });
    for round in 0..200 {
        let bytes = session.queue(0).read(round * 16, 8192).unwrap();
        assert!(bytes[..4096].iter().all(|&b| b == 1) && bytes[4096..].iter().all(|&b| b == 2));
    }
    session.stop().unwrap();
    daemon.stop();
    bed.assert_clean();
}

#[test]
fn a_stopped_queue_has_finished_what_it_took_and_starts_again() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    let tickets: Vec<_> = (0..8)
        .map(|i| {
            session.queue(0).start(&Request::Write { sector: i * 8, data: &[3; 4096] }).unwrap()
        })
        .collect();
    let next = session.connection().stop_queue(0).unwrap();
    assert_eq!(u32::from(session.queue(0).ring().used_index().unwrap()), next);
    session.reconnect().unwrap();
    for ticket in tickets {
        assert_eq!(session.queue(0).wait(ticket).unwrap().status, Some(Status::Ok));
    }
    assert_eq!(session.queue(0).read(0, 4096).unwrap(), [3; 4096]);
    drop(session);
    daemon.stop();
}

#[test]
fn without_a_write_back_cache_an_acknowledged_write_survives_a_kill() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    let frontend = session.connection().frontend();
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
    vhost::vhost_user::VhostUserFrontend::set_config(frontend, 32, flags, &[0]).unwrap();
    assert_eq!(session.connection().refresh_config().unwrap().writeback, 0);
    session.queue(0).write(100, &[6; 4096]).unwrap();
    drop(daemon); // SIGKILL
    assert_eq!(bed.content(108 * SECTOR)[100 * SECTOR..], [6; 4096]);
}

#[test]
fn a_driver_that_cannot_flush_gets_no_write_back_cache() {
    use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    assert_eq!(session.config().writeback, 1);
    assert!(session.connection().has(VIRTIO_BLK_F_CONFIG_WCE));
    let features = session.connection().features() & !(1 << VIRTIO_BLK_F_FLUSH);
    session.connection().frontend().set_features(features).unwrap();
    assert_eq!(session.connection().refresh_config().unwrap().writeback, 0);
    session.queue(0).write(100, &[6; 4096]).unwrap();
    drop(daemon); // SIGKILL
    assert_eq!(bed.content(108 * SECTOR)[100 * SECTOR..], [6; 4096]);
}

#[test]
fn an_inherited_socket_is_served_and_left_alone() {
    let bed = Bed::new();
    let listener = UnixListener::bind(bed.socket()).unwrap();
    let mut command = vhost_blk();
    command.stdin(OwnedFd::from(listener)).args(["--fd", "0", "--blk-file"]).arg(bed.image());
    let daemon = Daemon::start(command, bed.socket(), 1);
    daemon.connect().queue(0).write(0, &[1; 512]).unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(daemon.wait().0, Some(0));
    assert!(bed.socket().exists());
    bed.assert_clean();
}

#[test]
fn a_file_of_settings_serves_several_disks() {
    let (one, two) = (Bed::new(), Bed::new());
    let section = |bed: &Bed, more: &str| {
        format!("[[disk]]\nfile = {:?}\nsocket = {:?}\n{more}", bed.image(), bed.socket())
    };
    let config = one.path("config.toml");
    let text = section(&one, "num-queues = 2\n") + &section(&two, "read-only = true\n");
    std::fs::write(&config, text).unwrap();
    let mut command = vhost_blk();
    command.arg("--config").arg(&config);
    let daemon = Daemon::start(command, one.socket(), 2);
    let mut first = daemon.connect_with(2, Features::default());
    first.queue(1).write(0, &[1; 512]).unwrap();
    let mut second = Session::connect(&two.socket(), 1, 64, Features::default()).unwrap();
    assert!(second.queue(0).write(0, &[1; 512]).is_err());
    daemon.stop();
    assert!(!two.socket().exists());
    one.assert_clean();
}

#[test]
fn a_disk_on_a_backing_file_reads_through_it() {
    let bed = Bed::with_image(&["-f", "raw"]);
    std::fs::rename(bed.image(), bed.path("base.raw")).unwrap();
    std::fs::write(bed.path("base.raw"), vec![4; 2 * MIB as usize]).unwrap();
    let overlay = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw"];
    let status = std::process::Command::new("qemu-img").args(overlay).arg(bed.image()).status();
    assert!(status.unwrap().success());
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    let disk = session.queue(0);
    disk.write(1, &[8; 512]).unwrap();
    let bytes = disk.read(0, 1536).unwrap();
    assert_eq!([bytes[0], bytes[512], bytes[1024]], [4, 8, 4]);
    drop(session);
    daemon.stop();
    bed.assert_clean();
}
