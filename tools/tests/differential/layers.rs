//! `ls` and `tree`, which QEMU does not have: what they call exclusive is what QEMU's deletion of a snapshot gives back.
//! (The snapshot table itself goes with the last of them: here, one always stays.)

use std::path::Path;

use serde_json::Value;

use crate::tool::{Pair, Tool};

const SETUP: &str = "
    img create -q -f raw base.raw 8M
    img create -q -f qcow2 -b base.raw -F raw mid.qcow2
    io mid.qcow2: write 0 1M
    img snapshot -c one mid.qcow2
    io mid.qcow2: write 512k 1M
    img snapshot -c two mid.qcow2
    io mid.qcow2: write 4M 192k; discard 0 256k
    img snapshot -c three mid.qcow2
    img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
    io top.qcow2: write 64k 64k
";

#[test]
fn exclusive_is_what_a_deletion_gives_back() {
    let pair = Pair::prepared(SETUP);
    for name in ["one", "two"] {
        let said = Tool::Ours.img(pair.ours(), "ls --json mid.qcow2").expect_success().json();
        let exclusive = exclusive_of(&said[0], name);
        let before = used_clusters(&pair.ours().join("mid.qcow2"));
        Tool::Theirs.img(pair.ours(), &format!("snapshot -d {name} mid.qcow2")).expect_success();
        let after = used_clusters(&pair.ours().join("mid.qcow2"));
        assert_eq!(exclusive, (before - after) * 65536, "snapshot {name}: {said:#}");
    }
}

#[test]
fn the_whole_chain_is_listed_and_drawn() {
    let pair = Pair::prepared(SETUP);
    let said = Tool::Ours.img(pair.ours(), "tree --output=json top.qcow2").expect_success().json();
    let names: Vec<_> = said.as_array().expect("a list").iter().map(|l| &l["filename"]).collect();
    assert_eq!(names, ["top.qcow2", "mid.qcow2", "base.raw"]);
    for command in ["ls", "tree"] {
        let said = Tool::Ours.img(pair.ours(), &format!("{command} top.qcow2")).expect_success();
        for name in ["top.qcow2", "mid.qcow2", "base.raw", "one", "two"] {
            assert!(said.stdout.contains(name), "{command} does not tell of {name}: {said:?}");
        }
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let pair = Pair::prepared("img create -q -f qcow2 -u -b gone -F raw top.qcow2 1M");
    for (line, reason) in [("ls nowhere", "No such file"), ("tree top.qcow2", "No such file")] {
        let said = Tool::Ours.img(pair.ours(), line);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains(reason), "{said:?}");
    }
}

fn exclusive_of(image: &Value, name: &str) -> u64 {
    let snapshots = image["snapshots"].as_array().expect("a list of snapshots");
    let found = snapshots.iter().find(|snapshot| snapshot["name"] == name);
    found.and_then(|s| s["exclusive"].as_u64()).unwrap_or_else(|| panic!("no {name} in {image}"))
}

/// Clusters with a count above zero, of an image with 16-bit counts and clusters of 64 KiB.
fn used_clusters(path: &Path) -> u64 {
    let bytes = std::fs::read(path).expect("the image can be read");
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let table = word(48) as usize;
    let blocks = (0..8192).map(|index| word(table + index * 8) as usize).filter(|&at| at != 0);
    let counts = blocks.flat_map(|at| bytes[at..at + 65536].chunks(2));
    counts.filter(|count| *count != [0, 0]).count() as u64
}
