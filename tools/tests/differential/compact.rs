//! `qcow compact` on images that QEMU made: QEMU finds the same disk, the same snapshots and nothing wrong in what is left.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;

use crate::tool::{Pair, Said, Tool};

/// Kinds of image: their names and the options that make them.
const KINDS: [(&str, &str); 12] = [
    ("plain", ""),
    ("small clusters", "-o cluster_size=512"),
    ("version 2", "-o compat=0.10,cluster_size=4k"),
    ("counts of 2 bits", "-o refcount_bits=2,cluster_size=1k"),
    ("counts of 64 bits", "-o refcount_bits=64,cluster_size=512"),
    ("extended", "-o extended_l2=on,cluster_size=16k"),
    ("overlay", "-b base.qcow2 -F qcow2 -o cluster_size=4k"),
    ("extended overlay", "-b base.qcow2 -F qcow2 -o extended_l2=on"),
    ("lazy", "-o lazy_refcounts=on,cluster_size=4k"),
    ("large clusters", "-o cluster_size=2M"),
    ("preallocated", "-o preallocation=metadata,cluster_size=4k"),
    ("zstd", "-o compression_type=zstd,cluster_size=4k"),
];

const BASE: &str = "
    img create -q -f qcow2 base.qcow2 8M
    io base.qcow2: write -P 9 0 8M
";

/// What happens to an image, with snapshots and discards, so that free clusters are all over it.
const HISTORY: &str = "
    io a.qcow2: write -P 1 0 2M; write -P 2 3M 1M; write -P 3 5M 700k; write -z 100k 300k
    img snapshot -c one a.qcow2
    io a.qcow2: write -P 4 1M 1500k; write -P 5 6M 1M; discard 3M 512k
    img snapshot -c two a.qcow2
    io a.qcow2: write -P 6 100k 900k; write -P 7 7M 300k; discard 5M 1M
    img snapshot -d one a.qcow2
    io a.qcow2: write -P 8 4M 64k; discard 512k 256k; discard 6M 200k
";

fn content(directory: &Path, snapshot: &str) -> Vec<u8> {
    let line = format!("convert {snapshot} -O raw a.qcow2 content.raw");
    Tool::Theirs.img(directory, &line).expect_success();
    std::fs::read(directory.join("content.raw")).expect("it was written")
}

fn len(directory: &Path) -> u64 {
    std::fs::metadata(directory.join("a.qcow2")).expect("it is there").len()
}

fn compact(directory: &Path, options: &str) -> Said {
    Tool::Ours.run("qcow", directory, format!("compact {options} a.qcow2").split_whitespace())
}

fn must_be_clean(directory: &Path) {
    for tool in [Tool::Ours, Tool::Theirs] {
        tool.img(directory, "check a.qcow2").expect_success();
    }
}

#[test]
fn the_disk_and_its_snapshots_stay_and_the_file_gets_shorter() {
    for (kind, options) in KINDS {
        let pair = Pair::prepared(BASE);
        let ours = pair.ours();
        Tool::Theirs
            .img(ours, &format!("create -q -f qcow2 {options} a.qcow2 8M"))
            .expect_success();
        crate::tool::prepare_lines(ours, HISTORY);
        let (disk, snapshot) = (content(ours, ""), content(ours, "-l two"));
        let before = len(ours);
        let said = compact(ours, "--json").expect_success().json();
        println!("{kind}: {said}");
        assert_eq!(said["file-length-before"], before, "{kind}");
        assert_eq!(said["file-length"], len(ours), "{kind}");
        assert!(len(ours) < before, "{kind}: {before}");
        must_be_clean(ours);
        assert!(content(ours, "") == disk, "{kind}: another disk");
        assert!(content(ours, "-l two") == snapshot, "{kind}: another snapshot");
        let again = compact(ours, "--output=json").expect_success().json();
        assert_eq!(again["clusters-moved"], 0, "{kind}");
        Tool::Theirs.io(ours, "a.qcow2", &["write -P 1 0 8M"]).expect_success();
        must_be_clean(ours);
        assert!(content(ours, "-l two") == snapshot, "{kind}: another snapshot");
    }
}

#[test]
fn compressed_data_moves_with_what_it_is_tied_to() {
    for options in ["", "-o compression_type=zstd"] {
        let pair = Pair::new();
        let ours = pair.ours();
        crate::tool::prepare_lines(ours, &format!("img create -q -f qcow2 {options} a.qcow2 8M"));
        let text: Vec<u8> = (0..64 << 10).map(|i: u32| ((i * i) >> 7) as u8).collect();
        std::fs::write(ours.join("text"), text).expect("a file");
        crate::tool::prepare_lines(
            ours,
            "io a.qcow2: write -P 1 0 2M
             io a.qcow2: write -c -s text 2M 64k; write -c -s text 2112k 64k; write -c -s text 3M 64k
             img snapshot -c one a.qcow2
             io a.qcow2: write -c -s text 4M 64k; write -P 2 2M 4k; discard 0 1M; write -P 3 6M 64k",
        );
        let (disk, snapshot) = (content(ours, ""), content(ours, "-l one"));
        Tool::Theirs.img(ours, "snapshot -c two a.qcow2").expect_success();
        Tool::Theirs.img(ours, "snapshot -d one a.qcow2").expect_success();
        Tool::Theirs.img(ours, "snapshot -c three a.qcow2").expect_success();
        let before = len(ours);
        compact(ours, "-q").expect_success();
        assert!(len(ours) < before);
        must_be_clean(ours);
        assert!(content(ours, "") == disk);
        assert!(content(ours, "-l two") == disk);
        assert!(snapshot != disk);
    }
}

#[test]
fn only_tables_move_where_data_lies_elsewhere() {
    let pair = Pair::prepared(
        "
        img create -q -f qcow2 -o data_file=ext.data,cluster_size=4k a.qcow2 64M
        io a.qcow2: write -P 1 0 8M; write -P 2 60M 1M; discard 0 8M
        img create -q -f qcow2 empty.qcow2 0
    ",
    );
    let ours = pair.ours();
    let (disk, before) = (content(ours, ""), len(ours));
    compact(ours, "").expect_success();
    assert!(len(ours) <= before);
    must_be_clean(ours);
    assert!(content(ours, "") == disk);
    Tool::Ours.run("qcow", ours, ["compact", "empty.qcow2"]).expect_success();
    Tool::Theirs.img(ours, "check empty.qcow2").expect_success();
}

#[test]
fn what_cannot_be_compacted_is_told_in_one_line() {
    let pair = Pair::prepared(
        "
        img create -q -f qcow2 a.qcow2 1M
        io a.qcow2: write 0 1M
        img create -q -f raw a.raw 1M
        img create -q -f qcow2 --object secret,id=k,data=x -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10 l.qcow2 1M
        img create -q -f qcow2 damaged.qcow2 1M
        io damaged.qcow2: write 0 300k
    ",
    );
    crate::tool::damage(&pair, "damaged.qcow2", 0x20000 + 11, &[2]);
    crate::tool::damage(&pair, "damaged.qcow2", 0x40000, &[0xbf]);
    let damaged = std::fs::read(pair.ours().join("damaged.qcow2")).expect("it is there");
    for (line, message) in [
        (
            "compact",
            "qcow: Expecting one image file name\nTry 'qcow compact --help' for more info\n",
        ),
        ("compact a.raw", "qcow: This image format cannot be compacted\n"),
        ("compact -f raw a.qcow2", "qcow: This image format cannot be compacted\n"),
        (
            "compact l.qcow2",
            "qcow: l.qcow2: Parameter 'encrypt.key-secret' is required for cipher\n",
        ),
        (
            "compact damaged.qcow2",
            "qcow: damaged.qcow2: the image is not clean, nothing was moved: see 'qcow check'\n",
        ),
        (
            "compact missing.qcow2",
            "qcow: Could not open 'missing.qcow2': Could not open 'missing.qcow2': No such file or directory\n",
        ),
    ] {
        let said = Tool::Ours.run("qcow", pair.ours(), line.split(' '));
        assert_eq!((said.stderr.as_str(), said.code), (message, Some(1)), "{line}");
    }
    let now = std::fs::read(pair.ours().join("damaged.qcow2")).expect("it is there");
    assert!(now == damaged, "it was changed");
}

/// What is encrypted by its place is encrypted anew where it goes, and compressed data of QEMU's, which is clear, is not.
#[test]
fn encrypted_data_moves() {
    let pair = Pair::new();
    crate::tool::put(&pair, "key", b"a passphrase");
    let secret = "--object secret,id=k,file=key";
    let opened = "driver=qcow2,encrypt.key-secret=k,file.filename=a.qcow2";
    let ours = pair.ours();
    let img = |line: &str| Tool::Theirs.img(ours, line).expect_success();
    let options = "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10";
    img(&format!("create -q -f qcow2 {secret} -o {options} a.qcow2 4M"));
    let io = format!("{secret} --image-opts {opened}");
    let fill = ["write -P 1 0 2M", "write -c -P 2 2M 64k", "write -P 3 2560k 512k"];
    Tool::Theirs.io(ours, &io, &fill).expect_success();
    img(&format!("snapshot -c s {io}"));
    let change = ["write -P 4 100k 800k", "discard 1M 512k", "write -c -P 5 3M 64k"];
    Tool::Theirs.io(ours, &io, &change).expect_success();
    img(&format!("snapshot -d s {io}"));
    img(&format!("convert {io} -O raw before.raw"));

    let line = format!("compact --json {secret} --image-opts {opened}");
    let said = Tool::Ours.run("qcow", ours, line.split(' ')).expect_success().json();
    assert!(said["clusters-moved"].as_u64() > Some(4), "{said}");
    assert!(said["file-length"].as_u64() < said["file-length-before"].as_u64(), "{said}");
    for tool in [Tool::Ours, Tool::Theirs] {
        tool.img(ours, &format!("check {io}")).expect_success();
        tool.img(ours, &format!("compare {io} driver=raw,file.filename=before.raw"))
            .expect_success();
    }
}

#[test]
fn an_image_in_use_is_left_alone() {
    let pair = Pair::prepared(
        "
        img create -q -f qcow2 a.qcow2 1M
        io a.qcow2: write 0 1M; discard 0 512k
    ",
    );
    let mut user = Tool::Theirs.command("qemu-io", pair.ours());
    user.arg("a.qcow2").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut user = user.spawn().expect("qemu-io");
    let mut input = user.stdin.take().expect("a pipe");
    input.write_all(b"length\n").expect("it listens");
    let mut said = String::new();
    BufReader::new(user.stdout.take().expect("a pipe")).read_line(&mut said).expect("an answer");
    let refused = compact(pair.ours(), "");
    drop(input);
    user.wait().expect("it ends");
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("Is another process using the image [a.qcow2]?"),
        "{refused:?}"
    );
    let described = "--image-opts driver=qcow2,file.filename=a.qcow2";
    let line = format!("compact {described}");
    Tool::Ours.run("qcow", pair.ours(), line.split(' ')).expect_success();
    must_be_clean(pair.ours());
}

/// The kernel gives up the files of a ring, and with them their locks, a moment after the process has ended.
fn check_once_unlocked(directory: &Path) -> Said {
    loop {
        let said = Tool::Theirs.img(directory, "check -q a.qcow2");
        if !said.stderr.contains("Is another process using the image") {
            return said;
        }
    }
}

#[test]
fn a_signal_in_the_middle_leaves_the_same_disk() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let pair = Pair::prepared(
        "
        img create -q -f qcow2 -o cluster_size=4k a.qcow2 128M
        io a.qcow2: write -P 1 0 64M; write -P 2 64M 64M; discard 1M 60M
    ",
    );
    let ours = pair.ours();
    let disk = content(ours, "");
    let mut command = Tool::Ours.command("qcow", ours);
    let mut run =
        command.args(["compact", "-p", "a.qcow2"]).stdout(Stdio::piped()).spawn().expect("qcow");
    let mut progress = run.stdout.take().expect("a pipe");
    // Something has been copied.
    progress.read_exact(&mut [0; 40]).expect("progress");
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).expect("it is there");
    run.wait().expect("it ends");
    let found = check_once_unlocked(ours);
    assert!(matches!(found.code, Some(0 | 3)), "{found:?}");
    assert!(content(ours, "") == disk);
    compact(ours, "").expect_success();
    must_be_clean(ours);
    assert!(content(ours, "") == disk);
    assert!(len(ours) < 72 << 20);
}

#[test]
fn bitmaps_move_too() {
    let pair = Pair::prepared(
        "
        img create -q -f qcow2 -o cluster_size=4k a.qcow2 64M
        io a.qcow2: write -P 1 0 8M
        img bitmap -f qcow2 --add -g 4k a.qcow2 first
        img bitmap -f qcow2 --add -g 64k --disable a.qcow2 second
        io a.qcow2: write -P 2 30M 2M; write -P 3 1M 64k
        io a.qcow2: discard 2M 5M
    ",
    );
    let ours = pair.ours();
    let bitmaps = || {
        let said = Tool::Theirs.img(ours, "info --output=json a.qcow2").expect_success();
        said.json()["format-specific"]["data"]["bitmaps"].clone()
    };
    let (disk, before, listed) = (content(ours, ""), len(ours), bitmaps());
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    compact(ours, "").expect_success();
    assert!(len(ours) < before - (4 << 20), "{before} -> {}", len(ours));
    must_be_clean(ours);
    assert_eq!(bitmaps(), listed);
    // QEMU reads all of their bits, and stores them anew.
    Tool::Theirs.io(ours, "a.qcow2", &["write -P 4 50M 1M"]).expect_success();
    assert_eq!(bitmaps(), listed);
    must_be_clean(ours);
    assert!(content(ours, "") != disk);
}
