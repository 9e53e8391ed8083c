//! One header in the place of another: at every cut the image has one of both.

use proptest::prelude::*;

use super::*;

/// The header as an image of version 2 can have it.
fn as_v2(mut header: Header) -> Header {
    header.version = Version::V2;
    header.header_length = HEADER_LENGTH_V2;
    header.unknown_fields.clear();
    header.incompatible = Incompatible(0);
    header.compatible = Compatible(0);
    header.autoclear = Autoclear(0);
    header.refcount_order = 4;
    header.compression = CompressionType::Deflate;
    header.extensions.bitmaps = None;
    header
}

prop_compose! {
    /// Two headers that one image could have, with names of any length and clusters of any size.
    fn two_headers()(
        (old, new) in (any_header(), any_header()),
        (v2_old, v2_new) in any::<(bool, bool)>(),
        cluster_bits in 9_u32..=14,
        names in proptest::array::uniform2(proptest::option::of("[a-z]{1,1023}")),
        same_extensions: bool,
    ) -> (Header, Header) {
        let [old_name, new_name] = names;
        let finish = |header: Header, v2, name: Option<String>| {
            let header = if v2 { as_v2(header) } else { header };
            let l1_size = Geometry::new(cluster_bits, 4).l1_entries_for(header.size) as u32;
            Header { cluster_bits, l1_size, backing_name: name.map(Into::into), ..header }
        };
        let old = finish(old, v2_old, old_name);
        let mut new = finish(new, v2_new, new_name);
        if same_extensions && old.crypt_method == new.crypt_method {
            new.extensions = Extensions { bitmaps: new.extensions.bitmaps, ..old.extensions.clone() };
        }
        (old, new)
    }
}

/// Applies the writes of `step` that `chosen` has a bit for.
fn write_some(cluster0: &mut [u8], step: &HeaderStep, chosen: u64) {
    for (i, (at, sector)) in step.writes.iter().enumerate() {
        if chosen >> (i % 64) & 1 == 1 {
            let at = at.get() as usize;
            cluster0[at..at + 512].copy_from_slice(sector);
        }
    }
}

/// Cuts off every step: some of its sectors are written, and some are not. Returns how often the new header was found.
fn assert_atomic(cluster0: &[u8], old: &Header, replacement: &Replacement) -> u32 {
    let (mut durable, mut is_new, mut switches) = (cluster0.to_vec(), false, 0);
    for step in &replacement.steps {
        assert!(!step.writes.is_empty());
        let subsets: Box<dyn Iterator<Item = u64>> =
            match step.writes.len() {
                few @ ..7 => Box::new(0..1 << few),
                // Of many, those on either side of each place, and others.
                _ => Box::new((0..64).flat_map(|i| {
                    [(1 << i) - 1, !0 << i, 0x9e37_79b9_7f4a_7c15_u64.rotate_left(i)]
                })),
            };
        for chosen in subsets {
            let mut cut = durable.clone();
            write_some(&mut cut, step, chosen);
            let found = Header::parse(&cut, FILE_LEN).unwrap();
            assert!(found == replacement.header || !is_new && found == *old, "{found:?}");
        }
        write_some(&mut durable, step, !0);
        let now_new = Header::parse(&durable, FILE_LEN).unwrap() == replacement.header;
        switches += u32::from(now_new && !is_new);
        is_new |= now_new;
    }
    assert_eq!(Header::parse(&durable, FILE_LEN).unwrap(), replacement.header);
    switches
}

#[test]
fn headers_of_qemu_are_replaced_by_those_that_qemu_would_write() {
    let name = "n".repeat(900);
    for cluster_size in ["512", "1k", "2k", "4k", "64k", "2M"] {
        for options in ["compat=1.1", "compat=0.10"] {
            let options = format!("{options},cluster_size={cluster_size}");
            let len =
                [("512", 300), ("1k", 800)].into_iter().find(|(size, _)| *size == cluster_size);
            let short = &name[..len.map_or(900, |(_, len)| len)];
            let with_name = ["-o", &options, "-u", "-b", short, "-F", "raw"];
            let images = [
                TestImage::create(&["-o", &options], "1M"),
                TestImage::create(&["-o", &options, "-u", "-b", "base", "-F", "qcow2"], "1M"),
                TestImage::create(&with_name, "1M"),
            ];
            for (old, new) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
                let (old, new) = (&images[old], &images[new]);
                let cluster = 1 << old.header().cluster_bits;
                let mut cluster0 = old.bytes()[..cluster].to_vec();
                let replacement = new.header().plan_replacement(&cluster0, FILE_LEN).unwrap();
                assert_eq!(assert_atomic(&cluster0, &old.header(), &replacement), 1);
                for step in &replacement.steps {
                    write_some(&mut cluster0, step, !0);
                }
                assert_eq!(cluster0, new.bytes()[..cluster], "{options}");
            }
        }
    }
}

#[test]
fn a_cluster_without_room_for_both_names_is_left_alone() {
    let with_name = |name: &str| {
        let options = ["-o", "cluster_size=1k", "-u", "-b", name, "-F", "raw"];
        TestImage::create(&options, "1M")
    };
    let (old, new) = (with_name(&"a".repeat(600)), with_name(&"b".repeat(600)));
    let refused = new.header().plan_replacement(&old.bytes()[..1024], FILE_LEN).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Limit);
    // Nothing is in the way of the same name beside other fields.
    let mut new = old.header();
    new.size = 512;
    assert_eq!(new.plan_replacement(&old.bytes()[..1024], FILE_LEN).unwrap().steps.len(), 1);
}

#[test]
fn nothing_is_lost_where_there_is_room_for_all_of_it() {
    let mut old = TestImage::create(&[], "1M").header();
    old.extensions.unknown.push((0x1234_5678, vec![7; 31]));
    assert!(old.extensions.feature_names.is_some());
    let mut cluster0 = old.encode().unwrap();
    cluster0.resize(65536, 0);
    let mut new = old.clone();
    new.backing_name = Some("/some/backing/file/path".into());
    new.extensions.backing_format = Some("raw".to_owned());
    let replacement = new.plan_replacement(&cluster0, FILE_LEN).unwrap();
    assert_eq!(replacement.header, new);
    assert_atomic(&cluster0, &old, &replacement);
    replacement.steps.iter().for_each(|step| write_some(&mut cluster0, step, !0));
    // Where an encoder puts it all, and no fillers are left.
    assert_eq!(cluster0[..1024], new.encode().unwrap()[..1024]);
}

proptest! {
    #[test]
    fn a_header_is_replaced_at_one_moment((old, new) in two_headers()) {
        let Ok(mut cluster0) = old.encode() else { return Ok(()) };
        cluster0.resize(1 << old.cluster_bits, 0);
        let replacement = match new.plan_replacement(&cluster0, FILE_LEN) {
            Ok(replacement) => replacement,
            Err(e) => {
                prop_assert_eq!(e.kind(), ErrorKind::Limit);
                // There is always room in clusters of 16 KiB for the largest of these headers.
                prop_assert!(old.cluster_bits < 14, "{:?} {:?}", old, new);
                return Ok(());
            }
        };
        let switches = assert_atomic(&cluster0, &old, &replacement);
        prop_assert!(switches <= 1);
        prop_assert_eq!(&replacement.header.extensions.unknown, &new.extensions.unknown);
        prop_assert_eq!(&replacement.header.unknown_fields, &new.unknown_fields);
        // From there on, too, and back again.
        let mut now = cluster0;
        replacement.steps.iter().for_each(|step| write_some(&mut now, step, !0));
        if let Ok(back) = old.plan_replacement(&now, FILE_LEN) {
            assert_atomic(&now, &replacement.header, &back);
        }
    }
}
