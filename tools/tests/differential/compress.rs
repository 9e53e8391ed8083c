//! `convert -c`: what we compress QEMU reads, checks clean and finds identical, for every cluster size and type.

use crate::tool::{Pair, Tool, put};

/// Data that compresses, data that does not, zeros, and an end inside a cluster.
const SETUP: &str = "
    img create -q -f raw random.raw 300k
    io -f raw random.raw: write -P 7 0 100k; write -P 9 200k 50k
    img create -q -f qcow2 a.qcow2 6347k
    io a.qcow2: write -P 1 0 100k; write -P 2 1M 3000; write -P 0 2M 64k; write -P 3 3000k 1M; write -P 4 6300k 47k
";

/// Bytes that no compression makes smaller, as a raw file on both sides.
fn put_noise(pair: &Pair) {
    let mut state = 0x9e37_79b9_u32;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    let bytes: Vec<u8> =
        (0..700_000).map(|i| if i % 200_000 < 90_000 { noise() } else { 5 }).collect();
    put(pair, "noise.raw", &bytes[..699_904]);
}

/// Asserts that `t.qcow2` has as many clusters of each kind on both sides.
#[track_caller]
fn same_counts(pair: &Pair) {
    let (ours, theirs) = pair.img("check --output=json t.qcow2");
    for key in ["compressed-clusters", "allocated-clusters", "total-clusters"] {
        assert_eq!(ours.json()[key], theirs.json()[key], "{key}");
    }
}

#[test]
fn qemu_reads_what_was_compressed() {
    let pair = Pair::prepared(SETUP);
    put_noise(&pair);
    for source in ["a.qcow2", "noise.raw"] {
        for options in [
            "cluster_size=512",
            "cluster_size=4k,refcount_bits=1",
            "cluster_size=64k,compression_type=zstd",
            "cluster_size=64k,compat=0.10",
            "cluster_size=2M,compression_type=zstd,refcount_bits=64",
        ] {
            for extra in ["", "-W -m 3 --threads 3", "-S 80k --level 9", "-S 0 --threads 1"] {
                let format = if source.ends_with("raw") { "raw" } else { "qcow2" };
                let line = format!(
                    "convert -c {extra} -f {format} -O qcow2 -o {options} {source} t.qcow2"
                );
                Tool::Ours.img(pair.ours(), &line).expect_success();
                for tool in [Tool::Theirs, Tool::Ours] {
                    tool.img(pair.ours(), "check -f qcow2 t.qcow2").expect_success();
                    let compare = format!("compare -f {format} -F qcow2 {source} t.qcow2");
                    tool.img(pair.ours(), &compare).expect_success();
                }
            }
        }
    }
}

#[test]
fn as_much_is_compressed_as_by_qemu() {
    let pair = Pair::prepared(SETUP);
    put_noise(&pair);
    let line = "convert -c -f raw -O qcow2 noise.raw t.qcow2";
    pair.same_img(line);
    same_counts(&pair);
    // Into an image that is there, and zeros over what it holds.
    pair.same_img("create -q -f qcow2 there.qcow2 6347k");
    pair.same_img("convert -c -n -O qcow2 a.qcow2 there.qcow2");
    pair.same_clean_image("there.qcow2");
}

#[test]
fn several_sources_are_compressed_as_one_disk() {
    let pair = Pair::prepared(SETUP);
    put_noise(&pair);
    put(&pair, "odd.raw", &[9; 1000]);
    for options in ["", "-W", "-o cluster_size=512", "-o cluster_size=2M", "-S 0", "-m 1"] {
        let line =
            format!("convert -c -O qcow2 {options} odd.raw noise.raw a.qcow2 odd.raw t.qcow2");
        let said = pair.same_img(&line);
        assert_eq!(said.code, Some(0), "{options}: {said:?}");
        pair.same_clean_image("t.qcow2");
        same_counts(&pair);
    }
}

#[test]
fn overlays_are_compressed_too() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 -o cluster_size=4k base.qcow2 9M
         io base.qcow2: write -P 1 1M 4M; write -c 6M 4k
         img create -q -f qcow2 -o cluster_size=4k -b base.qcow2 -F qcow2 top.qcow2 12M
         io top.qcow2: write -P 2 2M 1M; write -z 3M 1M; write -P 3 11M 100k; write -P 4 5M 4k; write -z 1028k 4k",
    );
    for options in
        ["", "-W", "-o cluster_size=512", "-o cluster_size=2M", "-o compression_type=zstd"]
    {
        let line =
            format!("convert -c -O qcow2 {options} -B base.qcow2 -F qcow2 top.qcow2 t.qcow2");
        let said = pair.same_img(&line);
        assert_eq!(said.code, Some(0), "{options}: {said:?}");
        pair.same_clean_image("t.qcow2");
        same_counts(&pair);
        Tool::Theirs.img(pair.ours(), "compare top.qcow2 t.qcow2").expect_success();
    }
}

#[test]
fn what_cannot_be_compressed_is_refused_alike() {
    let pair = Pair::prepared(SETUP);
    for line in [
        "convert -c -O raw a.qcow2 t.raw",
        "convert -c -C -O qcow2 a.qcow2 t.qcow2",
        "convert -c -O qcow2 -o preallocation=metadata a.qcow2 t.qcow2",
    ] {
        let said = pair.same_img(line);
        assert_eq!(said.code, Some(1), "{line}");
    }
    let levels = [("zlib", 10), ("zstd", 23), ("zlib", 0)];
    for (kind, level) in levels {
        let line = format!(
            "convert -c --level {level} -O qcow2 -o compression_type={kind} a.qcow2 t.qcow2"
        );
        let said = Tool::Ours.img(pair.ours(), &line);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains(&format!("--level {level}: {kind} has levels")), "{said:?}");
        assert!(!pair.ours().join("t.qcow2").exists(), "a target is left behind");
    }
}
