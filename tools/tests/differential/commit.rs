//! Committing: the lower image shows what the upper one did, and both sides say the same.

use crate::tool::{Pair, Tool};

/// `base` and above it `x`, perhaps with `mid` between.
const CHAINS: [&str; 9] = [
    "img create -q -f qcow2 base 3M
     io base: write -P 1 0 3M
     img create -q -f qcow2 -b base -F qcow2 x
     io x: write -P 3 500k 300k; write -z 2M 128k; discard 1M 64k",
    "img create -q -f raw base 1M
     io -f raw base: write -P 1 0 1000k
     img create -q -f qcow2 -o cluster_size=4k -b base -F raw x 3000k
     io x: write -P 3 500k 300k; write -c -P 5 2M 4k; write -P 6 2500k 10k",
    "img create -q -f qcow2 -o cluster_size=512 base 1M
     io base: write -P 1 0 1M
     img create -q -f qcow2 -o cluster_size=64k -b base -F qcow2 x 4M
     io x: write -P 3 900k 300k; write -P 3 3M 512",
    "img create -q -f qcow2 -o compat=0.10 base 4M
     io base: write -P 1 0 1M
     img create -q -f qcow2 -o compat=0.10,cluster_size=1k -b base -F qcow2 x 2M
     io x: write -P 3 900k 300k",
    "img create -q -f qcow2 base 3M
     io base: write -P 1 0 3M
     img create -q -f qcow2 -b base -F qcow2 mid
     io mid: write -P 2 1M 300k; write -z 2M 300k
     img create -q -f qcow2 -b mid -F qcow2 x
     io x: write -P 3 1100k 300k",
    "img create -q -f qcow2 base 1M
     io base: write -P 1 0 1M
     img create -q -f qcow2 -b base -F qcow2 mid 2M
     io mid: write -P 2 1500k 300k
     img create -q -f qcow2 -o lazy_refcounts=on -b mid -F qcow2 x 3M
     io x: write -P 3 1100k 300k; write -P 4 2900k 10k",
    "img create -q -f qcow2 base 3M
     io base: write -P 1 0 3M
     img snapshot -c low base
     img create -q -f qcow2 -b base -F qcow2 x
     io x: write -P 3 500k 300k
     img snapshot -c one x
     io x: write -P 4 600k 300k",
    "img create -q -f qcow2 base 1M
     img create -q -f qcow2 -b base -F qcow2 x",
    // An image between ends before the others: behind its end, nothing of the base shows.
    "img create -q -f qcow2 base 3M
     io base: write -P 1 0 3M
     img create -q -f qcow2 -b base -F qcow2 mid 1M
     io mid: write -P 2 500k 64k
     img create -q -f qcow2 -b mid -F qcow2 x 2500k
     io x: write -P 3 2M 64k",
];

/// Keeps what `x` shows as the raw image `before`.
fn keep(pair: &Pair) {
    for directory in [pair.ours(), pair.theirs()] {
        Tool::Theirs.img(directory, "convert -O raw x before").expect_success();
    }
}

#[track_caller]
fn expect(pair: &Pair, chain: &str, what: &str) {
    pair.same_clean_image("x");
    pair.same_disk("base");
    if !chain.contains("-f raw base") {
        pair.same_clean_image("base");
    }
    for directory in [pair.ours(), pair.theirs()] {
        Tool::Theirs.img(directory, "compare x before").expect_success();
    }
    let size = |directory| {
        let info = Tool::Theirs.img(directory, "info --output=json base").json();
        info["virtual-size"].clone()
    };
    assert_eq!(size(pair.ours()), size(pair.theirs()), "{what}");
}

#[test]
fn the_lower_image_shows_what_the_upper_one_did() {
    for chain in CHAINS {
        for options in ["", "-d -q", "-b base", "-r 100G"] {
            let pair = Pair::prepared(chain);
            keep(&pair);
            pair.same_img(&format!("commit {options} x"));
            expect(&pair, chain, options);
            let emptied = options.is_empty() || options.starts_with("-r");
            if emptied {
                let said = Tool::Theirs.img(pair.ours(), "check --output=json x").json();
                assert_eq!(said["allocated-clusters"].as_u64().unwrap_or(0), 0, "{said}");
                if chain.contains("snapshot -c one") {
                    for directory in [pair.ours(), pair.theirs()] {
                        Tool::Theirs.img(directory, "snapshot -a one x").expect_success();
                    }
                    pair.same_clean_image("x");
                }
            }
            // And it goes on.
            for (tool, directory) in [(Tool::Ours, pair.ours()), (Tool::Theirs, pair.theirs())] {
                tool.io(directory, "x", &["write -P 8 100k 300k"]).expect_success();
            }
            pair.same_clean_image("x");
        }
    }
}

#[test]
fn an_emptied_image_gives_its_space_back() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 base 20M
         img create -q -f qcow2 -b base -F qcow2 x
         io x: write -P 1 0 20M",
    );
    pair.same_img("commit x");
    let lens = [pair.ours(), pair.theirs()].map(|d| d.join("x").metadata().expect("it").len());
    assert!(lens[0] <= lens[1] + (1 << 20), "{lens:?}");
}

#[test]
fn wrong_ways_are_refused_in_the_same_words() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 base 1M
         img create -q -f qcow2 -b base -F qcow2 x
         img create -q -f qcow2 -u -b missing -F qcow2 lost 1M
         img create -q -f raw raw 1M",
    );
    for line in [
        "commit",
        "commit x base",
        "commit base",
        "commit missing",
        "commit lost",
        "commit raw",
        "commit -b other x",
        "commit -b x x",
        "commit -t foo x",
        "commit -r x x",
        "commit -r -1 x",
        "commit -f raw x",
        "commit -f foo x",
        "commit -z x",
        "commit -q x",
        "commit -d x",
    ] {
        pair.same_img(line);
    }
    pair.same_clean_image("x");
}
