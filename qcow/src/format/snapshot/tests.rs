//! Snapshot tables of real images, of broken ones, and read in pieces.

use proptest::prelude::*;

use super::*;
use crate::format::test_images::TestImage;

/// An image with two snapshots, the bytes of its table and what stands in them.
fn real_table() -> (TestImage, Vec<u8>, Vec<SnapshotEntry>) {
    let image = TestImage::create(&[], "1M");
    image.qemu_img(&["snapshot", "-c", "first", "image"]);
    image.qemu_img(&["resize", "-q", "image", "2M"]);
    image.qemu_img(&["snapshot", "-c", "a second one", "image"]);
    let header = image.header();
    let bytes = image.bytes()[header.snapshots_offset.get() as usize..].to_vec();
    let (entries, len) = parse_table(&bytes, header.snapshot_count, header.size).unwrap();
    let table = bytes[..len as usize].to_vec();
    (image, table, entries)
}

#[test]
fn tables_of_qemu_survive_parse_and_encode() {
    let (image, table, entries) = real_table();
    assert_eq!(encode_table(&entries).unwrap(), table);
    let names: Vec<_> = entries.iter().map(|e| (e.id.as_os_str(), e.name.as_os_str())).collect();
    assert_eq!(names, [("1".as_ref(), "first".as_ref()), ("2".as_ref(), "a second one".as_ref())]);
    assert_eq!(entries[0].disk_size, 1 << 20);
    assert_eq!(entries[1].disk_size, 2 << 20);
    // qemu-img has no machine to ask, and writes 0.
    assert_eq!((entries[0].icount, entries[0].vm_state_size), (Some(0), 0));
    let file_len = image.bytes().len() as u64;
    entries[0].check_l1(image.header().geometry(), file_len).unwrap();
}

#[test]
fn damaged_entries_are_refused() {
    let (_, mut table, _) = real_table();
    table[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
    let error = parse_table(&table, 2, 0).unwrap_err();
    assert!(error.message().contains("Too much extra metadata in snapshot table entry 0"));

    let error = SnapshotTableReader::new(SNAPSHOT_COUNT_MAX + 1, 0).unwrap_err();
    assert!(error.message().contains("Snapshot table too large"));

    let (_, table, _) = real_table();
    let error = parse_table(&table[..table.len() - 1], 2, 0).unwrap_err();
    assert!(error.message().contains("ends in entry 1 of 2"), "{error}");
}

#[test]
fn bad_l1_tables_are_refused_when_asked_for() {
    let (image, _, entries) = real_table();
    let geometry = image.header().geometry();
    let refusal = |l1_size, l1_table_offset| {
        let l1_table_offset = HostOffset::new(l1_table_offset);
        let entry = SnapshotEntry { l1_size, l1_table_offset, ..entries[0].clone() };
        entry.check_l1(geometry, 1 << 30).unwrap_err().message().to_owned()
    };
    assert!(refusal(u32::MAX, 0x50000).contains("snapshot 'first': Snapshot L1 table too large"));
    assert!(refusal(1, 0x50200).contains("Snapshot L1 table offset invalid"));
    assert!(refusal(1, 1 << 40).contains("past the end of the file"));
}

#[test]
fn old_entries_without_extra_data_take_the_current_size() {
    let (_, table, entries) = real_table();
    let mut old = table[..40].to_vec();
    old[36..40].fill(0);
    old.extend_from_slice(b"1first");
    let (parsed, len) = parse_table(&old, 1, 4096).unwrap();
    assert_eq!(len, 46);
    assert_eq!(parsed, [SnapshotEntry { disk_size: 4096, icount: None, ..entries[0].clone() }]);
}

#[test]
fn a_table_too_large_to_read_again_is_not_written() {
    let (_, _, entries) = real_table();
    let name = OsString::from("n".repeat(65_535));
    let large = SnapshotEntry { name, ..entries[0].clone() };
    assert!(encode_table(&vec![large; 1024]).is_err());
    let longer = SnapshotEntry { name: "n".repeat(65_536).into(), ..entries[0].clone() };
    assert!(encode_table(&[longer]).is_err());
    let more = SnapshotEntry { unknown_extra: vec![0; 1001], ..entries[0].clone() };
    assert!(encode_table(&[more]).is_err());
}

prop_compose! {
    fn any_entry()(
        (l1_table_offset, l1_size) in any::<(u64, u32)>(),
        (id, name) in ("[0-9]{0,9}", "[a-z ]{0,40}"),
        (date_seconds, date_nanoseconds, vm_clock_nanoseconds) in any::<(u32, u32, u64)>(),
        (vm_state_size, disk_size) in any::<(u64, u64)>(),
        icount in proptest::option::of(0..u64::MAX),
        unknown_extra in proptest::collection::vec(any::<u8>(), 0..30),
    ) -> SnapshotEntry {
        SnapshotEntry {
            l1_table_offset: HostOffset::new(l1_table_offset),
            l1_size,
            id: id.into(),
            name: name.into(),
            date_seconds,
            date_nanoseconds,
            vm_clock_nanoseconds,
            vm_state_size,
            disk_size,
            icount,
            unknown_extra,
        }
    }
}

proptest! {
    #[test]
    fn parse_undoes_encode_in_pieces_of_any_size(
        entries in proptest::collection::vec(any_entry(), 0..6),
        piece in 1_usize..200,
        behind in 0_usize..20,
    ) {
        let table = encode_table(&entries).unwrap();
        let mut bytes = table.clone();
        bytes.resize(table.len() + behind, 0xff);
        let mut reader = SnapshotTableReader::new(entries.len() as u32, 0).unwrap();
        for chunk in bytes.chunks(piece) {
            if reader.push(chunk).unwrap() {
                break;
            }
        }
        prop_assert_eq!(reader.finish().unwrap(), (entries, table.len() as u64));
    }

    #[test]
    fn no_bytes_panic(
        bytes in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..600),
        count in 0_u32..20,
    ) {
        let _ = parse_table(&bytes, count, 0);
    }
}
