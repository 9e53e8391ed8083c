//! `qcow dd` copies the same bytes and says the same.

use crate::tool::{Pair, put};

const SETUP: &str = "
    img create -q -f qcow2 a.qcow2 10M
    io a.qcow2: write -P 3 100k 300k; write -P 4 3M 1M
";

/// What is copied, each time to `out`.
const COPIES: &[&str] = &[
    "if=a.qcow2 of=out",
    "if=a.qcow2 of=out bs=64k -O qcow2",
    "-O qcow2 if=a.qcow2 of=out bs=1M count=5 skip=2",
    "if=a.qcow2 of=out bs=1M count=2 skip=5",
    "-f qcow2 if=a.qcow2 of=out bs=1000 count=103 skip=101",
    "if=a.qcow2 of=out bs=3M",
    "if=a.qcow2 of=out bs=1M skip=9223372036854775807",
    "if=a.qcow2 of=out bs=1M count=9223372036854775807",
    "if=a.qcow2 of=out count=0 skip=0 -U",
    "if=a.qcow2 if=odd.raw -f raw of=out bs=1000",
    "-f raw if=odd.raw of=out bs=1000 -O qcow2 skip=2",
];

const REFUSED: &[&str] = &[
    "",
    "if=a.qcow2",
    "of=out",
    "foo",
    "foo=1",
    "if=a.qcow2 of=out bs=0",
    "if=a.qcow2 of=out bs=3G",
    "if=a.qcow2 of=out bs=x",
    "if=a.qcow2 of=out bs=",
    "if=a.qcow2 of=out count=-1",
    "if=a.qcow2 of=out skip=1x",
    "if=missing of=out",
    "if=a.qcow2 of=out -O foo",
    "if=a.qcow2 of=nowhere/out",
    "if=a.qcow2 of=a.qcow2",
    "if=a.qcow2 of=out -f foo",
    "-y",
    "-O",
];

#[test]
fn the_same_stretches_are_copied() {
    let pair = Pair::prepared(SETUP);
    put(&pair, "odd.raw", &b"0123456789".repeat(501)[..5003]);
    for line in COPIES {
        pair.same_img(&format!("dd {line}"));
        if line.contains("-O qcow2") {
            pair.same_clean_image("out");
            continue;
        }
        pair.same_disk("out");
        let [ours, theirs] = [pair.ours(), pair.theirs()]
            .map(|directory| directory.join("out").metadata().expect("the output").len());
        assert_eq!(ours, theirs, "dd {line}");
    }
}

#[test]
fn the_same_refusals() {
    let pair = Pair::prepared(SETUP);
    for line in REFUSED {
        pair.same_img(&format!("dd {line}"));
    }
}
