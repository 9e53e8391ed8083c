//! Damaged and hostile images: real ones with random damage go through everything that a program does with an image.
//!
//! `HOSTILE_SEED=N cargo test -p qcow --test hostile` repeats one case.

use std::path::Path;
use std::process::Command;

use qcow::crypt::cipher::{Aes, CipherSpec, Iv, Mode};
use qcow::crypt::luks::{Cost, NewLuks, create};
use qcow::crypt::{Hash, Passphrase};
use qcow::disk::sim::Random;

#[path = "../../fuzz/src/authenticated_image.rs"]
mod authenticated_image;
#[path = "../../fuzz/src/luks_header.rs"]
mod luks_header;
#[path = "../../fuzz/src/open_any_image.rs"]
mod open_any_image;
#[path = "../../fuzz/src/sealed_slots.rs"]
mod sealed_slots;

/// Damaged images of one run.
const CASES: u64 = 4000;
/// Damaged LUKS headers.
const LUKS_CASES: u64 = 400;
/// Damaged key slots of authenticated images.
const SLOT_CASES: u64 = 3000;
/// Authenticated images with changes behind their checksums.
const AUTHENTICATED_CASES: u64 = 20_000;

#[test]
fn damaged_images_neither_panic_nor_hang() {
    let images = images();
    if let Ok(seed) = std::env::var("HOSTILE_SEED") {
        return run(&images, seed.parse().expect("HOSTILE_SEED is a number"));
    }
    let factor: u64 = std::env::var("SOAK_FACTOR").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    for seed in 0..CASES * factor {
        let result = std::panic::catch_unwind(|| run(&images, seed));
        assert!(
            result.is_ok(),
            "repeat with: HOSTILE_SEED={seed} cargo test -p qcow --test hostile"
        );
    }
}

#[test]
fn short_files_are_refused() {
    let images = images();
    for image in &images {
        for len in (0..200).chain((200..image.len()).step_by(997)) {
            open_any_image::run(&image[..len]);
        }
    }
}

#[test]
fn damaged_luks_headers_neither_panic_nor_ask_for_too_much() {
    let aes = CipherSpec::new(Aes::Aes128, Mode::Cbc, Iv::Essiv(Hash::Sha256)).unwrap();
    let new = NewLuks { cipher: aes, hash: Hash::Sha1, cost: Cost::Iterations(1000) };
    let passphrase = Passphrase::read(&b"fuzz"[..]).unwrap();
    let (change, _) = create(&new, &passphrase);
    let mut volume = vec![0; new.payload_offset() as usize];
    volume[..592].copy_from_slice(&change.header.encode());
    let at = change.material_at as usize;
    volume[at..at + change.material.len()].copy_from_slice(&change.material);
    for seed in 0..LUKS_CASES {
        let mut random = Random::new(seed);
        let mut damaged = volume.clone();
        for _ in 0..random.below(3) {
            let at = random.below(592) as usize;
            damaged[at] = match random.below(3) {
                0 => 0xff,
                1 => 0,
                _ => damaged[at] ^ 1 << random.below(8),
            };
        }
        let cut = if random.below(8) == 0 { random.below(70_000) } else { damaged.len() as u64 };
        luks_header::run(&damaged[..cut as usize]);
    }
}

#[test]
fn hostile_authenticated_images_neither_panic_nor_hang() {
    // First the image as it is: what is made of it has to be sound.
    authenticated_image::run(&[0]);
    for seed in 0..AUTHENTICATED_CASES {
        let mut random = Random::new(seed);
        let mut input = vec![u8::from(random.below(16) == 0)];
        for _ in 0..1 + random.below(4) {
            // Most changes are to a few places, and most numbers small, or close to where something overflows.
            let block = if random.below(2) == 0 { random.below(256) } else { 8 + random.below(32) };
            input.extend([random.below(8) as u8, block as u8]);
            input.extend((random.below(1 << 16) as u16).to_be_bytes());
            let number = match random.below(4) {
                0 => random.below(100),
                1 => (1_u64 << random.below(64)).wrapping_sub(random.below(3) * 512),
                2 => u64::MAX - random.below(1024),
                _ => random.draw(),
            };
            input.extend(number.to_be_bytes());
        }
        let result = std::panic::catch_unwind(|| authenticated_image::run(&input));
        assert!(result.is_ok(), "input {input:02x?} of seed {seed}");
    }
}

#[test]
fn damaged_key_slots_neither_panic_nor_open() {
    for seed in 0..SLOT_CASES {
        let mut random = Random::new(seed);
        let mut changes = vec![0; 4097];
        changes[0] = random.draw() as u8;
        // Seed 0 is the slot as it is.
        for _ in 0..seed.min(random.below(5)) {
            // Most of what a slot says stands at its start.
            let in_slot = if random.below(4) == 0 { random.below(512) } else { random.below(130) };
            let at = 1 + random.below(8).saturating_sub(4) * 512 + in_slot;
            changes[at as usize] = 1 << random.below(8);
        }
        sealed_slots::run(&changes);
    }
    for len in [0, 1, 2, 600] {
        sealed_slots::run(&vec![1; len]);
    }
}

fn run(images: &[Vec<u8>], seed: u64) {
    let mut random = Random::new(seed);
    let mut image = images[random.below(images.len() as u64) as usize].clone();
    for _ in 0..=random.below(6) {
        damage(&mut image, &mut random);
    }
    open_any_image::run(&image);
}

/// Changes one field: in the header, in a table, or anywhere.
fn damage(image: &mut [u8], random: &mut Random) {
    let len = image.len() as u64;
    let at = match random.below(4) {
        0 => random.below(120.min(len)),
        1 => random.below(len),
        // Tables start at clusters, and their first entries matter most.
        _ => (random.below(len) / 512 * 512 + random.below(8) * 8).min(len - 8),
    } as usize;
    let clusters = len / 512;
    let value = match random.below(6) {
        0 => 0,
        1 => u64::MAX,
        2 => random.draw(),
        3 => [1, !0][random.below(2) as usize] << random.below(64),
        // Some other place of the file, perhaps one that is a table.
        _ => {
            (random.below(clusters + 2) * 512) | [0, 1, 1 << 63, 1 << 62][random.below(4) as usize]
        }
    };
    let width = [1, 4, 8][random.below(3) as usize];
    let bytes = value.to_be_bytes();
    for (byte, new) in image[at..].iter_mut().zip(&bytes[8 - width..]) {
        *byte = *new;
    }
}

/// Small images with one of everything.
fn images() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().expect("a directory");
    let variants = [
        ("cluster_size=512,refcount_bits=1", false),
        ("cluster_size=512,refcount_bits=64", true),
        ("cluster_size=1k,compat=v2", true),
        ("cluster_size=4k,compression_type=zstd,refcount_bits=16", true),
        ("cluster_size=64k", true),
    ];
    variants.iter().map(|(options, snapshot)| make(directory.path(), options, *snapshot)).collect()
}

fn make(directory: &Path, options: &str, snapshot: bool) -> Vec<u8> {
    let (raw, image) = (directory.join("raw"), directory.join("image"));
    let mut bytes = vec![0u8; 300_000];
    for (i, byte) in bytes.iter_mut().enumerate().filter(|(i, _)| i / 3000 % 3 != 0) {
        *byte = (i / 700) as u8;
    }
    std::fs::write(&raw, &bytes).expect("write");
    let (raw, image) = (raw.to_str().expect("text"), image.to_str().expect("text"));
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, image];
    qemu("qemu-img", &convert);
    qemu(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 7 5000 20000", "-c", "write -z 40000 30000", image],
    );
    if snapshot {
        qemu("qemu-img", &["snapshot", "-c", "one", image]);
        qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 9 10000 9000", image]);
    }
    std::fs::read(image).expect("read")
}

fn qemu(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect("qemu-utils is installed");
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
