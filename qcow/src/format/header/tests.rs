//! Headers of real images, of broken ones, and of none at all.

mod replace;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::format::extension::{BitmapsExtension, EncryptionHeader};
use crate::format::feature::FeatureNames;
use crate::format::mark::Mark;
use crate::format::test_images::{TestImage, parse_image};

/// Parses a real image, and finds its very bytes when encoding the result.
fn assert_survives(options: &[&str], size: &str) -> Header {
    let image = TestImage::create(options, size);
    let (header, bytes) = (image.header(), image.bytes());
    let encoded = header.encode().unwrap();
    let area = &bytes[..bytes.len().min(1 << header.cluster_bits)];
    assert!(area.starts_with(&encoded), "{options:?}: {header:?}");
    assert!(area[encoded.len()..].iter().all(|&b| b == 0), "{options:?}: more behind the header");

    let mut patched = bytes[..512].to_vec();
    header.patch_first_sector(&mut patched).unwrap();
    assert_eq!(patched, bytes[..512], "{options:?}");
    header
}

#[test]
fn images_of_qemu_survive_parse_and_encode() {
    for cluster_size in ["512", "4k", "64k", "2M"] {
        for more in [
            "compat=0.10",
            "compat=1.1",
            "lazy_refcounts=on",
            "refcount_bits=1",
            "refcount_bits=64",
            "compression_type=zstd",
            "preallocation=metadata",
        ] {
            for size in ["0", "1M", "100M"] {
                assert_survives(&["-o", &format!("cluster_size={cluster_size},{more}")], size);
            }
        }
    }
}

#[test]
fn fields_and_extensions_are_read() {
    let backing = ["-u", "-b", "dir/base file", "-F", "raw"];
    let header = assert_survives(&backing, "1M");
    assert_eq!(header.backing_name.as_deref(), Some("dir/base file".as_ref()));
    assert_eq!(header.extensions.backing_format.as_deref(), Some("raw"));
    assert_eq!(header.extensions.feature_names, Some(FeatureNames::standard()));
    assert_eq!((header.version, header.header_length), (Version::V3, HEADER_LENGTH_V3));

    let old = assert_survives(&["-o", "compat=0.10", "-u", "-b", "base", "-F", "qcow2"], "1M");
    assert_eq!((old.version, old.header_length), (Version::V2, HEADER_LENGTH_V2));
    assert_eq!(old.backing_name.as_deref(), Some("base".as_ref()));

    let odd = "compression_type=zstd,lazy_refcounts=on,refcount_bits=2,cluster_size=4k";
    let odd = assert_survives(&["-o", odd], "1M");
    assert_eq!(odd.compression, CompressionType::Zstd);
    assert!(odd.compatible.contains(Compatible::LAZY_REFCOUNTS));
    assert_eq!((odd.geometry().refcount_bits(), odd.geometry().cluster_size()), (2, 4096));
}

#[test]
fn features_of_all_kinds_are_read() {
    let secret = ["--object", "secret,id=s,data=x", "-o"];
    let with = |options| [secret[0], secret[1], secret[2], options];
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let luks = assert_survives(&with(luks), "1M");
    let luks_header = luks.extensions.encryption_header.unwrap();
    assert_eq!((luks.crypt_method, luks_header.length), (CryptMethod::Luks, 0x1f_9000));

    let aes = assert_survives(&with("encrypt.format=aes,encrypt.key-secret=s"), "1M");
    assert_eq!(aes.crypt_method, CryptMethod::Aes);

    let external = assert_survives(&["-o", "data_file=data,data_file_raw=on"], "1M");
    assert_eq!(external.extensions.data_file.as_deref(), Some("data".as_ref()));

    let extended = assert_survives(&["-o", "extended_l2=on"], "1G");
    assert!(extended.geometry().has_extended_l2());
}

#[test]
fn images_with_bitmaps_and_snapshots_survive() {
    let image = TestImage::create(&[], "1M");
    image.qemu_img(&["bitmap", "--add", "image", "b0"]);
    image.qemu_img(&["snapshot", "-c", "s0", "image"]);
    let header = image.header();
    assert_eq!(header.snapshot_count, 1);
    assert_eq!(header.extensions.bitmaps.unwrap().count, 1);
    assert!(image.bytes().starts_with(&header.encode().unwrap()));
}

/// A 64 MiB image with 64 KiB clusters that owns a few clusters of data.
fn base_image() -> TestImage {
    let image = TestImage::create(&[], "64M");
    std::fs::write(image.directory().join("data"), vec![7; 128 << 10]).unwrap();
    image.qemu_img(&["convert", "-n", "-f", "raw", "-O", "qcow2", "data", "image"]);
    image
}

/// Bytes to put at an offset of the image.
type Patch = (usize, Vec<u8>);

fn be32(at: usize, value: u32) -> Patch {
    (at, value.to_be_bytes().to_vec())
}

fn be64(at: usize, value: u64) -> Patch {
    (at, value.to_be_bytes().to_vec())
}

fn extension(kind: u32, data: &[u8]) -> Patch {
    let mut bytes = kind.to_be_bytes().to_vec();
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8) + 8, 0);
    (112, bytes)
}

fn bitmaps_extension(count: u32, reserved: u32, size: u64, offset: u64) -> Patch {
    let mut data = count.to_be_bytes().to_vec();
    data.extend(reserved.to_be_bytes());
    data.extend(size.to_be_bytes());
    data.extend(offset.to_be_bytes());
    extension(0x2385_2875, &data)
}

fn crypto_extension(offset: u64) -> Patch {
    let data = [offset.to_be_bytes(), 4096_u64.to_be_bytes()].concat();
    extension(0x0537_be77, &data)
}

fn apply(image: &mut [u8], patches: &[Patch]) {
    for (at, bytes) in patches {
        image[*at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Damage that QEMU refuses too, and the words of its refusal that ours must contain.
fn refused_by_both() -> Vec<(Vec<Patch>, &'static str)> {
    let bitmaps_bit = be64(88, 1);
    vec![
        (vec![(0, b"QFI\0".to_vec())], "Image is not in qcow2 format"),
        (vec![be32(4, 1)], "Unsupported qcow2 version 1"),
        (vec![be32(4, 4)], "Unsupported qcow2 version 4"),
        (vec![be32(20, 8)], "Unsupported cluster size: 2^8"),
        (vec![be32(20, 22)], "Unsupported cluster size: 2^22"),
        (vec![be32(20, u32::MAX)], "Unsupported cluster size: 2^4294967295"),
        (vec![be32(100, 100)], "qcow2 header too short"),
        (vec![be32(100, 65544)], "qcow2 header exceeds cluster size"),
        (vec![be64(72, 1 << 5)], "feature(s): Unknown incompatible feature: 20"),
        (vec![be64(72, 1 << 63)], "Unknown incompatible feature: 8000000000000000"),
        (vec![be64(72, 1 << 5), (120, vec![0, 5])], "Unsupported qcow2 feature(s): dirty bit"),
        (vec![be32(96, 7)], "Reference count entry width too large"),
        (vec![be32(96, u32::MAX)], "Reference count entry width too large"),
        (vec![be32(56, 0)], "Image does not contain a reference count table"),
        (vec![be32(56, 1 << 20)], "Reference count table too large"),
        (vec![be64(48, 0x10200)], "Reference count table offset invalid"),
        (vec![be64(48, 1 << 63)], "Reference count table offset invalid"),
        (vec![be32(36, 0)], "L1 table is too small"),
        (vec![be32(36, 0x7fff_ffff)], "Active L1 table too large"),
        (vec![be32(36, u32::MAX)], "Active L1 table too large"),
        (vec![be64(40, 0x30200)], "Active L1 table offset invalid"),
        (vec![be64(24, 1 << 62), be32(20, 9)], "Image is too big"),
        (vec![be32(60, u32::MAX)], "Snapshot table too large"),
        (vec![be32(60, 65537)], "Snapshot table too large"),
        (vec![be64(64, 0x200)], "Snapshot table offset invalid"),
        (vec![be64(8, 0xffff_ffff), be32(16, 4)], "Invalid backing file offset"),
        (vec![be64(8, 0x8000), be32(16, 0xffff)], "Backing file name too long"),
        (vec![be64(8, 0xfff0), be32(16, 17)], "Backing file name too long"),
        (vec![be32(32, 3)], "Unsupported encryption method 3"),
        (vec![be32(32, 2)], "Missing CRYPTO header for crypt method 2"),
        (vec![crypto_extension(0)], "CRYPTO header extension only expected with LUKS"),
        (vec![be32(32, 2), crypto_extension(0x200)], "is not a multiple of cluster size"),
        (
            vec![be32(32, 2), extension(0x0537_be77, &[0; 8])],
            "CRYPTO header extension size 8, but expected size 16",
        ),
        (vec![extension(0xe279_2aca, &[b'q'; 16])], "len=16 too large (>=16)"),
        (vec![be32(112 + 4, 0xffff_ff00)], "Header extension too large"),
        (vec![be64(8, 0x100), be32(16, 4)], "Header extension too large"),
        (vec![bitmaps_bit.clone(), extension(0x2385_2875, &[0; 8])], "Invalid extension length"),
        (
            vec![bitmaps_bit.clone(), bitmaps_extension(0, 0, 64, 0x50000)],
            "found bitmaps extension with zero bitmaps",
        ),
        (vec![bitmaps_bit.clone(), bitmaps_extension(65536, 0, 64, 0x50000)], "exceeding the"),
        (
            vec![bitmaps_bit.clone(), bitmaps_extension(1, 1, 64, 0x50000)],
            "bitmaps_ext: Reserved field is not zero",
        ),
        (vec![bitmaps_bit, bitmaps_extension(1, 0, 64, 0x50200)], "bitmap directory offset"),
        (vec![(104, vec![2])], "qcow2: unknown compression type: 2"),
        (vec![(104, vec![1])], "Compression type incompatible feature bit must be set"),
        (vec![be64(72, 8)], "Compression type incompatible feature bit must not be set"),
        (vec![be64(72, 16), be32(20, 13)], "Unsupported subcluster size: 256"),
    ]
}

/// Damage that QEMU lets pass, or notices for another reason.
fn refused_by_us() -> Vec<(Vec<Patch>, &'static str)> {
    let name = extension(0x4441_5441, b"a").1;
    let twice = [&name[..16], &name[..16], &[0; 8]].concat();
    vec![
        (vec![be32(100, 108)], "header length 108 is not a multiple of 8"),
        (vec![be64(40, 0x7fff_ffff_ffff_0000)], "Active L1 table offset invalid"),
        (vec![be64(40, 1 << 40)], "Active L1 table lies past the end of the file"),
        (vec![be64(40, 0)], "Active L1 table offset invalid"),
        (vec![be64(40, 0x10000)], "Active L1 table (l1_table_offset is 0x10000) overlaps"),
        (vec![be64(48, 0)], "Reference count table offset invalid"),
        (vec![be64(48, 1 << 40)], "Reference count table lies past the end of the file"),
        (vec![be32(60, 1), be64(64, 1 << 40)], "Snapshot table lies past the end of the file"),
        (vec![be32(60, 1)], "Snapshot table offset invalid"),
        (vec![be64(8, 80), be32(16, 4)], "Invalid backing file offset"),
        (
            vec![be64(88, 1), bitmaps_extension(1, 0, 64, 1 << 40)],
            "bitmap directory lies past the end of the file",
        ),
        (vec![be64(88, 1), bitmaps_extension(1, 0, 65 << 20, 0x50000)], "directory too large"),
        (vec![(112, twice)], "duplicate header extension: external data file name"),
    ]
}

#[test]
fn damage_is_refused_in_the_words_of_qemu() {
    let image = base_image();
    let good = image.bytes();
    parse_image(&good).unwrap();
    for (patches, words) in refused_by_both() {
        let mut bytes = good.clone();
        apply(&mut bytes, &patches);
        let error = parse_image(&bytes).expect_err(words);
        assert!(error.message().contains(words), "{error}, not {words}");
        std::fs::write(image.path(), &bytes).unwrap();
        let complaint = image.qemu_complaint();
        assert!(complaint.contains(words), "QEMU says {complaint}, not {words}");
    }
}

#[test]
fn damage_that_qemu_lets_pass_is_refused() {
    let good = base_image().bytes();
    for (patches, words) in refused_by_us() {
        let mut bytes = good.clone();
        apply(&mut bytes, &patches);
        let error = parse_image(&bytes).expect_err(words);
        assert!(error.message().contains(words), "{error}, not {words}");
    }
}

#[test]
fn truncated_files_are_refused() {
    let good = base_image().bytes();
    for (len, words) in [
        (0, "Image is not in qcow2 format"),
        (4, "qcow2 header too short"),
        (50, "qcow2 header too short"),
        (512, "past the end of the file"),
        (3 << 16, "Active L1 table lies past the end of the file"),
    ] {
        let error = parse_image(&good[..len]).expect_err(words);
        assert!(error.message().contains(words), "{error}, not {words}");
    }
}

#[test]
fn harmless_oddities_pass() {
    let good = base_image().bytes();
    let parsed = |patches: &[Patch]| {
        let mut bytes = good.clone();
        apply(&mut bytes, patches);
        parse_image(&bytes).unwrap()
    };
    assert_eq!(parsed(&[be64(88, 1 << 63)]).autoclear.unknown(), Autoclear(1 << 63));
    assert_eq!(parsed(&[be64(80, 1 << 63)]).compatible.unknown(), Compatible(1 << 63));
    assert_eq!(parsed(&[be64(72, 3)]).incompatible, Incompatible(3));
    assert_eq!(parsed(&[be64(8, 0x1000), be32(16, 0)]).backing_name, None);
    assert_eq!(parsed(&[be64(24, (64 << 20) - 1)]).virtual_size(), (64 << 20) - 512);
    // Without its autoclear bit, a bitmaps extension says nothing.
    assert_eq!(parsed(&[bitmaps_extension(0, 9, 0, 1)]).extensions.bitmaps, None);
}

#[test]
fn a_long_header_keeps_its_unknown_fields() {
    let mut bytes = base_image().bytes();
    let rest = bytes[112..1024].to_vec();
    apply(&mut bytes, &[be32(100, 128), (112, vec![0xab; 16]), (128, rest)]);
    let header = parse_image(&bytes).unwrap();
    assert_eq!(header.unknown_fields, vec![0xab; 16]);
    assert_eq!(header.extensions.feature_names, Some(FeatureNames::standard()));
    assert!(bytes.starts_with(&header.encode().unwrap()));
}

#[test]
fn a_patched_sector_changes_nothing_else() {
    let image = TestImage::create(&["-o", "cluster_size=512", "-u", "-b", "b", "-F", "raw"], "1M");
    let bytes = image.bytes();
    let mut header = image.header();
    header.incompatible = header.incompatible.with(Incompatible::DIRTY);
    header.snapshot_count = 3;
    let mut sector = bytes[..512].to_vec();
    header.patch_first_sector(&mut sector).unwrap();
    let changed: Vec<_> = (0..512).filter(|&at| sector[at] != bytes[at]).collect();
    assert_eq!(changed, [63, 79]);

    let other_version = TestImage::create(&["-o", "compat=0.10"], "1M");
    let mut sector = other_version.bytes()[..512].to_vec();
    assert_eq!(header.patch_first_sector(&mut sector).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_does_not_fit_is_not_encoded() {
    let small = TestImage::create(&["-o", "cluster_size=512"], "1M").header();
    let crowded = Header { backing_name: Some("n".repeat(400).into()), ..small.clone() };
    assert_eq!(crowded.encode().unwrap_err().kind(), ErrorKind::Limit);
    let long_name = Header { backing_name: Some("n".repeat(1024).into()), ..small.clone() };
    assert_eq!(long_name.encode().unwrap_err().kind(), ErrorKind::Invalid);
    let old = Header { version: Version::V2, header_length: HEADER_LENGTH_V2, ..small.clone() };
    old.encode().unwrap();
    let old_and_dirty = Header { incompatible: Incompatible::DIRTY, ..old };
    assert_eq!(old_and_dirty.encode().unwrap_err().kind(), ErrorKind::Invalid);
    let lost_fields = Header { unknown_fields: vec![1; 8], ..small };
    assert_eq!(lost_fields.encode().unwrap_err().kind(), ErrorKind::Invalid);
}

/// Large enough for all tables of the generated headers.
const FILE_LEN: u64 = 1 << 40;

prop_compose! {
    fn any_extensions(luks: bool, bitmaps: bool)(
        backing_format in proptest::option::of("[a-z0-9]{1,15}"),
        data_file in proptest::option::of("[a-z/]{1,40}"),
        names in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        mark in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
        unknown in proptest::collection::vec(
            (1_u32..0x0500_0000, proptest::collection::vec(any::<u8>(), 0..50)), 0..5),
    ) -> Extensions {
        Extensions {
            backing_format,
            data_file: data_file.map(Into::into),
            encryption_header: luks
                .then_some(EncryptionHeader { offset: HostOffset::new(1 << 30), length: 77 }),
            feature_names: names.map(FeatureNames::from_bytes),
            bitmaps: bitmaps.then_some(BitmapsExtension {
                count: 3,
                directory_size: 1000,
                directory_offset: HostOffset::new(1 << 31),
            }),
            mark: mark.map(Mark::from_bytes),
            unknown,
        }
    }
}

prop_compose! {
    fn any_header()(
        (cluster_bits, refcount_order) in (12_u32..=21, 0_u32..=6),
        (crypt, zstd, external) in (0_u8..3, any::<bool>(), any::<bool>()),
        (compatible, autoclear) in any::<(u64, u64)>(),
        (l1_extra, snapshot_count) in (0_u32..100, 0_u32..10),
        backing in proptest::option::of("[a-zA-Z0-9/ .]{1,200}"),
        unknown_fields in (0_usize..4).prop_map(|n| vec![0x5a; n * 8]),
    )(
        size in 0_u64..1 << 30,
        extensions in any_extensions(crypt == 2, autoclear & 1 == 1),
        cluster_bits in Just(cluster_bits), refcount_order in Just(refcount_order),
        crypt in Just(crypt), zstd in Just(zstd), external in Just(external),
        compatible in Just(compatible), autoclear in Just(autoclear),
        l1_extra in Just(l1_extra), snapshot_count in Just(snapshot_count),
        backing in Just(backing), unknown_fields in Just(unknown_fields),
    ) -> Header {
        let l1_size = Geometry::new(cluster_bits, 4).l1_entries_for(size) as u32 + l1_extra;
        let incompatible = Incompatible(u64::from(zstd) << 3 | u64::from(external) << 2);
        Header {
            version: Version::V3,
            backing_name: backing.map(Into::into),
            cluster_bits,
            size,
            crypt_method: [CryptMethod::None, CryptMethod::Aes, CryptMethod::Luks][crypt as usize],
            l1_size,
            l1_table_offset: HostOffset::new(1 << 25),
            refcount_table_offset: HostOffset::new(1 << 26),
            refcount_table_clusters: 1,
            snapshot_count,
            snapshots_offset: HostOffset::new(1 << 27),
            incompatible,
            compatible: Compatible(compatible),
            autoclear: Autoclear(autoclear),
            refcount_order,
            header_length: HEADER_LENGTH_V3 + unknown_fields.len() as u32,
            compression: if zstd { CompressionType::Zstd } else { CompressionType::Deflate },
            unknown_fields,
            extensions,
        }
    }
}

proptest! {
    #[test]
    fn parse_undoes_encode(header in any_header()) {
        let mut cluster0 = header.encode().unwrap();
        prop_assert_eq!(cluster0.len() % 512, 0);
        cluster0.resize(1 << header.cluster_bits, 0);
        prop_assert_eq!(Header::parse(&cluster0, FILE_LEN).unwrap(), header);
    }

    #[test]
    fn an_appended_extension_is_there_after_the_last_step_and_not_before(
        header in any_header(),
        data in proptest::collection::vec(any::<u8>(), 0..1000),
    ) {
        let mut cluster0 = header.encode().unwrap();
        cluster0.resize(1 << header.cluster_bits, 0);
        let steps = Header::plan_append(&cluster0, 0x1234_5678, &data).unwrap();
        let Some(mut steps) = steps else { return Ok(()) };
        let last = steps.pop().unwrap();
        for (at, sector) in steps.iter().flat_map(|step| &step.writes) {
            let at = at.get() as usize;
            cluster0[at..at + 512].copy_from_slice(sector);
            prop_assert_eq!(&Header::parse(&cluster0, FILE_LEN).unwrap(), &header);
        }
        prop_assert_eq!(last.writes.len(), 1);
        let at = last.writes[0].0.get() as usize;
        cluster0[at..at + 512].copy_from_slice(&last.writes[0].1);
        let mut expected = header;
        expected.extensions.unknown.push((0x1234_5678, data));
        prop_assert_eq!(Header::parse(&cluster0, FILE_LEN).unwrap(), expected);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200), file_len: u64) {
        let _ = Header::cluster_bits_of(&bytes);
        let _ = Header::parse(&bytes, file_len);
    }

    #[test]
    fn no_damage_panics(
        header in any_header(),
        damage in proptest::collection::vec((0_usize..600, any::<u8>()), 1..8),
        file_len: u64,
    ) {
        let mut cluster0 = header.encode().unwrap();
        cluster0.resize(1 << header.cluster_bits, 0);
        for (at, value) in damage {
            cluster0[at] = value;
        }
        if let Ok(parsed) = Header::parse(&cluster0, file_len) {
            // Whatever passes has tables inside the file and can be written again.
            prop_assert!(parsed.l1_table_offset.get() < file_len.max(1) || parsed.l1_size == 0);
            let _ = parsed.encode();
            let _ = Header::plan_append(&cluster0, 7, &[1; 8]).unwrap();
            let _ = Header::find_mark(&cluster0).unwrap();
        }
    }
}
