//! Damaged bitmaps: nobody panics, nothing is allocated by a number that was not checked, and the image is left alone.

use std::ffi::OsStr;
use std::path::Path;

use qcow::disk::sim::Random;
use qcow::disk::uring::block_on;

use crate::place::{Place, expect_clean, open, qemu_img, qemu_io, text, try_open};

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 4096;

/// An image with two bitmaps, one with bits, and where its directory and the first one's table lie.
fn image(place: &Place) -> (Vec<u8>, usize, usize) {
    let path = place.make("image", "cluster_size=4k", 64 * MIB);
    qemu_img(&["bitmap", "--add", "-g", "512", text(&path), "b0"]);
    qemu_img(&["bitmap", "--add", "--disable", text(&path), "b1"]);
    qemu_io(&path, &["write -q 1M 3M".to_owned(), "write -q 40M 1".to_owned()]);
    let bytes = std::fs::read(&path).expect("read");
    let magic = 0x2385_2875_u32.to_be_bytes();
    let extension = bytes.windows(4).position(|window| window == magic).expect("an extension");
    let word =
        |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight")) as usize;
    let directory = word(extension + 24);
    let table = word(directory);
    (bytes, directory, table)
}

/// Opens it for writing, and if that works writes, changes bitmaps and closes it.
fn use_it(path: &Path) -> qcow::Result<()> {
    block_on(async {
        let image = try_open(path).await?;
        image.write_zeroes(0, 64 << 10, false).await?;
        for name in ["b0", "b1"].map(OsStr::new) {
            let _ = image.clear_bitmap(name).await;
            let _ = image.remove_bitmap(name).await;
        }
        image.close().await
    })
}

#[test]
fn damaged_bitmaps_are_refused_and_left_alone() {
    let place = Place::new();
    let (sound, directory, table) = image(&place);
    let path = place.file("damaged");
    let l1 = u64::from_be_bytes(sound[40..48].try_into().expect("eight bytes"));
    let damages: [(usize, Vec<u8>, &str); 9] = [
        (table, (1_u64 << 60).to_be_bytes().to_vec(), "reserved bits set"),
        (table, (1_u64 << 40).to_be_bytes().to_vec(), "past the end of the file"),
        (table, (l1 + 512).to_be_bytes().to_vec(), "unaligned"),
        (table, l1.to_be_bytes().to_vec(), "is L1 table and bits of a bitmap"),
        (table, (directory as u64).to_be_bytes().to_vec(), "is bitmap directory and bits"),
        (directory, l1.to_be_bytes().to_vec(), "bitmap_table table"),
        (directory + 8, 3_u32.to_be_bytes().to_vec(), "doesn't satisfy the constraints"),
        (directory + 17, vec![12], "doesn't satisfy the constraints"),
        (directory + 22, vec![0xff], "Broken bitmap directory"),
    ];
    for (at, bytes, words) in damages {
        let mut damaged = sound.clone();
        damaged[at..at + bytes.len()].copy_from_slice(&bytes);
        std::fs::write(&path, &damaged).expect("write");
        let error = use_it(&path).expect_err(words);
        assert!(error.message().contains(words), "{error}, not {words}");
        assert!(std::fs::read(&path).expect("read") == damaged, "{words}: it was changed");
    }
}

#[test]
fn no_damage_to_bitmaps_makes_the_engine_panic() {
    let place = Place::new();
    let (sound, directory, table) = image(&place);
    let path = place.file("damaged");
    let mut random = Random::new(7);
    for _ in 0..300 {
        let mut damaged = sound.clone();
        for _ in 0..=random.below(3) {
            let start = if random.below(2) == 0 { directory } else { table };
            let value = [0, 1, 0x80, 0xff, random.below(256)][random.below(5) as usize];
            damaged[start + random.below(64) as usize] = value as u8;
        }
        std::fs::write(&path, &damaged).expect("write");
        let _ = use_it(&path);
    }
}

#[test]
fn many_large_bitmaps_of_a_small_file_are_refused() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=2M", 2 << 40);
    for index in 0..9 {
        let name = format!("b{index}");
        qemu_img(&["bitmap", "--add", "-g", "512", text(&path), &name]);
    }
    let error = block_on(try_open(&path)).expect_err("4.5 GiB of bits");
    assert!(error.message().contains("may take"), "{error}");
}

#[test]
fn extra_data_is_kept_and_understood_only_if_it_may_be() {
    for compatible in [false, true] {
        let place = Place::new();
        let path = place.make("image", "cluster_size=4k", MIB);
        qemu_img(&["bitmap", "--add", text(&path), "b"]);
        let mut bytes = std::fs::read(&path).expect("read");
        let magic = 0x2385_2875_u32.to_be_bytes();
        let extension = bytes.windows(4).position(|w| w == magic).expect("an extension");
        let directory =
            u64::from_be_bytes(bytes[extension + 24..extension + 32].try_into().expect("eight"));
        let at = directory as usize;
        // Four bytes of extra data in front of the name, in what was padding.
        bytes[at + 15] |= if compatible { 4 } else { 0 };
        bytes[at + 23] = 4;
        bytes[at + 24..at + 29].copy_from_slice(b"datab");
        std::fs::write(&path, bytes).expect("write");
        block_on(async {
            let image = open(&path).await;
            assert_eq!(image.bitmaps().await.expect("list")[0].usable, compatible);
            image.write_zeroes(8192, 512, false).await.expect("write");
            let _ = image.add_bitmap(OsStr::new("other"), None, false).await;
            image.close().await.expect("close");
        });
        let bytes = std::fs::read(&path).expect("read");
        assert!(bytes.chunks(CLUSTER as usize).any(|cluster| cluster[24..].starts_with(b"datab")));
        let info = crate::place::list(&path);
        assert_eq!(info[0].usable, compatible, "what did not follow the write is in use");
        if compatible {
            let marked = crate::place::read(&path, "b").expect("read").next_marked(0);
            assert_eq!(marked, Some((8192, 4096)));
        }
        // QEMU knows no extra data: it refuses such an image.
        block_on(async {
            let image = open(&path).await;
            image.remove_bitmap(OsStr::new("b")).await.expect("remove");
            image.close().await.expect("close");
        });
        expect_clean(&path);
    }
}
