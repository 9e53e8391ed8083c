//! `qcow measure` tells the same numbers, for every target and source.

use crate::tool::Pair;

const SETUP: &str = "
    img create -q -f qcow2 s.qcow2 10M
    io s.qcow2: write -P 3 100k 300k; write -P 4 3M 1M; write -z 5M 100k; discard 3M 64k
    img snapshot -c one s.qcow2
    io s.qcow2: write -P 3 7M 1M
    img create -q -f qcow2 -b s.qcow2 -F qcow2 top.qcow2 12M
    io top.qcow2: write -P 3 1M 300k
    img create -q -f raw a.raw 300000
    io -f raw a.raw: write 140000 3
    img convert -c -O qcow2 s.qcow2 packed.qcow2
    img create -q -f qcow2 bitmaps.qcow2 100M
    img bitmap --add bitmaps.qcow2 b0
    img bitmap --add -g 512 bitmaps.qcow2 another
    img bitmap --add --disable -g 1M bitmaps.qcow2 c
";

/// Targets, with all options that matter to their size, and some that do not.
const TARGETS: &[&str] = &[
    "",
    "-O raw -o preallocation=full",
    "-O qcow2",
    "-O qcow2 -o cluster_size=512",
    "-O qcow2 -o cluster_size=2M",
    "-O qcow2 -o extended_l2=on",
    "-O qcow2 -o extended_l2=on,cluster_size=16k,refcount_bits=1",
    "-O qcow2 -o refcount_bits=64,cluster_size=4k",
    "-O qcow2 -o compat=0.10",
    "-O qcow2 -o preallocation=metadata",
    "-O qcow2 -o preallocation=falloc",
    "-O qcow2 -o preallocation=full",
    "-O qcow2 -o backing_file=x",
    "-O qcow2 -o backing_file=x,backing_fmt=raw,lazy_refcounts=on",
    "-O qcow2 -o data_file=d,data_file_raw=on",
    "-O qcow2 -o compression_type=zstd",
];

const SOURCES: &[&str] = &[
    "--size 0",
    "--size 1",
    "--size 1000k",
    "--size 7T",
    "--size 8E",
    "s.qcow2",
    "-f qcow2 top.qcow2",
    "-f raw a.raw",
    "-l one s.qcow2",
    "-l snapshot.id=1 s.qcow2",
    "packed.qcow2",
    "-U bitmaps.qcow2",
];

const REFUSED: &[&str] = &[
    "",
    "a b",
    "--size 1M s.qcow2",
    "--size x",
    "--size -1",
    "--size 9E",
    "-f raw",
    "-l one",
    "-l two s.qcow2",
    "-l snapshot.foo=1 s.qcow2",
    "missing",
    "-f foo s.qcow2",
    "-O foo --size 1M",
    "-O qcow2 -o foo=1 --size 1M",
    "-O qcow2 -o cluster_size=3 --size 1M",
    "-O qcow2 -o cluster_size=8k,extended_l2=on --size 1M",
    "-O qcow2 -o compat=v3 --size 1M",
    "-O qcow2 -o compat=0.10,refcount_bits=1 --size 1M",
    "-O qcow2 -o refcount_bits=3 --size 1M",
    "-O qcow2 -o preallocation=foo --size 1M",
    "-O qcow2 -o size=2M",
    "-O qcow2 -o lazy_refcounts=foo --size 1M",
    "-O qcow2 -o , --size 1M",
    "-O raw -o cluster_size=1 --size 1M",
    "--output=foo --size 1M",
];

#[test]
fn the_same_numbers_for_every_target_and_source() {
    let pair = Pair::prepared(SETUP);
    for target in TARGETS {
        for source in SOURCES {
            pair.same_img(&format!("measure {target} {source}"));
        }
    }
    for line in ["--size 1G -O qcow2", "bitmaps.qcow2 -O qcow2", "a.raw"] {
        pair.same_json(&format!("measure --output=json {line}"));
    }
}

#[test]
fn the_same_refusals() {
    let pair = Pair::prepared(SETUP);
    for line in REFUSED {
        pair.same_img(&format!("measure {line}"));
    }
}
