//! Authenticated images: served, with or without a key; what was changed in the file is an error for the guest; and a guest that
//! outlives a kill is told that it has lost writes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use benches::Error;
use benches::request::Status;
use common::{Bed, Daemon, MIB, SECTOR, refused, serve_args};
use nix::sys::signal::Signal;
use qcow::crypt::Passphrase;
use qcow::crypt::sealed_slots::SlotCost;
use qcow::disk::Buffer;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::{CreateOptions, Image, NewIntegrity, OpenOptions, create};
use qcow::gate::{BackingPolicy, HostGate};

const CLUSTER: u64 = 16 << 10;
/// Where what is written first lies: behind header, roots, key slots, and the map of blocks of a new image.
const FIRST_DATA: u64 = 10 * 4096;

/// How images are sealed.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Crc32c,
    Aes256Gcm,
}

const KINDS: [Kind; 2] = [Kind::Crc32c, Kind::Aes256Gcm];

impl Kind {
    /// A directory with such an image of 64 MiB.
    fn bed(self) -> Bed {
        let bed = Bed::new();
        std::fs::write(bed.path("key"), "authentic").unwrap();
        let integrity = match self {
            Self::Crc32c => NewIntegrity::Crc32c,
            Self::Aes256Gcm => NewIntegrity::Aes256Gcm(key(&bed), SlotCost::TINY),
        };
        let options = CreateOptions {
            size: 64 * MIB,
            cluster_bits: CLUSTER.ilog2(),
            integrity: Some(integrity),
            ..CreateOptions::default()
        };
        let disk = UringDisk::open(&bed.image(), Access::Create, CacheMode::PageCache).unwrap();
        block_on(create(&disk, &options)).unwrap();
        bed
    }

    fn serve(self, bed: &Bed) -> Daemon {
        match self {
            Self::Crc32c => bed.serve(&[]),
            Self::Aes256Gcm => {
                bed.serve(&["--encrypt-key-file", bed.path("key").to_str().unwrap()])
            }
        }
    }
}

fn key(bed: &Bed) -> Arc<Passphrase> {
    Arc::new(Passphrase::from_file(&bed.path("key")).unwrap())
}

/// The first `len` bytes of the disk, in whose image a check with all data must find nothing.
fn content(bed: &Bed, len: usize) -> Vec<u8> {
    let cache = CacheMode::PageCache;
    let gate = HostGate { cache, shared: false, backing: BackingPolicy::Deny };
    let options = OpenOptions { keys: vec![Some(key(bed))], ..OpenOptions::default() };
    block_on(async {
        let image = Image::open(&gate, &bed.image(), &options).await.unwrap();
        let mut findings = Vec::new();
        let mut report = |finding: &_| findings.push(format!("{finding}"));
        let summary = image.check_authenticated(true, &mut report).await.unwrap();
        assert!(summary.is_clean(), "{findings:?}");
        let buffer = Buffer::zeroed(len);
        image.read(0, &buffer.payload()).await.unwrap();
        buffer.to_vec()
    })
}

#[test]
fn a_guest_reads_writes_flushes_and_discards() {
    for kind in KINDS {
        let bed = kind.bed();
        let mut wanted = vec![0; 1 << 20];
        for turn in 1..=3_u8 {
            let daemon = kind.serve(&bed);
            let mut session = daemon.connect();
            let disk = session.queue(0);
            assert!(disk.read(0, 1 << 20).unwrap() == wanted, "{kind:?}");
            for (sector, count) in [(1, 300), (512, 8), (2000, 48)] {
                disk.write(sector, &vec![turn; count * SECTOR]).unwrap();
                wanted[sector as usize * SECTOR..][..count * SECTOR].fill(turn);
            }
            disk.flush().unwrap();
            disk.write_zeroes(100, 50, turn == 2).unwrap();
            wanted[100 * SECTOR..150 * SECTOR].fill(0);
            // The whole clusters of it.
            disk.discard(512, 96).unwrap();
            wanted[512 * SECTOR..608 * SECTOR].fill(0);
            assert!(disk.read(0, 1 << 20).unwrap() == wanted, "{kind:?}");
            session.stop().unwrap();
            daemon.stop();
            assert!(content(&bed, 1 << 20) == wanted, "{kind:?}");
        }
    }
}

#[test]
fn an_image_with_a_key_is_not_served_without() {
    let bed = Kind::Aes256Gcm.bed();
    let (code, line) = refused(serve_args(&bed.image(), &bed.socket()));
    assert_eq!(code, Some(1));
    assert!(line.contains("'encrypt.key-secret' is required"), "{line}");
    std::fs::write(bed.path("wrong"), "another").unwrap();
    let mut command = serve_args(&bed.image(), &bed.socket());
    command.arg("--encrypt-key-file").arg(bed.path("wrong"));
    let (code, line) = refused(command);
    assert_eq!(code, Some(1));
    assert!(line.contains("Invalid password"), "{line}");
}

#[test]
fn what_was_changed_in_the_file_is_an_error_and_is_logged() {
    for kind in KINDS {
        let bed = kind.bed();
        let daemon = kind.serve(&bed);
        let mut session = daemon.connect();
        session.queue(0).write(0, &[1; 4 * CLUSTER as usize]).unwrap();
        session.stop().unwrap();
        daemon.stop();
        let file = File::options().read(true).write(true).open(bed.image()).unwrap();
        let mut daemon = kind.serve(&bed);
        let mut session = daemon.connect();
        let disk = session.queue(0);
        let second = FIRST_DATA + CLUSTER;
        let mut byte = [0];
        file.read_exact_at(&mut byte, second + 5000).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], second + 5000).unwrap();
        let sectors = CLUSTER / SECTOR as u64;
        for (sector, len) in [(sectors, SECTOR as u32), (0, 4 * CLUSTER as u32)] {
            let read = disk.read(sector, len);
            assert!(matches!(read, Err(Error::Status(Status::IoError))), "{kind:?}: {read:?}");
        }
        daemon.wait_for(&format!("the data at {CLUSTER:#x}, stored at {second:#x}, is not what"));
        // Part of it cannot be written either, as the rest of the cluster is not known; all of it can.
        let written = disk.write(sectors, &[2; SECTOR]);
        assert!(matches!(written, Err(Error::Status(Status::IoError))), "{kind:?}: {written:?}");
        assert!(disk.read(0, CLUSTER as u32).unwrap() == [1; CLUSTER as usize]);
        disk.write(sectors, &[3; CLUSTER as usize]).unwrap();
        assert!(disk.read(sectors, CLUSTER as u32).unwrap() == [3; CLUSTER as usize]);
        session.stop().unwrap();
        daemon.stop();
        let content = content(&bed, 4 * CLUSTER as usize);
        let firsts: Vec<u8> = content.chunks(CLUSTER as usize).map(|cluster| cluster[0]).collect();
        assert_eq!(firsts, [1, 3, 1, 1]);
    }
}

#[test]
fn a_guest_that_outlives_a_kill_is_told_what_it_has_lost() {
    for kind in KINDS {
        let bed = kind.bed();
        let daemon = kind.serve(&bed);
        let mut session = daemon.connect();
        assert!(session.survives_crash());
        let disk = session.queue(0);
        disk.write(0, &[1; SECTOR]).unwrap();
        disk.flush().unwrap();
        disk.write(64, &[2; SECTOR]).unwrap();
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
        let lost = "was killed, and what the guest had written since its last flush is lost";
        let mut daemon = kind.serve(&bed);
        assert!(session.reconnect().is_err(), "{kind:?}");
        daemon.wait_for(lost);
        // A guest that starts anew finds what was flushed.
        let mut other = daemon.connect();
        assert!(other.queue(0).read(0, SECTOR as u32).unwrap() == [1; SECTOR]);
        assert!(other.queue(0).read(64, SECTOR as u32).unwrap() == [0; SECTOR]);
        other.stop().unwrap();
        daemon.stop();
        // That the image has been closed since gives the first one nothing back.
        let mut daemon = kind.serve(&bed);
        assert!(session.reconnect().is_err(), "{kind:?}");
        daemon.wait_for(lost);
        daemon.stop();
    }
}

#[test]
fn after_a_clean_stop_the_guest_goes_on() {
    for kind in KINDS {
        let bed = kind.bed();
        let daemon = kind.serve(&bed);
        let mut session = daemon.connect();
        session.queue(0).write(0, &[1; SECTOR]).unwrap();
        daemon.stop();
        let daemon = kind.serve(&bed);
        session.reconnect().unwrap();
        assert!(session.queue(0).read(0, SECTOR as u32).unwrap() == [1; SECTOR]);
        session.queue(0).write(8, &[2; SECTOR]).unwrap();
        // The same daemon again.
        session.reconnect().unwrap();
        assert!(session.queue(0).read(8, SECTOR as u32).unwrap() == [2; SECTOR]);
        session.stop().unwrap();
        daemon.stop();
    }
}
