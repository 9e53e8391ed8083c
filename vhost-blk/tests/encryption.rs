//! Encrypted images: served with their passphrase, which the daemon then forgets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../qcow/tests/common/master_key.rs"]
mod master_key;

use std::fs::File;
use std::io::BufRead;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;

use common::{Bed, Daemon, MIB, SECTOR, refused, serve_args, vhost_blk};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use qcow::crypt::luks::{Cost, NewLuks};
use qcow::crypt::{CipherSpec, Hash, Passphrase};
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::{CreateOptions, NewEncryption, create};
use qcow::foreign::luks;
use qcow::foreign::raw::NewPart;

/// A passphrase that this program does not hold in one piece.
fn passphrase() -> Vec<u8> {
    (0..40_u8).map(|i| b'a' + i.wrapping_mul(7) % 26).collect()
}

fn encrypted(bed: &Bed, encryption: fn(Arc<Passphrase>) -> NewEncryption) {
    std::fs::write(bed.path("key"), passphrase()).unwrap();
    let key = Arc::new(Passphrase::from_file(&bed.path("key")).unwrap());
    let encryption = Some(encryption(key));
    let options = CreateOptions { size: 64 * MIB, encryption, ..CreateOptions::default() };
    let disk = UringDisk::open(&bed.image(), Access::Create, CacheMode::PageCache).unwrap();
    block_on(create(&disk, &options)).unwrap();
}

fn new_luks(key: Arc<Passphrase>) -> NewEncryption {
    let (cipher, hash, cost) = (CipherSpec::DEFAULT, Hash::Sha256, Cost::Iterations(1000));
    NewEncryption::Luks(NewLuks { cipher, hash, cost }, key)
}

/// The first bytes of the disk, as QEMU decrypts them.
fn content(bed: &Bed, len: usize) -> Vec<u8> {
    let raw = bed.path("content.raw");
    let secret = format!("secret,id=key,file={}", bed.path("key").display());
    let name =
        format!("driver=qcow2,encrypt.key-secret=key,file.filename={}", bed.image().display());
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-O", "raw", "--object", &secret, "--image-opts", &name]).arg(&raw);
    assert!(convert.status().unwrap().success());
    std::fs::read(raw).unwrap()[..len].to_vec()
}

#[test]
fn a_guest_reads_and_writes_and_the_file_holds_no_clear_text() {
    let bed = Bed::new();
    encrypted(&bed, new_luks);
    let key = File::open(bed.path("key")).unwrap();
    fcntl(&key, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let by_file = ["--encrypt-key-file", bed.path("key").to_str().unwrap()].map(str::to_owned);
    let by_descriptor = ["--encrypt-key-fd".to_owned(), key.as_raw_fd().to_string()];
    let marker = vec![0xab; 3 * 65_536 - SECTOR];
    for (turn, options) in [by_file, by_descriptor].iter().enumerate() {
        let daemon = bed.serve(&[&options[0], &options[1]]);
        let mut session = daemon.connect();
        let disk = session.queue(0);
        if turn == 0 {
            assert_eq!(disk.read(0, 4096).unwrap(), [0; 4096]);
            disk.write(1, &marker).unwrap();
            disk.flush().unwrap();
        }
        assert!(disk.read(1, marker.len() as u32).unwrap() == marker);
        disk.write(1000, &marker[..4096]).unwrap();
        disk.write_zeroes(1000, 4, false).unwrap();
        assert!(disk.read(1000, 2048).unwrap() == [0; 2048]);
        session.stop().unwrap();
        daemon.stop();
    }
    let file = std::fs::read(bed.image()).unwrap();
    assert!(!contains(&file, &[0xab; SECTOR]), "clear text in the file");
    let read = content(&bed, 2 * SECTOR);
    assert_eq!((read[0], read[SECTOR]), (0, 0xab));
}

/// A file that is LUKS and nothing else, found out or by its format's name.
#[test]
fn a_luks_file_is_served() {
    let bed = Bed::new();
    std::fs::write(bed.path("key"), passphrase()).unwrap();
    let key = Passphrase::from_file(&bed.path("key")).unwrap();
    let (cipher, hash, cost) = (CipherSpec::DEFAULT, Hash::Sha256, Cost::Iterations(1000));
    let new = NewLuks { cipher, hash, cost };
    let disk = UringDisk::open(&bed.image(), Access::Create, CacheMode::PageCache).unwrap();
    block_on(luks::create(&disk, &new, &key, 64 * MIB, NewPart::Hole)).unwrap();
    drop(disk);
    let key = bed.path("key").to_str().unwrap().to_owned();
    let marker = vec![0xab; 3 * 65_536 - SECTOR];
    for options in [&["--encrypt-key-file", &key][..], &["-f", "luks", "--encrypt-key-file", &key]]
    {
        let daemon = bed.serve(options);
        let mut session = daemon.connect();
        let disk = session.queue(0);
        disk.write(1, &marker).unwrap();
        disk.write_zeroes(100, 50, true).unwrap();
        disk.discard(200, 8).unwrap();
        disk.flush().unwrap();
        let mut wanted = marker.clone();
        wanted[99 * SECTOR..149 * SECTOR].fill(0);
        assert!(disk.read(1, marker.len() as u32).unwrap() == wanted);
        session.stop().unwrap();
        daemon.stop();
    }
    let file = std::fs::read(bed.image()).unwrap();
    assert!(!contains(&file, &[0xab; SECTOR]), "clear text in the file");
    let (code, line) = refused(serve_args(&bed.image(), &bed.socket()));
    assert_eq!(code, Some(1));
    assert!(line.contains("'key-secret' is required"), "{line}");
}

#[test]
fn without_its_passphrase_an_image_is_not_served() {
    let bed = Bed::new();
    encrypted(&bed, new_luks);
    let (code, line) = refused(serve_args(&bed.image(), &bed.socket()));
    assert_eq!(code, Some(1));
    assert!(line.contains("'encrypt.key-secret' is required"), "{line}");
    std::fs::write(bed.path("wrong"), "wrong").unwrap();
    let mut wrong = serve_args(&bed.image(), &bed.socket());
    wrong.arg("--encrypt-key-file").arg(bed.path("wrong"));
    let (code, line) = refused(wrong);
    assert_eq!(code, Some(1));
    assert!(line.contains("Invalid password"), "{line}");
    let mut closed = serve_args(&bed.image(), &bed.socket());
    closed.args(["--encrypt-key-fd", "99"]);
    assert!(refused(closed).1.contains("descriptor 99 is not open"));
}

#[test]
fn the_legacy_format_is_refused() {
    let bed = Bed::new();
    encrypted(&bed, NewEncryption::Aes);
    let mut command = serve_args(&bed.image(), &bed.socket());
    command.arg("--encrypt-key-file").arg(bed.path("key"));
    let (code, line) = refused(command);
    assert_eq!(code, Some(1));
    assert!(line.contains("AES-CBC encrypted qcow2 images is no longer supported"), "{line}");
}

/// Neither memory nor what others can read of the process has the passphrase once the disk is served.
#[test]
fn the_passphrase_is_forgotten_once_the_image_is_open() {
    let bed = Bed::new();
    encrypted(&bed, new_luks);
    let mut command = vhost_blk();
    command.args(["--sandbox", "off", "--encrypt-key-file"]).arg(bed.path("key"));
    command.arg("--blk-file").arg(bed.image()).arg("--socket-path").arg(bed.socket());
    let daemon = Daemon::start(command, bed.socket(), 1);
    let secret = passphrase();
    // What is there for certain is found.
    assert!(holds(daemon.pid(), bed.image().to_str().unwrap().as_bytes()));
    assert!(!holds(daemon.pid(), &secret), "the passphrase is still in memory");
    for name in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("/proc/{}/{name}", daemon.pid())).unwrap();
        assert!(!contains(&bytes, &secret), "{name}");
    }
    daemon.stop();
}

/// All that the daemon can be made to log has neither the passphrase nor the key.
#[test]
fn no_log_has_a_secret() {
    let bed = Bed::new();
    encrypted(&bed, new_luks);
    std::fs::write(bed.path("wrong"), [&passphrase()[..], b"?"].concat()).unwrap();
    let mut said = String::new();
    for format in ["plain", "json"] {
        for name in ["key", "wrong"] {
            let mut command = serve_args(&bed.image(), &bed.socket());
            command.args(["-vv", "--log", format, "--encrypt-key-file"]).arg(bed.path(name));
            if name == "wrong" {
                said += &common::text(&command.output().unwrap());
                continue;
            }
            let daemon = Daemon::start(command, bed.socket(), 1);
            let mut session = daemon.connect();
            let disk = session.queue(0);
            disk.write(0, &[7; 4096]).unwrap();
            disk.flush().unwrap();
            session.stop().unwrap();
            daemon.signal(nix::sys::signal::Signal::SIGTERM);
            said += &daemon.wait().1;
        }
    }
    assert!(said.contains("closed") && said.contains("Invalid password"), "{said}");
    let secret = passphrase();
    let key = master_key::master_key(&std::fs::read(bed.image()).unwrap(), &secret);
    assert!(!contains(said.as_bytes(), &secret), "{said}");
    for part in key.chunks(8) {
        let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{part:?}");
        assert!(!said.contains(&hex) && !said.contains(list.trim_matches(['[', ']'])), "{said}");
    }
}

/// Whether some memory of a process has `bytes`.
fn holds(pid: u32, bytes: &[u8]) -> bool {
    let maps = File::open(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    std::io::BufReader::new(maps).lines().map(Result::unwrap).any(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let mut content = vec![0; (address(end) - address(start)) as usize];
        // The kernel's own pages cannot be read.
        rest.starts_with("rw")
            && memory.read_exact_at(&mut content, address(start)).is_ok()
            && contains(&content, bytes)
    })
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
