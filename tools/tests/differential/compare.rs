//! `compare`: the same verdicts at the same offsets.

use crate::tool::{Pair, damage};

const SETUP: &str = "
    img create -q -f raw a.raw 1M
    io -f raw a.raw: write -P 7 100k 100k
    img convert -O qcow2 a.raw same.qcow2
    img create -q -f qcow2 other.qcow2 1M
    io other.qcow2: write -P 7 100k 100k; write -P 8 150000 1
    img create -q -f qcow2 longer.qcow2 2M
    io longer.qcow2: write -P 7 100k 100k; write -z 1500k 64k
    img create -q -f qcow2 longest.qcow2 3M
    io longest.qcow2: write -P 7 100k 100k; write -P 1 2500k 1
    img create -q -f qcow2 empty.qcow2 1M
    img create -q -f qcow2 zeros.qcow2 1M
    io zeros.qcow2: write -z 0 1M
    img create -q -f qcow2 broken.qcow2 1M
    io broken.qcow2: write -P 7 100k 100k
";

#[test]
fn verdicts_are_the_same() {
    let pair = Pair::prepared(SETUP);
    for strict in ["", "-s", "-q"] {
        for (one, two) in [
            ("a.raw", "same.qcow2"),
            ("a.raw", "a.raw"),
            ("same.qcow2", "same.qcow2"),
            ("a.raw", "other.qcow2"),
            ("a.raw", "longer.qcow2"),
            ("longer.qcow2", "a.raw"),
            ("longest.qcow2", "a.raw"),
            ("empty.qcow2", "a.raw"),
            ("empty.qcow2", "zeros.qcow2"),
            ("empty.qcow2", "same.qcow2"),
        ] {
            pair.same_img(&format!("compare {strict} {one} {two}"));
        }
    }
}

#[test]
fn unreadable_images_have_exit_codes_of_their_own() {
    let pair = Pair::prepared(SETUP);
    // The second L2 entry points to an unaligned cluster.
    damage(&pair, "broken.qcow2", 0x40000 + 8, &[0x80, 0, 0, 0, 0, 5, 2, 0]);
    let (ours, theirs) = pair.img("compare broken.qcow2 a.raw");
    assert_eq!(ours.code, theirs.code, "{ours:?} {theirs:?}");
}
