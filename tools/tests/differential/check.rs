//! `check`: the same findings, figures and exit codes on damaged images.

use crate::tool::{Pair, damage};

/// With 64 KiB clusters: refcount table at 0x10000, block at 0x20000, L1 table at 0x30000, L2 table at 0x40000, data from
/// 0x50000 on.
const SETUP: &str = "
    img create -q -f qcow2 a.qcow2 1M
    io a.qcow2: write 0 300k
";

/// Where bytes are overwritten, and with what.
const DAMAGES: [(&str, u64, &[u8]); 9] = [
    ("a leak", 0x40000, &[0; 8]),
    ("a wrong count", 0x20000 + 11, &[2]),
    ("two missing counts", 0x20000 + 8, &[0; 4]),
    ("an unaligned cluster", 0x40000 + 6, &[2, 1]),
    ("a missing COPIED flag", 0x40000, &[0]),
    ("a missing COPIED flag of a table", 0x30000, &[0]),
    ("reserved bits in L2", 0x40000, &[0xbf]),
    ("no refcount block", 0x10000, &[0; 8]),
    ("a cluster named twice", 0x40000 + 8, &[0x80, 0, 0, 0, 0, 5, 0, 0]),
];

#[test]
fn damage_is_told_alike() {
    for (what, at, bytes) in DAMAGES {
        let pair = Pair::prepared(SETUP);
        damage(&pair, "a.qcow2", at, bytes);
        for line in ["check a.qcow2", "check -q a.qcow2"] {
            let (ours, theirs) = pair.img(line);
            assert_eq!(ours, theirs, "{what}: {line}");
        }
        pair.same_json("check --output=json a.qcow2");
    }
}

#[test]
fn a_repair_clears_what_it_cannot_vouch_for() {
    for (line, bits) in [("check", 0x80), ("check -r leaks", 0), ("check -r all", 0)] {
        let pair = Pair::prepared(SETUP);
        // An unknown autoclear bit.
        damage(&pair, "a.qcow2", 88, &[0x80]);
        pair.same_img(&format!("{line} a.qcow2"));
        for directory in [pair.ours(), pair.theirs()] {
            let bytes = std::fs::read(directory.join("a.qcow2")).expect("an image");
            assert_eq!(bytes[88], bits, "{line} in {directory:?}");
        }
    }
}

#[test]
fn leaks_are_repaired_alike() {
    for line in ["check -r leaks a.qcow2", "check -r all a.qcow2", "check -q -r leaks a.qcow2"] {
        let pair = Pair::prepared(SETUP);
        damage(&pair, "a.qcow2", 0x40000, &[0; 8]);
        pair.same_img(line);
        pair.same_clean_image("a.qcow2");
    }
    let pair = Pair::prepared(SETUP);
    damage(&pair, "a.qcow2", 0x40000, &[0; 8]);
    pair.same_json("check -r leaks --output=json a.qcow2");
}

#[test]
fn counts_and_flags_are_repaired_alike() {
    // Only where no cluster in use counts zero: QEMU then makes all counts anew, elsewhere, and we repair them in place.
    let in_place = [
        "a wrong count",
        "a missing COPIED flag",
        "a missing COPIED flag of a table",
        "a cluster named twice",
    ];
    for (what, at, bytes) in DAMAGES.into_iter().filter(|(what, ..)| in_place.contains(what)) {
        println!("{what}");
        for line in ["check -r all a.qcow2", "check -r all --output=json a.qcow2"] {
            let pair = Pair::prepared(SETUP);
            damage(&pair, "a.qcow2", at, bytes);
            if line.contains("json") {
                pair.same_json(line);
            } else {
                pair.same_img(line);
            }
            pair.same_clean_image("a.qcow2");
        }
    }
}

#[test]
fn missing_counts_are_rebuilt_alike() {
    let missing = ["two missing counts", "no refcount block"];
    for (what, at, bytes) in DAMAGES.into_iter().filter(|(what, ..)| missing.contains(what)) {
        println!("{what}");
        let pair = Pair::prepared(SETUP);
        damage(&pair, "a.qcow2", at, bytes);
        pair.same_img("check -r all a.qcow2");
        pair.same_clean_image("a.qcow2");
    }
}

#[test]
fn images_with_everything_are_clean() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 -o cluster_size=4k,refcount_bits=64 a.qcow2 10M
         io a.qcow2: write 1M 2M; write -c 4M 4k; write -z 5M 1M; discard 1M 100k
         img snapshot -c one a.qcow2
         io a.qcow2: write 1500k 1M
         img bitmap --add a.qcow2 bits",
    );
    pair.same_img("check a.qcow2");
    pair.same_json("check --output=json a.qcow2");
}
