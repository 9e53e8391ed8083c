//! `qemu-img bitmap` and `convert --bitmaps`: the same words, and bitmaps that both sides read alike.

use crate::tool::{Pair, Said, Tool};

/// Asserts that both sides say the same, whatever QEMU calls the image.
#[track_caller]
fn same(pair: &Pair, line: &str) -> Said {
    let words: Vec<&str> = line.split(' ').collect();
    same_words(pair, &words)
}

#[track_caller]
fn same_words(pair: &Pair, words: &[&str]) -> Said {
    let ours = Tool::Ours.run("qemu-img", pair.ours(), words);
    let theirs = Tool::Theirs.run("qemu-img", pair.theirs(), words);
    let (ours, theirs) = (without_node(ours), without_node(theirs));
    assert_eq!(ours, theirs, "qemu-img {words:?}");
    ours
}

/// QEMU numbers its nodes at random.
fn without_node(said: Said) -> Said {
    let Some((before, rest)) = said.stderr.split_once("#block") else { return said };
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    Said { stderr: format!("{before}NODE{rest}"), ..said }
}

/// Asserts that a bitmap of `file` has the same bits on both sides: QEMU copies them to a new image, whose clusters of
/// bits are then compared.
#[track_caller]
fn same_bits(pair: &Pair, file: &str, name: &str, size: &str, granularity: &str) {
    let copies = [pair.ours(), pair.theirs()].map(|directory| {
        let create = format!("create -q -f qcow2 copy {size}");
        Tool::Theirs.img(directory, &create).expect_success();
        let merge = format!(
            "bitmap --add -g {granularity} --merge {name} -b {file} -F qcow2 -f qcow2 copy x"
        );
        Tool::Theirs.img(directory, &merge).expect_success();
        std::fs::read(directory.join("copy")).expect("the copy")
    });
    assert!(copies[0] == copies[1], "'{name}' of {file} has other bits");
}

#[track_caller]
fn same_bitmaps(pair: &Pair, file: &str) {
    let bitmaps = |tool: Tool, directory| {
        let said = tool.img(directory, &format!("info -f qcow2 --output=json {file}"));
        said.expect_success().json()["format-specific"]["data"]["bitmaps"].clone()
    };
    let wanted = bitmaps(Tool::Theirs, pair.theirs());
    assert_eq!(bitmaps(Tool::Theirs, pair.ours()), wanted);
    assert_eq!(bitmaps(Tool::Ours, pair.ours()), wanted);
}

#[test]
fn bitmaps_are_made_and_changed_alike() {
    let pair = Pair::prepared("img create -q -f qcow2 i 10M\nimg create -q -f qcow2 j 10M");
    let lines = [
        "bitmap --add i b0",
        "bitmap --add -g 512k -f qcow2 i b1",
        "bitmap --add --disable i b2",
        "bitmap -g 1k --add --disable --enable --disable i b3",
    ];
    for line in lines {
        same(&pair, line);
    }
    pair.same_io("i", &["write 1M 1M", "write -z 5M 100k", "discard 8M 1M"]);
    let lines = [
        "bitmap --disable i b0",
        "bitmap --enable i b2",
        "bitmap --merge b0 --merge b2 i b3",
        "bitmap --add --merge b1 -b i -F qcow2 j copied",
        "bitmap --remove --add i b1",
        "bitmap --add --granularity=4k --rem --a i b4",
        "bitmap --clear --merge b0 i b1",
    ];
    for line in lines {
        same(&pair, line);
    }
    pair.same_io("i", &["write 3M 4k"]);
    same_bitmaps(&pair, "i");
    same_bitmaps(&pair, "j");
    for (name, granularity) in
        [("b0", "64k"), ("b1", "64k"), ("b2", "64k"), ("b3", "1k"), ("b4", "64k")]
    {
        same_bits(&pair, "i", name, "10M", granularity);
    }
    same_bits(&pair, "j", "copied", "10M", "64k");
    pair.same_clean_image("i");
    pair.same_clean_image("j");
}

#[test]
fn refusals_are_worded_alike() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 i 10M
         img bitmap --add i b
         img create -q -f qcow2 large 20M
         img bitmap --add large b
         img create -q -f qcow2 -o compat=0.10 old 1M
         img create -q -f raw raw 1M
         img create -q -f qcow2 huge 100T",
    );
    let lines = [
        "bitmap",
        "bitmap i b",
        "bitmap --bogus i b",
        "bitmap --add i",
        "bitmap --add i b c",
        "bitmap --add=1 i b",
        "bitmap --merge",
        "bitmap --add -g",
        "bitmap --add -F qcow2 i c",
        "bitmap --add -b large i c",
        "bitmap --clear -g 64k i b",
        "bitmap --clear -g 0 i b",
        "bitmap --add -g x i c",
        "bitmap --add -g -1 i c",
        "bitmap --add -g 16E i c",
        "bitmap --add -g 256 i c",
        "bitmap --add -g 3k i c",
        "bitmap --add -g 4G i c",
        "bitmap --add i b",
        "bitmap --add --add i c",
        "bitmap --remove i none",
        "bitmap --clear i none",
        "bitmap --enable i none",
        "bitmap --disable i none",
        "bitmap --merge none i b",
        "bitmap --merge b i none",
        "bitmap --merge b -b large -F qcow2 i b",
        "bitmap --merge b -b i i b",
        "bitmap --merge b -b none i b",
        "bitmap --add none b",
        "bitmap --add old b",
        "bitmap --remove old b",
        "bitmap --add -f raw raw b",
        "bitmap --remove -f raw raw b",
        "bitmap --add -g 512 huge b",
        "bitmap --add -f nosuch i b",
    ];
    for line in lines {
        same(&pair, line);
    }
    same_words(&pair, &["bitmap", "--add", "i", ""]);
    let long = "n".repeat(1024);
    same_words(&pair, &["bitmap", "--add", "i", &long]);
    same_bitmaps(&pair, "i");
}

#[test]
fn a_bitmap_in_use_is_refused_alike() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 i 10M
         img bitmap --add i b
         img bitmap --add --disable i c",
    );
    for directory in [pair.ours(), pair.theirs()] {
        Tool::Theirs.io(directory, "i", &["abort"]);
    }
    let lines = [
        "bitmap --clear i b",
        "bitmap --enable i c",
        "bitmap --disable i b",
        "bitmap --merge c i b",
        "bitmap --merge none i b",
        "convert --bitmaps -O qcow2 i o",
        "bitmap --add --merge b i d",
        "resize i 20M",
        "resize --shrink i 1M",
    ];
    for line in lines {
        same(&pair, line);
    }
    same_bitmaps(&pair, "i");
    same(&pair, "convert --bitmaps --skip-broken-bitmaps -O qcow2 i o");
    same_bitmaps(&pair, "o");
    same(&pair, "bitmap --remove i b");
    same(&pair, "bitmap --remove --add i c");
    same(&pair, "convert --bitmaps -O qcow2 i p");
    same_bitmaps(&pair, "p");
    pair.same_clean_image("i");
}

#[test]
fn bitmaps_follow_a_resize_alike() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 -o cluster_size=4k i 10M
         img bitmap --add -g 1k i fine
         img bitmap --add --disable -g 512k i coarse
         io i: write 7M 3M
         img bitmap --merge fine i coarse",
    );
    for size in ["30M", "9M", "8200k", "10M"] {
        same(&pair, &format!("resize --shrink i {size}"));
        same_bitmaps(&pair, "i");
        same_bits(&pair, "i", "fine", size, "1k");
        same_bits(&pair, "i", "coarse", size, "512k");
        pair.same_clean_image("i");
    }
}

#[test]
fn what_changes_no_disk_is_not_recorded() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 base 129k
         io base: write -P 1 0 129k
         img create -q -f qcow2 -b base -F qcow2 x 1M
         img bitmap --add base below
         img bitmap --add x above",
    );
    // Copied to the top by reading, and a base that grows.
    pair.same_io("-C -f qcow2 x", &["read -P 1 64k 1k", "read -P 0 512k 1k"]);
    same_bits(&pair, "x", "above", "1M", "64k");
    same(&pair, "commit -f qcow2 x");
    same_bits(&pair, "base", "below", "1M", "64k");
}

#[test]
fn bitmaps_are_converted_alike() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 base 10M
         img bitmap --add base lower
         img create -q -f qcow2 -b base -F qcow2 i
         img bitmap --add -g 512k i first
         img bitmap --add --disable -g 1k i second
         io i: write 3M 1M
         img bitmap --enable i second
         io i: write 1M 3k
         img create -q -f qcow2 -o compat=0.10 old 1M
         img create -q -f raw raw 1M",
    );
    let lines = [
        "convert --bitmaps -O qcow2 i o",
        "convert --bitmaps -O qcow2 -o cluster_size=4k i small",
        "convert --bitmaps -O raw i o.raw",
        "convert --bitmaps -O qcow2 -o compat=0.10 i o.old",
        "convert --bitmaps -O qcow2 old o.old",
        "convert --bitmaps -O qcow2 -f raw raw o.old",
        "convert --bitmaps -O qcow2 i i o.old",
        "convert --skip-broken-bitmaps -O qcow2 i o.old",
        "convert -O qcow2 i without",
    ];
    for line in lines {
        same(&pair, line);
    }
    for target in ["o", "small"] {
        same_bitmaps(&pair, target);
        same_bits(&pair, target, "first", "10M", "512k");
        same_bits(&pair, target, "second", "10M", "1k");
        pair.same_clean_image(target);
    }
    same_bitmaps(&pair, "without");
    same(&pair, "convert -n --bitmaps -O qcow2 i o");
}

#[test]
fn the_image_may_be_an_option_string() {
    let pair = Pair::prepared("img create -q -f qcow2 a.qcow2 1M");
    same(&pair, "bitmap --add --image-opts driver=qcow2,file.filename=a.qcow2 one");
    same(&pair, "bitmap --add --image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2 two");
    same_bitmaps(&pair, "a.qcow2");
}
