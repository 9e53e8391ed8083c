//! Bitmap directories of real images and of broken ones.

use proptest::prelude::*;

use super::*;
use crate::format::test_images::TestImage;

const FILE_LEN: u64 = 1 << 30;

fn geometry() -> Geometry {
    Geometry::new(16, 4)
}

/// The directory bytes of an image with the bitmaps `b0` and `bitmap one`.
fn real_directory() -> (TestImage, Vec<u8>) {
    let image = TestImage::create(&[], "64M");
    image.qemu_img(&["bitmap", "--add", "image", "b0"]);
    image.qemu_img(&["bitmap", "--add", "--disable", "-g", "4096", "image", "bitmap one"]);
    let extension = image.header().extensions.bitmaps.unwrap();
    let start = extension.directory_offset.get() as usize;
    let directory = image.bytes()[start..start + extension.directory_size as usize].to_vec();
    (image, directory)
}

#[test]
fn directories_of_qemu_are_read() {
    let (image, directory) = real_directory();
    let bytes = image.bytes();
    let mut entries = parse_directory(&directory, 2, geometry(), bytes.len() as u64).unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let [b0, one] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((b0.name.as_os_str(), b0.flags), ("b0".as_ref(), BitmapFlags::AUTO));
    assert_eq!((one.name.as_os_str(), one.flags), ("bitmap one".as_ref(), BitmapFlags(0)));
    assert_eq!((b0.granularity_bits, one.granularity_bits), (16, 12));
    for entry in &entries {
        let at = entry.table_offset.get() as usize;
        let raw = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(parse_table_entry(raw, geometry()).unwrap(), BitmapCluster::Zeros);
    }
}

#[test]
fn a_count_that_does_not_match_is_refused() {
    let (_, directory) = real_directory();
    let refusal = |bytes: &[u8], count| {
        parse_directory(bytes, count, geometry(), FILE_LEN).unwrap_err().message().to_owned()
    };
    assert!(refusal(&directory, 1).contains("More bitmaps found"));
    assert!(refusal(&directory, 3).contains("Less bitmaps found"));
    assert!(refusal(&directory[..directory.len() - 8], 2).contains("Broken bitmap directory"));
}

#[test]
fn damaged_entries_are_refused() {
    let (_, directory) = real_directory();
    let damages: [(usize, &[u8], &str); 10] = [
        (0, &[0; 8], "offset invalid"),
        (0, &0x50200_u64.to_be_bytes(), "offset invalid"),
        (0, &(1_u64 << 40).to_be_bytes(), "past the end of the file"),
        (8, &[0; 4], "its table is empty"),
        (8, &[0xff; 4], "more than 512 MiB"),
        (12, &[0, 0, 0, 8], "unknown flags"),
        (16, &[2], "its type is unknown"),
        (17, &[8], "granularity"),
        (17, &[32], "granularity"),
        (20, &[0xff; 4], "Broken bitmap directory"),
    ];
    for (at, bytes, words) in damages {
        let mut damaged = directory.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        let error = parse_directory(&damaged, 2, geometry(), FILE_LEN).expect_err(words);
        assert!(error.message().contains(words), "{error}, not {words}");
    }
}

#[test]
fn two_bitmaps_of_one_name_are_refused() {
    let (_, directory) = real_directory();
    let first = &directory[..32];
    let error = parse_directory(&[first, first].concat(), 2, geometry(), FILE_LEN).unwrap_err();
    assert!(error.message().contains("same name"), "{error}");
}

#[test]
fn table_entries_mean_zeros_ones_or_a_cluster() {
    let parse = |raw| parse_table_entry(raw, geometry());
    assert_eq!(parse(0).unwrap(), BitmapCluster::Zeros);
    assert_eq!(parse(1).unwrap(), BitmapCluster::Ones);
    assert_eq!(parse(0x30000).unwrap(), BitmapCluster::Data(HostCluster::new(3)));
    for raw in [2, 0x100, 1 << 56, 1 << 63, 0x30001, 0x30200] {
        assert!(parse(raw).is_err(), "{raw:#x}");
    }
}

proptest! {
    #[test]
    fn no_directory_panics(
        bytes in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..400),
        count: u32,
        file_len: u64,
    ) {
        let _ = parse_directory(&bytes, count, geometry(), file_len);
    }

    #[test]
    fn no_damaged_directory_panics(
        damage in proptest::collection::vec((0_usize..64, any::<u8>()), 1..6),
    ) {
        let mut bytes = [0_u8; 64];
        bytes[..24].copy_from_slice(&[
            0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 1, 16, 0, 2, 0, 0, 0, 0,
        ]);
        bytes[24..26].copy_from_slice(b"b0");
        for (at, value) in damage {
            bytes[at] = value;
        }
        let _ = parse_directory(&bytes, 1, geometry(), FILE_LEN);
    }

    #[test]
    fn no_table_entry_panics(raw: u64) {
        let _ = parse_table_entry(raw, geometry());
    }
}
