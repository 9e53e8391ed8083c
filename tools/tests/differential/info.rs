//! `info`, for people and as JSON.

use crate::tool::{Pair, Tool, damage};

const SETUP: &str = "
    img create -q -f qcow2 a.qcow2 10M
    io a.qcow2: write 0 1M
    img snapshot -c first a.qcow2
    img snapshot -c a-name-that-is-longer-than-its-column a.qcow2
    img bitmap --add a.qcow2 bits
    img bitmap --add --disable -g 4k a.qcow2 more
    img create -q -f qcow2 -o compat=v2 old.qcow2 1G
    img create -q -f qcow2 -o compression_type=zstd,lazy_refcounts=on,refcount_bits=1 z.qcow2 5T
    img create -q -f qcow2 -o cluster_size=2M -b a.qcow2 -F qcow2 overlay.qcow2
    img create -q -f qcow2 -b overlay.qcow2 -F qcow2 top.qcow2 20M
    img create -q -f qcow2 -u -b nbd://localhost -F raw remote.qcow2 1M
    img create -q -f qcow2 -u -b missing.qcow2 -F qcow2 orphan.qcow2 1M
    img create -q -f qcow2 -u -b b.qcow2 -F qcow2 loop.qcow2 1M
    img create -q -f qcow2 -u -b loop.qcow2 -F qcow2 b.qcow2 1M
    img create -q -f qcow2 -o extended_l2=on wide.qcow2 1M
    img create -q -f qcow2 -o data_file=d.raw,data_file_raw=on external.qcow2 1M
    img create -q -f raw a.raw 3M
";

const NAMES: [&str; 12] = [
    "a.qcow2",
    "old.qcow2",
    "z.qcow2",
    "overlay.qcow2",
    "top.qcow2",
    "remote.qcow2",
    "orphan.qcow2",
    "loop.qcow2",
    "wide.qcow2",
    "a.raw",
    "-f raw a.qcow2",
    "-U a.qcow2",
];

#[test]
fn json_is_the_same() {
    let pair = Pair::prepared(SETUP);
    for name in NAMES {
        // Snapshots bear the time of their making, which the two sides do not share.
        if !name.ends_with("a.qcow2") {
            pair.same_json(&format!("info --output=json {name}"));
        }
    }
    for name in ["old.qcow2", "a.raw", "wide.qcow2"] {
        pair.same_json(&format!("info --output=json --backing-chain {name}"));
    }
}

#[test]
fn both_read_the_same_file_alike() {
    let pair = Pair::prepared(SETUP);
    for line in NAMES.iter().flat_map(|name| {
        ["info --output=human", "info --output=json", "info --backing-chain"]
            .map(|command| format!("{command} {name}"))
    }) {
        // QEMU would ask the network for this one.
        if line == "info --backing-chain remote.qcow2" {
            continue;
        }
        let ours = crate::tool::Tool::Ours.img(pair.theirs(), &line);
        let theirs = crate::tool::Tool::Theirs.img(pair.theirs(), &line);
        assert_eq!((ours.code, &ours.stderr), (theirs.code, &theirs.stderr), "{line}");
        if line.contains("json") {
            assert_eq!(ours.json(), theirs.json(), "{line}");
        } else {
            assert_eq!(ours.stdout, theirs.stdout, "{line}");
        }
    }
}

#[test]
fn external_data_files_are_named() {
    let pair = Pair::prepared(SETUP);
    let said = crate::tool::Tool::Ours.img(pair.ours(), "info external.qcow2").expect_success();
    assert!(said.stdout.contains("    data file: d.raw\n    data file raw: true\n"), "{said:?}");
}

#[test]
fn the_dirty_and_corrupt_bits_are_told() {
    let pair = Pair::prepared("img create -q -f qcow2 a.qcow2 1M");
    // The incompatible features are the big-endian word at 72; bits 0 and 1.
    for bits in [1, 2] {
        damage(&pair, "a.qcow2", 79, &[bits]);
        pair.same_img("info a.qcow2");
        pair.same_json("info --output=json a.qcow2");
    }
}

#[test]
fn names_of_snapshots_end_at_a_zero_byte() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 a.qcow2 1M
         img snapshot -c abcdef a.qcow2",
    );
    let path = pair.ours().join("a.qcow2");
    let mut bytes = std::fs::read(&path).expect("an image");
    let at = bytes.windows(6).position(|bytes| bytes == b"abcdef").expect("the name");
    bytes[at + 3] = 0;
    std::fs::write(&path, bytes).expect("write");
    for line in ["info a.qcow2", "info --output=json a.qcow2", "snapshot -l a.qcow2"] {
        let [ours, theirs] = [Tool::Ours, Tool::Theirs].map(|tool| tool.img(pair.ours(), line));
        assert_eq!(ours, theirs, "{line}");
    }
}
