//! What a program that has used encrypted images still has in its memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use qcow::crypt::luks::{Cost, NewLuks};
use qcow::crypt::{CipherSpec, Hash, Passphrase};
use qcow::disk::Buffer;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::{CreateOptions, Image, NewEncryption, OpenOptions, create};
use qcow::foreign::luks;
use qcow::foreign::raw::NewPart;
use qcow::gate::{BackingPolicy, HostGate};

#[path = "common/master_key.rs"]
mod master_key;

const SIZE: u64 = 1 << 20;
const CHUNK: usize = 1 << 20;

/// The passphrase, which this program does not hold in one piece.
fn passphrase_bytes() -> impl Iterator<Item = u8> {
    (0..40_u8).map(|i| b'a' + i.wrapping_mul(11) % 26)
}

/// Writes the passphrase to a file byte by byte.
fn put_passphrase(path: &Path) {
    let mut file = File::create(path).unwrap();
    passphrase_bytes().for_each(|byte| file.write_all(&[byte]).unwrap());
}

/// Writes all memory of this program that can be written into a file.
fn dump(path: &Path) {
    let maps = BufReader::new(File::open("/proc/self/maps").unwrap());
    let lines: Vec<String> = maps.lines().map(Result::unwrap).collect();
    let memory = File::open("/proc/self/mem").unwrap();
    let (mut dump, mut chunk) = (File::create(path).unwrap(), vec![0; CHUNK]);
    for line in lines {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [mut at, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        while rest.starts_with("rw") && at < end {
            let len = CHUNK.min((end - at) as usize);
            match memory.read_at(&mut chunk[..len], at) {
                Ok(read) if read > 0 => {
                    dump.write_all(&chunk[..read]).unwrap();
                    at += read as u64;
                }
                // The kernel's own pages cannot be read.
                _ => break,
            }
        }
    }
    // What this has seen must not be what the next one finds.
    std::hint::black_box(&mut chunk).fill(0);
    std::hint::black_box(&chunk);
}

fn contains(path: &Path, wanted: &[u8]) -> bool {
    std::fs::read(path).unwrap().windows(wanted.len()).any(|window| window == wanted)
}

/// Makes an image, writes to it, changes its passphrases, and closes it; calls `while_open` in between.
fn use_image(directory: &Path, qcow2: bool, while_open: impl FnOnce()) {
    let path = directory.join("image");
    put_passphrase(&directory.join("key"));
    let key = Arc::new(Passphrase::from_file(&directory.join("key")).unwrap());
    let cost = Cost::Iterations(1000);
    let new = NewLuks { cipher: CipherSpec::DEFAULT, hash: Hash::Sha256, cost };
    let disk = UringDisk::open(&path, Access::Create, CacheMode::PageCache).unwrap();
    let encryption = Some(NewEncryption::Luks(new, Arc::clone(&key)));
    let options = CreateOptions { size: SIZE, encryption, ..CreateOptions::default() };
    block_on(async {
        match qcow2 {
            true => create(&disk, &options).await.unwrap(),
            false => luks::create(&disk, &new, &key, SIZE, NewPart::Hole).await.unwrap(),
        }
        drop(disk);
        let backing = BackingPolicy::Deny;
        let gate = HostGate { cache: CacheMode::PageCache, shared: false, backing };
        let keys = vec![Some(Arc::clone(&key))];
        let options = OpenOptions { writable: true, keys, ..OpenOptions::default() };
        let image = Image::open(&gate, &path, &options).await.unwrap();
        image.write(0, &Buffer::from_bytes(&[1; 100_000]).payload()).await.unwrap();
        let other = Passphrase::read(&b"another one"[..]).unwrap();
        image.add_key(5, &key, &other, cost).await.unwrap();
        assert_eq!(image.slots_of(&other).await.unwrap(), [5]);
        while_open();
        image.close().await.unwrap();
    });
}

/// One test: what another one does at the same time would be in the same memory.
#[test]
fn nothing_is_left_in_memory_once_an_image_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let [open, closed] = ["open", "closed"].map(|name| directory.path().join(name));
    for qcow2 in [true, false] {
        use_image(directory.path(), qcow2, || dump(&open));
        dump(&closed);
        // Only now is either of them in memory in one piece.
        let passphrase: Vec<u8> = passphrase_bytes().collect();
        let file = std::fs::read(directory.path().join("image")).unwrap();
        let mut key = master_key::master_key(&file, &passphrase);
        // Both halves are the first of a key schedule's round keys.
        let halves = [&key[..32], &key[32..]];
        assert!(contains(&open, &passphrase) && halves.iter().all(|half| contains(&open, half)));
        assert!(!contains(&closed, &passphrase), "the passphrase is left, qcow2: {qcow2}");
        for half in halves {
            for part in [&half[..16], &half[16..]] {
                assert!(!contains(&closed, part), "a part of the key is left, qcow2: {qcow2}");
            }
        }
        key.fill(0);
    }
}
