//! Files that are LUKS and nothing else: against a model, cut off, and with any byte of their header changed.
//!
//! `LUKS_SEED=n cargo test -p qcow --test luks` repeats a run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow::crypt::luks::{Cost, NewLuks};
use qcow::crypt::{CipherSpec, Hash, Passphrase};
use qcow::disk::Buffer;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::{Format, Image, OpenOptions};
use qcow::foreign::luks::create;
use qcow::foreign::raw::NewPart;
use qcow::gate::{BackingPolicy, HostGate};
use qcow::{ErrorKind, Result};

const SIZE: u64 = 1 << 20;
const PAYLOAD: u64 = 2_068_480;
const STEPS: u32 = 400;

struct Bed {
    directory: tempfile::TempDir,
    key: Arc<Passphrase>,
}

impl Bed {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let bed = Self { directory, key: Arc::new(Passphrase::read(&b"key"[..]).unwrap()) };
        let disk = UringDisk::open(&bed.path(), Access::Create, CacheMode::PageCache).unwrap();
        let (cipher, hash, cost) = (CipherSpec::DEFAULT, Hash::Sha256, Cost::Iterations(1000));
        let new = NewLuks { cipher, hash, cost };
        block_on(create(&disk, &new, &bed.key, SIZE, NewPart::Hole)).unwrap();
        bed
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk.luks")
    }

    async fn open(&self, cache: CacheMode) -> Result<Image<UringDisk>> {
        let gate = HostGate { cache, shared: false, backing: BackingPolicy::Anywhere };
        let keys = vec![Some(Arc::clone(&self.key))];
        let options = OpenOptions { writable: true, keys, ..OpenOptions::default() };
        Image::open(&gate, &self.path(), &options).await
    }
}

async fn read(image: &Image<UringDisk>, at: u64, len: usize) -> Vec<u8> {
    let buffer = Buffer::zeroed(len);
    image.read(at, &buffer.payload()).await.unwrap();
    buffer.to_vec()
}

/// Numbers that look random, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn seed() -> u64 {
    let given = std::env::var("LUKS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    println!("LUKS_SEED={seed}");
    seed
}

/// Requests at any byte, with sizes that change and the file opened anew, through the page cache and past it.
#[test]
fn a_disk_behind_a_luks_header_is_as_its_model() {
    let bed = Bed::new();
    let mut numbers = Numbers(seed());
    block_on(async {
        let mut image = bed.open(CacheMode::PageCache).await.unwrap();
        assert_eq!(image.format(), Format::Luks);
        image.write_zeroes(0, SIZE, true).await.unwrap();
        let mut model = vec![0_u8; SIZE as usize];
        for step in 0..STEPS {
            let at = numbers.below(model.len() as u64);
            let whole = numbers.below(2) == 0;
            let (at, unit) = if whole { (at / 512 * 512, 512) } else { (at, 1) };
            let len_max = if numbers.below(8) == 0 { 300_000 } else { 9000 };
            let len = numbers.below(len_max).min(model.len() as u64 - at) / unit * unit;
            let range = at as usize..(at + len) as usize;
            match numbers.below(20) {
                0..8 => {
                    let bytes: Vec<u8> = (0..len).map(|_| numbers.below(256) as u8).collect();
                    image.write(at, &Buffer::from_bytes(&bytes).payload()).await.unwrap();
                    model[range].copy_from_slice(&bytes);
                }
                8..11 => {
                    image.write_zeroes(at, len, step % 2 == 0).await.unwrap();
                    model[range].fill(0);
                }
                // Where discarded data is, would be seen in the file.
                11 => image.discard(at, len).await.unwrap(),
                12 => {
                    let size = (SIZE / 2 + numbers.below(SIZE)) / 512 * 512;
                    image.resize(size, true).await.unwrap();
                    let old = model.len() as u64;
                    if size > old {
                        image.write_zeroes(old, size - old, false).await.unwrap();
                    }
                    model.resize(size as usize, 0);
                }
                13 => {
                    image.close().await.unwrap();
                    drop(image);
                    let cache =
                        if step % 2 == 0 { CacheMode::PageCache } else { CacheMode::Direct };
                    image = bed.open(cache).await.unwrap();
                }
                _ => assert!(read(&image, at, len as usize).await == model[range], "step {step}"),
            }
            assert_eq!(image.virtual_size(), model.len() as u64);
        }
        assert!(read(&image, 0, model.len()).await == model);
        image.close().await.unwrap();
        assert_eq!(std::fs::metadata(bed.path()).unwrap().len(), PAYLOAD + model.len() as u64);
    });
}

/// Writes a pattern, and returns the file.
fn filled(bed: &Bed) -> Vec<u8> {
    block_on(async {
        let image = bed.open(CacheMode::PageCache).await.unwrap();
        image.write(0, &Buffer::from_bytes(&[0x5a; 4096]).payload()).await.unwrap();
        image.close().await.unwrap();
    });
    let file = std::fs::read(bed.path()).unwrap();
    assert!(!file.windows(16).any(|window| window == [0x5a; 16]), "clear text in the file");
    file
}

/// Whether the changed file opens; if so, with what was written.
fn opens(bed: &Bed, path: &Path, file: &[u8], what: &str) -> bool {
    std::fs::write(path, file).unwrap();
    block_on(async {
        let Ok(image) = bed.open(CacheMode::PageCache).await else { return false };
        // A file that no longer begins as LUKS is raw.
        if image.format() == Format::Luks {
            assert_eq!(read(&image, 0, 4096).await, [0x5a; 4096], "{what}");
        }
        true
    })
}

#[test]
fn no_changed_byte_of_a_header_shows_wrong_content() {
    let bed = Bed::new();
    let whole = filled(&bed);
    let other = Bed { key: Arc::clone(&bed.key), ..Bed::new() };
    // Rounds of PBKDF2 in their upper bytes take long to be tried; the unit tests of the header see to them. The place of
    // the payload, which says where the disk starts, is not vouched for by anything: as in QEMU.
    let unseen = |at: usize| [164, 165, 212, 213].contains(&at) || (104..108).contains(&at);
    let (mut opened, mut refused) = (0, 0);
    for at in (0..592).filter(|at| !unseen(*at)).step_by(3) {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        match opens(&other, &other.path(), &changed, &format!("byte {at}")) {
            true => opened += 1,
            false => refused += 1,
        }
    }
    assert!(opened > 50 && refused > 50, "{opened} opened, {refused} refused");
}

#[test]
fn a_file_that_is_cut_off_is_refused_in_front_of_its_disk() {
    let bed = Bed::new();
    let whole = filled(&bed);
    for len in [8, 100, 591, 592, 4096, 200_000, 1_000_000, PAYLOAD as usize - 512] {
        std::fs::write(bed.path(), &whole[..len]).unwrap();
        let refused = block_on(bed.open(CacheMode::PageCache)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{len}: {refused}");
    }
    let mut behind = whole;
    behind[104..108].copy_from_slice(&u32::MAX.to_be_bytes());
    std::fs::write(bed.path(), &behind).unwrap();
    let refused = block_on(bed.open(CacheMode::PageCache)).unwrap_err();
    assert!(refused.to_string().contains("in front of the disk"), "{refused}");
}
