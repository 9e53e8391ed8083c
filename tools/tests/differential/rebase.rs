//! Rebasing: the disk stays what it was, on either side, and both say the same.

use crate::tool::{Pair, Tool};

/// Old backing file `old`, new one `new`, and `x` on top of the old one.
const CHAINS: [&str; 9] = [
    "img create -q -f qcow2 old 3M
     io old: write -P 1 0 3M
     img create -q -f qcow2 new 3M
     io new: write -P 1 0 1M; write -P 2 1M 1M
     img create -q -f qcow2 -b old -F qcow2 x
     io x: write -P 3 500k 300k; write -z 2M 128k",
    "img create -q -f qcow2 -o cluster_size=512 old 3M
     io old: write -P 1 0 300k; write -P 4 1M 1k; write -P 4 1500k 512
     img create -q -f qcow2 -o cluster_size=4k new 2M
     io new: write -P 1 0 200k; write -P 4 1M 1k
     img create -q -f qcow2 -o cluster_size=64k -b old -F qcow2 x 5M
     io x: write -P 3 500k 300k",
    "img create -q -f raw old 1M
     io -f raw old: write -P 1 0 1000k
     img create -q -f qcow2 new 4M
     io new: write -P 7 0 4M
     img create -q -f qcow2 -o cluster_size=4k -b old -F raw x 3000k
     io x: write -P 3 500k 300k; write -c -P 5 2M 4k",
    "img create -q -f qcow2 old 3M
     io old: write -P 1 0 3M
     img create -q -f raw new 700k
     io -f raw new: write -P 1 0 700k
     img create -q -f qcow2 -o compat=0.10,cluster_size=1k -b old -F qcow2 x 3M
     io x: write -P 3 500k 300k",
    // The new one is below the old one.
    "img create -q -f qcow2 new 3M
     io new: write -P 1 0 3M
     img create -q -f qcow2 -b new -F qcow2 old
     io old: write -P 2 1M 300k; write -z 2M 300k
     img create -q -f qcow2 -b old -F qcow2 x
     io x: write -P 3 1100k 300k",
    // The old one ends in the middle.
    "img create -q -f qcow2 new 4M
     io new: write -P 9 0 4M
     img create -q -f qcow2 -b new -F qcow2 old 1500k
     img create -q -f qcow2 -b old -F qcow2 x 4M
     io x: write -P 3 1M 100k",
    // None before.
    "img create -q -f qcow2 old 1M
     img create -q -f qcow2 new 4M
     io new: write -P 9 0 4M
     img create -q -f qcow2 x 3M
     io x: write -P 3 1M 100k",
    "img create -q -f qcow2 old 1M
     img create -q -f raw new 4M
     io -f raw new: write -P 9 0 4M
     img create -q -f qcow2 -o compat=0.10 x 3M
     io x: write -P 3 1M 100k",
    "img create -q -f qcow2 old 3M
     io old: write -P 1 0 3M
     img create -q -f qcow2 new 3M
     io new: write -P 2 0 3M
     img create -q -f qcow2 -b old -F qcow2 x
     io x: write -P 3 500k 300k
     img snapshot -c one x
     io x: write -P 4 600k 300k",
];

fn format_of(chain: &str) -> &'static str {
    if chain.contains("-f raw new") { "raw" } else { "qcow2" }
}

/// Turns `x` into `before`, a raw copy of what it shows.
fn keep(pair: &Pair) {
    for directory in [pair.ours(), pair.theirs()] {
        Tool::Theirs.img(directory, "convert -O raw x before").expect_success();
    }
}

#[track_caller]
fn expect_unchanged(pair: &Pair) {
    pair.same_clean_image("x");
    for directory in [pair.ours(), pair.theirs()] {
        Tool::Theirs.img(directory, "compare -f qcow2 -F raw x before").expect_success();
    }
    for key in ["backing-filename", "backing-filename-format", "virtual-size", "format-specific"] {
        let [ours, theirs] = [pair.ours(), pair.theirs()]
            .map(|directory| Tool::Theirs.img(directory, "info --output=json x").json());
        assert_eq!(ours[key], theirs[key]);
    }
}

/// The two sides after `rebase`, a command and its first options, has put `x` of `chain` on top of `new`, in the same
/// words and without a change of the disk. Nothing where QEMU's dies, as of some backing files that end in the middle
/// of what it reads, or shows what is new, as where an image of version 2 had no backing file: then only ours counts.
#[track_caller]
fn rebased(chain: &str, rebase: &str) -> Option<Pair> {
    let pair = Pair::prepared(chain);
    keep(&pair);
    let (ours, theirs) = pair.img(&format!("{rebase} -f qcow2 -b new -F {} x", format_of(chain)));
    assert_eq!(ours.code, Some(0), "{chain}: {ours:?}");
    Tool::Theirs.img(pair.ours(), "check -f qcow2 x").expect_success();
    Tool::Theirs.img(pair.ours(), "compare -F raw x before").expect_success();
    let kept = Tool::Theirs.img(pair.theirs(), "compare -F raw x before").code == Some(0);
    if theirs.code.is_none() || !kept {
        return None;
    }
    assert_eq!(ours, theirs, "{chain}");
    expect_unchanged(&pair);
    Some(pair)
}

#[test]
fn the_disk_stays_what_it_was() {
    for chain in CHAINS {
        let Some(pair) = rebased(chain, "rebase") else { continue };
        // Nothing of the old one is needed any more; and then nothing of any.
        if !chain.contains("-b new") {
            for directory in [pair.ours(), pair.theirs()] {
                std::fs::remove_file(directory.join("old")).expect("remove");
            }
        }
        pair.same_img("rebase -b  x");
        let lines = ["rebase", "-b", "", "x"];
        let [ours, theirs] = [(Tool::Ours, pair.ours()), (Tool::Theirs, pair.theirs())]
            .map(|(tool, directory)| tool.run("qemu-img", directory, lines));
        assert_eq!(ours, theirs);
        expect_unchanged(&pair);
        for directory in [pair.ours(), pair.theirs()] {
            std::fs::remove_file(directory.join("new")).expect("remove");
        }
        expect_unchanged(&pair);
    }
}

#[test]
fn what_is_merged_is_compressed_where_asked_for() {
    let mut compressed = 0;
    for chain in CHAINS {
        let Some(pair) = rebased(chain, "rebase -c") else { continue };
        let [ours, theirs] = [pair.ours(), pair.theirs()].map(|directory| {
            let check = Tool::Theirs.img(directory, "check --output=json x").json();
            check["compressed-clusters"].as_u64().unwrap_or(0)
        });
        // Zeros are no clusters of ours, and compressed ones of QEMU's.
        assert!(ours <= theirs, "{chain}");
        compressed += ours;
    }
    assert!(compressed > 1000, "{compressed} compressed clusters");
}

/// Also where the old backing file has them in part only.
#[test]
fn clusters_are_compressed_whole() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 -o extended_l2=on old 3M
         io old: write -P 1 110k 10k; write -P 1 1M 60k; write -P 1 3000k 1k
         img create -q -f qcow2 -o extended_l2=on -b old -F qcow2 x",
    );
    for (tool, directory) in [(Tool::Ours, pair.ours()), (Tool::Theirs, pair.theirs())] {
        tool.run("qemu-img", directory, ["rebase", "-c", "-b", "", "x"]).expect_success();
    }
    pair.same_io("x", &["map", "read -P 1 110k 10k", "read -P 0 120k 10k"]);
    pair.same_clean_image("x");
    let check = Tool::Theirs.img(pair.ours(), "check --output=json x").json();
    assert_eq!(check["compressed-clusters"].as_u64(), Some(3), "{check}");
}

/// QEMU's dies of images whose clusters are there in part.
#[test]
fn clusters_that_are_there_in_part_are_merged_as_they_are() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 old 3M
         io old: write -P 1 0 3M
         img create -q -f qcow2 new 3M
         io new: write -P 2 0 2M
         img create -q -f qcow2 -o extended_l2=on -b old -F qcow2 x
         io x: write -P 3 66k 2k; write -P 3 1M 60k; write -z 2046k 4k",
    );
    keep(&pair);
    Tool::Ours.img(pair.ours(), "rebase -c -b new -F qcow2 x").expect_success();
    pair.clean_image("x");
    Tool::Theirs.img(pair.ours(), "compare -F raw x before").expect_success();
    let check = Tool::Theirs.img(pair.ours(), "check --output=json x").json();
    assert!(check["compressed-clusters"].as_u64() > Some(30), "{check}");
}

#[test]
fn only_the_name_changes_in_unsafe_mode() {
    for options in ["", "-o compat=0.10", "-o cluster_size=512"] {
        let pair = Pair::prepared(&format!(
            "img create -q -f qcow2 old 1M
             img create -q -f qcow2 {options} -b old -F qcow2 x"
        ));
        let long = "n".repeat(300);
        for line in [
            "rebase -u -b else/where -F raw x",
            "rebase -u -b other x",
            "rebase -u -b other -F nothing x",
            &format!("rebase -u -b {long} -F qcow2 x"),
            &format!("rebase -u -b {long}{long}{long}{long} -F qcow2 x"),
            "rebase -u x",
            "rebase -u -b old -F qcow2 x",
            "rebase -u -F qcow2 x",
        ] {
            pair.same_img(line);
            for key in ["backing-filename", "backing-filename-format"] {
                let [ours, theirs] = [pair.ours(), pair.theirs()]
                    .map(|directory| Tool::Theirs.img(directory, "info -U --output=json x").json());
                assert_eq!(ours[key], theirs[key], "{options} {line}");
            }
        }
    }
}

#[test]
fn wrong_ways_are_refused_in_the_same_words() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 old 1M
         img create -q -f qcow2 new 1M
         img create -q -f raw raw 1M
         img create -q -f qcow2 -b old -F qcow2 x",
    );
    for line in [
        "rebase",
        "rebase x",
        "rebase -b new -F qcow2",
        "rebase -b new -F qcow2 x old",
        "rebase -b new x",
        "rebase -b missing -F qcow2 x",
        "rebase -b missing x",
        "rebase -b new -F nothing x",
        "rebase -b raw -F qcow2 x",
        "rebase -f raw -b new -F qcow2 raw",
        "rebase -f raw -u -b new -F qcow2 raw",
        "rebase -c -f raw -b new -F qcow2 raw",
        "rebase -c -f raw -u -b new -F qcow2 raw",
        "rebase -t foo -b new -F qcow2 x",
        "rebase -T foo -b new -F qcow2 x",
        "rebase -b new -F qcow2 missing",
        "rebase -f foo -b new -F qcow2 x",
        "rebase -b new -F qcow2 -q x",
        "rebase -b old -F qcow2 -U -T none x",
        "rebase -p -b old -F qcow2 x",
        "rebase -z x",
    ] {
        pair.same_img(line);
    }
    pair.same_clean_image("x");
}

#[test]
fn what_differs_is_stored_as_qemu_stores_it() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 old 1M
         io old: write -P 1 0 128k; write -P 1 192k 64k
         img create -q -f qcow2 new 1M
         io new: write -P 2 64k 128k; write -P 1 192k 64k
         img create -q -f qcow2 -b old -F qcow2 x 2M",
    );
    pair.same_img("rebase -b new -F qcow2 x");
    pair.same_json("map --output=json x");
    pair.same_disk("x");
}

#[test]
fn the_format_of_a_backing_file_that_is_not_opened_may_be_any_that_qemu_knows() {
    let pair = Pair::prepared("img create -q -f qcow2 x 1M");
    for line in [
        "rebase -u -b file -F host_device x",
        "rebase -u -b file -F vmdk x",
        "rebase -u -b f -F foo x",
    ] {
        pair.same_img(line);
        pair.same_json("info --output=json x");
    }
}

#[test]
fn a_backing_format_that_there_is_not_is_told_alike() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 base 1M
         img create -q -f qcow2 -b base -F qcow2 x",
    );
    // The format's name in the header extension, behind type and length.
    crate::tool::damage(&pair, "x", 112 + 8, b"foooo");
    pair.same_img("info x");
    pair.same_img("map x");
    pair.same_io("x", &["read 0 4k"]);
}
