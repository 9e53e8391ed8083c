//! `qcow amend` against `qemu-img amend`: the same words, the same headers, the same disks.

use crate::tool::{Pair, Tool};

const SETUP: &str = "
    img create -q -f qcow2 base.qcow2 4M
    io base.qcow2: write -P 9 0 4M
    img create -q -f qcow2 a.qcow2 4M
    io a.qcow2: write -P 1 0 300k; write -z 1M 256k; write -P 2 2M 64k; discard 2M 64k; write -P 3 4000k 96k
    img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
    io top.qcow2: write -P 4 100k 100k; write -z 1M 300k; write -zu 2M 64k
    img create -q -f qcow2 -o compat=0.10 old.qcow2 4M
    io old.qcow2: write -P 5 0 200k
    img snapshot -c s old.qcow2
    io old.qcow2: write -P 6 0 100k
    img create -q -f qcow2 -o compression_type=zstd z.qcow2 1M
    img create -q -f qcow2 -o compression_type=zstd zc.qcow2 1M
    io zc.qcow2: write -c -P 1 0 64k
    img create -q -f qcow2 -o data_file=ext.data d.qcow2 1M
    img create -q -f qcow2 -o extended_l2=on e.qcow2 1M
    img create -q -f raw a.raw 1M
";

/// Lines that leave both images as they are, or change both in the same way; each on what the lines before have left.
const LINES: &[&str] = &[
    "amend",
    "amend a.qcow2",
    "amend -o help -f qcow2",
    "amend -o help a.qcow2",
    "amend -o help -f raw",
    "amend -o help -f bochs",
    "amend -o help -f vmdk",
    "amend -o help -f nonsense",
    "amend -o size=2M a.raw",
    "amend -o size=2M",
    "amend -o size=2M missing.qcow2",
    "amend -t foo -o size=2M a.qcow2",
    "amend -o cluster_size=4k a.qcow2",
    "amend -o ,, -o help a.qcow2",
    "amend -o ,,size=4k a.qcow2",
    "amend -o nonsense=4k a.qcow2",
    "amend -o compat=0.42 a.qcow2",
    "amend -o refcount_bits=3 a.qcow2",
    "amend -o refcount_bits=128 a.qcow2",
    "amend -o refcount_bits=0 a.qcow2",
    "amend -o data_file=x a.qcow2",
    "amend -o data_file_raw=on a.qcow2",
    "amend -o encrypt.state=inactive a.qcow2",
    "amend -o backing_file=base.qcow2 a.qcow2",
    "amend -o backing_file=base.qcow2,backing_fmt=qcow2 top.qcow2",
    "amend -o backing_fmt=raw top.qcow2",
    "amend -o lazy_refcounts=on a.qcow2",
    "amend -o lazy_refcounts=on old.qcow2",
    "amend -o refcount_bits=8 old.qcow2",
    "amend -o compat=0.10 e.qcow2",
    "amend -o compat=0.10 d.qcow2",
    "amend -o compat=0.10 zc.qcow2",
    "amend -o refcount_bits=64 a.qcow2",
    "amend -o compat=0.10 a.qcow2",
    "amend -o refcount_bits=1 a.qcow2",
    "amend -o refcount_bits=16 a.qcow2",
    "amend -o compat=0.10 a.qcow2",
    "amend -o compat=0.10 top.qcow2",
    "amend -o compat=0.10 z.qcow2",
    "amend -o compat=1.1,lazy_refcounts=on,refcount_bits=32 old.qcow2",
    "amend -o refcount_bits=1 old.qcow2",
    "amend -o compat=v3,size=6M a.qcow2",
    "amend -o size=3M a.qcow2",
    "amend -o size=3000000 a.qcow2",
    "amend -p -o lazy_refcounts=off a.qcow2",
    "amend -o compat=v2,lazy_refcounts=off,refcount_bits=16 old.qcow2",
];

const IMAGES: [&str; 7] =
    ["a.qcow2", "top.qcow2", "old.qcow2", "z.qcow2", "zc.qcow2", "d.qcow2", "e.qcow2"];

#[test]
fn both_say_the_same_and_make_the_same_of_an_image() {
    let pair = Pair::prepared(SETUP);
    let mut differences = Vec::new();
    for line in LINES {
        let (ours, theirs) = pair.img(line);
        if ours != theirs {
            differences.push(format!("{line}\n  ours:   {ours:?}\n  theirs: {theirs:?}"));
        }
        for image in IMAGES.into_iter().filter(|image| line.ends_with(&format!(" {image}"))) {
            let specific = |said: crate::tool::Said| {
                let value = said.json();
                (value["format-specific"].clone(), value["virtual-size"].clone())
            };
            let (ours, theirs) = pair.img(&format!("info --output=json {image}"));
            let (ours, theirs) = (specific(ours), specific(theirs));
            if ours != theirs {
                differences
                    .push(format!("{line}: {image}\n  ours: {ours:?}\n  theirs: {theirs:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    for image in IMAGES {
        pair.same_clean_image(image);
    }
}

#[test]
fn a_snapshot_survives_another_version_and_another_width() {
    let pair = Pair::prepared(SETUP);
    let ours = pair.ours();
    let content = |to: &str| {
        let line = format!("convert -l s -O raw old.qcow2 {to}");
        Tool::Theirs.img(ours, &line).expect_success();
        std::fs::read(ours.join(to)).expect("the snapshot was written")
    };
    let before = content("before.raw");
    for options in
        ["compat=1.1", "refcount_bits=2", "refcount_bits=64", "refcount_bits=16", "compat=0.10"]
    {
        Tool::Ours.img(ours, &format!("amend -o {options} old.qcow2")).expect_success();
        for tool in [Tool::Ours, Tool::Theirs] {
            tool.img(ours, "check old.qcow2").expect_success();
        }
        assert!(content("after.raw") == before, "{options}");
    }
}

#[test]
fn zeros_of_snapshots_are_not_expanded_yet() {
    let pair = Pair::prepared(
        "
        img create -q -f qcow2 a.qcow2 1M
        io a.qcow2: write -z 0 64k
        img snapshot -c s a.qcow2
    ",
    );
    let said = Tool::Ours.img(pair.ours(), "amend -o compat=0.10 a.qcow2");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("cannot expand the zero clusters of internal snapshots yet"));
    Tool::Theirs.img(pair.ours(), "check a.qcow2").expect_success();
}
