//! Resizing: what both sides say, and what they leave.

use crate::tool::{Pair, Tool, put};

/// An image, the setup of which ends with a line that makes `x`.
const IMAGES: [&str; 9] = [
    "img create -q -f qcow2 x 3M
     io x: write -P 1 0 3M; write -P 2 1M 300k",
    "img create -q -f qcow2 -o cluster_size=4k,refcount_bits=64 x 3M
     io x: write -P 1 100k 2M; write -z 1M 64k; discard 2M 300k",
    "img create -q -f qcow2 -o cluster_size=512 x 3M
     io x: write -P 1 100k 1M",
    "img create -q -f qcow2 -o compat=0.10,cluster_size=1k x 3M
     io x: write -P 1 100k 1M",
    "img create -q -f qcow2 base 5M
     io base: write -P 9 0 5M
     img create -q -f qcow2 -b base -F qcow2 x 3M
     io x: write -P 1 100k 1M; write -z 2M 200k",
    "img create -q -f raw base 1M
     img create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on -b base -F raw x 3M
     io x: write -P 1 100k 1M",
    "img create -q -f qcow2 -o cluster_size=4k x 3M
     io x: write -P 1 0 3M
     img snapshot -c one x
     io x: write -P 2 1M 1500k",
    "img create -q -f qcow2 -o cluster_size=4k,compression_type=zstd x 3M
     io x: write -P 1 0 1M; write -c -P 3 2M 1M",
    "img create -q -f qcow2 x 0",
];

const CHANGES: [&str; 12] = [
    "x 3M",
    "x +512",
    "x +100k",
    "x 300M",
    "--shrink x 2M",
    "--shrink x -1500k",
    "--shrink x 512",
    "x 1M --shrink",
    "x +3M --preallocation=metadata",
    "x +1300k --preallocation falloc",
    "x +5000k --preallocation=full",
    "x +1M --preallocation=off -q",
];

#[test]
fn disks_of_every_kind_are_resized_alike() {
    let all = std::env::var_os("SOAK_FACTOR").is_some();
    for (i, image) in IMAGES.into_iter().enumerate() {
        // Each image in a third of the ways, and each way with a third of the images.
        for (_, change) in CHANGES.into_iter().enumerate().filter(|(j, _)| all || (i + j) % 3 == 0)
        {
            let pair = Pair::prepared(image);
            pair.same_img(&format!("resize -f qcow2 {change}"));
            pair.same_clean_image("x");
            let info = |directory| Tool::Theirs.img(directory, "info --output=json x").json();
            let (ours, theirs) = (info(pair.ours()), info(pair.theirs()));
            for key in ["virtual-size", "format-specific", "cluster-size"] {
                assert_eq!(ours[key], theirs[key], "{key} of {image} {change}");
            }
            if image.contains("snapshot") {
                for directory in [pair.ours(), pair.theirs()] {
                    Tool::Theirs.img(directory, "snapshot -a one x").expect_success();
                }
                pair.same_clean_image("x");
            }
        }
    }
}

#[test]
fn what_is_laid_out_in_advance_is_mapped() {
    for (mode, image) in [("metadata", IMAGES[0]), ("falloc", IMAGES[1]), ("full", IMAGES[4])] {
        let pair = Pair::prepared(image);
        pair.same_img(&format!("resize --preallocation={mode} x 10M"));
        let said = Tool::Theirs.img(pair.ours(), "check --output=json x").expect_success().json();
        let clusters = said["total-clusters"].as_u64().expect("a number");
        let mapped = said["allocated-clusters"].as_u64().expect("a number");
        let new = clusters * 7 / 10;
        assert!(mapped >= new, "{mode}: {mapped} of {clusters}");
        if mode != "metadata" {
            let info = Tool::Theirs.img(pair.ours(), "info --output=json x").json();
            assert!(info["actual-size"].as_u64() >= Some(7 << 20), "{mode}: {info}");
        }
        Tool::Ours.io(pair.ours(), "x", &["write -P 5 5M 3M"]).expect_success();
        Tool::Theirs.io(pair.theirs(), "x", &["write -P 5 5M 3M"]).expect_success();
        pair.same_clean_image("x");
    }
}

#[test]
fn a_file_ends_where_a_disk_that_shrinks_does() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 -o cluster_size=64k x 20M
         io x: write -P 1 0 20M",
    );
    pair.same_img("resize --shrink x 1M");
    let lens = [pair.ours(), pair.theirs()].map(|d| d.join("x").metadata().expect("it").len());
    // Tables lie in other places.
    assert!(lens[0] <= lens[1] + (1 << 20), "{lens:?}");
}

#[test]
fn raw_files_get_the_same_length() {
    for change in [
        "x 1000",
        "x 2000k",
        "-f raw x 2000001",
        "-f raw --shrink x 1000",
        "-f raw x +1",
        "-f raw x -1 --shrink",
        "-f raw x 3000000 --preallocation=falloc",
        "-f raw x 3000000 --preallocation=full",
        "-f raw x 3000000 --preallocation=metadata",
        "-f raw x 1000 --preallocation=full",
    ] {
        for len in [0, 700, 1 << 20] {
            if len == 0 && change.contains("+1") {
                // QEMU makes a file of 512 bytes of it.
                continue;
            }
            let pair = Pair::new();
            let [ours, theirs] = put(&pair, "x", &vec![7; len]);
            pair.same_img(&format!("resize {change}"));
            let [ours, theirs] = [ours, theirs].map(|path| std::fs::read(path).expect("read"));
            assert!(ours == theirs, "{change} of {len} bytes: {} {}", ours.len(), theirs.len());
        }
    }
}

#[test]
fn wrong_ways_are_refused_in_the_same_words() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 x 1M
         img create -q -f raw x.raw 1M
         img create -q -f qcow2 -o compat=0.10 old 1M
         img snapshot -c one old",
    );
    for line in [
        "resize",
        "resize x",
        "resize x 512k",
        "resize x -512k",
        "resize x -- -512k",
        "resize x -512M --shrink",
        "resize x 0",
        "resize x -0",
        "resize x xx",
        "resize x +",
        "resize x -",
        "resize x +-5",
        "resize x -xx --shrink",
        "resize x -5 -7",
        "resize 0x x -512k",
        "resize -512k x --shrink",
        "resize x --5",
        "resize x 100E",
        "resize x 7E",
        "resize x +8E",
        "resize x 1234567",
        "resize x 2M extra",
        "resize x -f",
        "resize -z x 2M",
        "resize --frob x 2M",
        "resize -U x 2M",
        "resize missing 2M",
        "resize -f foo x 2M",
        "resize -f qcow2 x.raw 2M",
        "resize x.raw 512k",
        "resize --preallocation=foo x 2M",
        "resize --preallocation=full x 1M",
        "resize --preallocation=metadata x.raw 2M",
        "resize old 2M",
        "resize old 512k --shrink",
    ] {
        pair.same_img(line);
    }
    pair.same_clean_image("x");
}
