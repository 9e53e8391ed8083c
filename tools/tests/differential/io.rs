//! `qcow io` speaks like `qemu-io`, and leaves the same images.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::tool::{Pair, Tool};

const SETUP: &str = "
    img create -q -f qcow2 a.qcow2 1M
    img create -q -f raw a.raw 1M
    img create -q -f qcow2 packed.qcow2 1000k
    img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2
    img create -q -f qcow2 -o compat=0.10 -b a.qcow2 -F qcow2 old.qcow2
    img snapshot -c one old.qcow2
    img create -q -f qcow2 -o data_file=data data.qcow2 1M
    img create -q -f qcow2 -o preallocation=metadata laid.qcow2 1M
    img create -q -f qcow2 -b laid.qcow2 -F qcow2 above.qcow2
";

/// Runs of commands on one image.
const RUNS: &[(&str, &[&str])] = &[
    (
        "a.qcow2",
        &["write 0 64k", "read 0 64k", "read -P 0xcd 0 64k", "length", "map", "info", "flush"],
    ),
    ("a.qcow2", &["alloc 0", "alloc 0 128k", "alloc 64k 128k", "alloc 2M", "alloc 1000k 1M"]),
    ("a.qcow2", &["discard 0 64k", "d 0 1k", "map", "read -P 0 0 64k"]),
    ("a.qcow2", &["read -v 0 40", "w -P 0x41 0 512", "r -v 500 40", "read -vq 500 20"]),
    (
        "a.qcow2",
        &[
            "write -z 0 64k",
            "write -zu 0 64k",
            "write -P 3 -z 0 64k",
            "write -u 0 512",
            "write -n 0 512",
            "write -zn 0 1000",
            "write -f 0 512",
            "write -zf 0 512",
        ],
    ),
    (
        "a.qcow2",
        &[
            "write -q 0 512",
            "readv 0 512 512",
            "writev 0 512 1k",
            "writev -P 5 1 1 1 1",
            "readv -P 5 1 1 1 1",
            "readv -P 6 1 1 1 1",
            "readv 0",
        ],
    ),
    (
        "a.qcow2",
        &[
            "aio_write -P 7 0 512",
            "aio_flush",
            "aio_read -P 7 0 512",
            "aio_flush",
            "aio_read -P 8 0 512",
            "aio_flush",
            "aio_write -z 0 1k 1k",
            "aio_write -u 0 512",
            "aio_write -q 0 512",
            "aio_flush",
        ],
    ),
    ("a.qcow2", &["aio_write 1M 512", "aio_flush", "aio_write -z 1M 512", "aio_flush"]),
    ("a.qcow2", &["aio_read 1M 512", "aio_flush", "aio_read -i 0 512", "aio_write -i 0 512"]),
    ("a.qcow2", &["writev 1M 512", "readv 1M 512", "writev 0 3G", "writev 0 1G 1G 1"]),
    ("a.qcow2", &["write -s /dev/zero 0 1000", "read -P 0 0 1000", "write -s /dev/null 0 512"]),
    (
        "a.qcow2",
        &[
            "read 1M 512",
            "write 1M 512",
            "read -1 5",
            "read 0",
            "read 0 x",
            "read x 0",
            "read",
            "foo",
            "read 0 512 4",
            "read -y 0 512",
            "write -P 300 0 512",
            "write -P x 0 512",
            "read 0 3G",
        ],
    ),
    (
        "a.qcow2",
        &[
            "write 0 0",
            "read 0 0",
            "write 0 1000",
            "write 5 7",
            "read 0x200 1b",
            "read 0 1s",
            "read 0 1.5k",
            "read 010 1",
            "read -- 0 512",
            "read 0 512 -q",
        ],
    ),
    (
        "a.qcow2",
        &[
            "discard 1M 512",
            "discard 0 3G",
            "discard x 1",
            "alloc x",
            "alloc",
            "discard 0",
            "flush x",
            "length x",
            "sleep",
            "sleep 1",
            "sleep x",
        ],
    ),
    (
        "a.qcow2",
        &[
            "write -P 0 0 512",
            "read -P 0 -s 5 -l 10 0 512",
            "read -P 1 -s 5 -l 10 0 512",
            "read -s 1 0 512",
            "read -l 3 0 512",
            "read -P 0 -l 600 0 512",
            "read -P 0 -s 600 0 512",
            "read -P 0 -s 500 -l 100 0 512",
        ],
    ),
    ("a.qcow2", &["help length", "help foo", "q", "length"]),
    ("a.qcow2", &["write -s /etc/hostname 0 512", "write -s missing 0 512", "read -p 0 512"]),
    ("-r a.qcow2", &["write 0 512", "discard 0 512", "aio_write 0 512", "flush", "length"]),
    ("-s a.qcow2", &["write -P 9 0 512", "read -P 9 0 512", "length"]),
    ("a.qcow2", &["read -P 9 0 512"]),
    (
        "-f raw a.raw",
        &[
            "length",
            "info",
            "write 0 512",
            "write -z 0 512",
            "write -zu 0 512",
            "discard 0 4k",
            "alloc 0",
            "map",
        ],
    ),
    ("a.raw", &["length", "write 0 512"]),
    ("-n a.qcow2", &["write 0 4k", "read -P 0xcd 0 4k"]),
    ("-t writethrough a.qcow2", &["write 0 4k"]),
    ("-d ignore a.qcow2", &["write 0 64k", "discard 0 64k", "read -P 0xcd 0 64k"]),
    (
        "top.qcow2",
        &["write -P 2 64k 1k", "read -P 2 64k 1k", "map", "alloc 0 1M", "read -P 0xcd 0 64k"],
    ),
    (
        "packed.qcow2",
        &[
            "write -c 0 128k",
            "write -c -P 5 64k 64k",
            "write -c -P 5 512 64k",
            "write -c -P 5 128k 512",
            "write -c -P 5 128k 100",
            "write -c -P 5 100 512",
            "write -c -P 5 960k 40k",
            "write -cf 0 64k",
            "write -bz 0 64k",
            "write -z 256k 64k",
            "write -zu 320k 64k",
            "write -c -P 6 256k 128k",
            "write -c -s /bin/true 384k 64k",
            "write -zr 0 512",
            "write 0 3G",
            "write -c 1M 64k",
            "read -P 6 256k 128k",
            "discard 0 64k",
            "aio_write -zr 0 512",
            "map",
        ],
    ),
    ("-f raw a.raw", &["write -c 0 64k"]),
    ("packed.qcow2", &["truncate 2M", "length", "t 500k", "length", "truncate 1000", "truncate x"]),
    ("packed.qcow2", &["truncate -m nope 2M", "truncate -x 1", "truncate -m off 1M", "length"]),
    ("-f raw a.raw", &["truncate 2M", "length", "truncate 1M", "length"]),
    ("-r a.raw", &["truncate 2M"]),
    ("-f qcow2 old.qcow2", &["truncate 2M", "write -zun 0 0", "write -zn 0 512"]),
    ("-f qcow2 data.qcow2", &["write -c 0 0", "write -c 512 0", "write -c 0 64k"]),
    ("packed.qcow2", &["write -c 512 0"]),
    ("-f qcow2 above.qcow2", &["write -zn 1k 512", "write -P 1 64k 512", "write -zn 65k 512"]),
    ("-s a.raw", &["length"]),
    ("a.raw", &["reopen -c none", "reopen -r", "reopen -w"]),
    ("missing", &["length"]),
    ("-f foo a.qcow2", &["length"]),
    ("-f qcow2 a.raw", &["length"]),
    ("-t foo a.qcow2", &["length"]),
    ("-d foo a.qcow2", &["length"]),
    ("-U a.qcow2", &["length"]),
    ("", &["length", "help length"]),
];

#[test]
fn both_say_and_do_the_same() {
    let pair = Pair::prepared(SETUP);
    let mut differences = Vec::new();
    for (options, commands) in RUNS {
        let (ours, theirs) = pair.io(options, commands);
        if ours != theirs {
            differences
                .push(format!("{options} {commands:?}\n  ours:   {ours:?}\n  theirs: {theirs:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    for name in ["a.qcow2", "top.qcow2", "packed.qcow2"] {
        pair.same_clean_image(name);
    }
    pair.same_disk("a.raw");
}

#[test]
fn commands_come_from_standard_input_too() {
    let pair = Pair::prepared(SETUP);
    let script = "open a.qcow2\nlength\n\nwrite -q 0 512\nclose\nlength\nfoo\nopen -r a.qcow2\nread -qP 0xcd 0 512\nquit\nlength\n";
    let run = |tool: Tool, directory| {
        let mut command = tool.command("qemu-io", directory);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    assert_eq!(run(Tool::Ours, pair.ours()), run(Tool::Theirs, pair.theirs()));
}

#[test]
fn a_line_that_is_no_text_fails_alone() {
    let pair = Pair::prepared(SETUP);
    let script = b"write -q -P 5 0 64k\n\xff\xfe\nwrite -q -P 6 64k 64k\n";
    std::fs::write(pair.ours().join("script"), script).unwrap();
    let input = std::fs::File::open(pair.ours().join("script")).unwrap();
    let output =
        Tool::Ours.command("qemu-io", pair.ours()).arg("a.qcow2").stdin(input).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stderr, b"qemu-io: standard input: line 2 is not valid UTF-8\n");
    let checks = ["read -q -P 5 0 64k", "read -q -P 6 64k 64k"];
    Tool::Theirs.io(pair.ours(), "a.qcow2", &checks).expect_success();
}

#[test]
fn a_standard_input_that_cannot_be_read_is_a_failure() {
    let pair = Pair::prepared(SETUP);
    let directory = std::fs::File::open(pair.ours()).unwrap();
    let mut command = Tool::Ours.command("qemu-io", pair.ours());
    let output = command.arg("a.qcow2").stdin(directory).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stderr, b"qemu-io: standard input: Is a directory\n");
}

#[test]
fn temporary_images_are_private_and_go_away() {
    let pair = Pair::prepared(SETUP);
    let scratch = pair.ours().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let mut child = Tool::Ours
        .command("qemu-io", pair.ours())
        .args(["-s", "a.qcow2"])
        .env("TMPDIR", &scratch)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The prompt comes when the image is open.
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    let files: Vec<_> = scratch.read_dir().unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let name = files[0].file_name().into_string().unwrap();
    assert!(!name.contains(&child.id().to_string()), "{name} can be told beforehand");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(scratch.read_dir().unwrap().count(), 0);
}

#[test]
fn requests_in_the_background_all_arrive() {
    let pair = Pair::prepared(SETUP);
    let commands: Vec<String> =
        (0..64).map(|i| format!("aio_write -q -P {} {}k 16k", i + 1, (i * 37 % 63) * 16)).collect();
    let mut lines: Vec<&str> = commands.iter().map(String::as_str).collect();
    lines.push("aio_flush");
    pair.same_io("a.qcow2", &lines);
    let pattern = |i: u64| (0..64).filter(|n| n * 37 % 63 == i).max().unwrap() + 1;
    let checks: Vec<String> =
        (1..63).map(|i| format!("read -q -P {} {}k 16k", pattern(i), i * 16)).collect();
    let checks: Vec<&str> = checks.iter().map(String::as_str).collect();
    let said = Tool::Theirs.io(pair.ours(), "a.qcow2", &checks);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(Tool::Theirs.img(pair.ours(), "check -q a.qcow2").code, Some(0));
}

#[test]
fn a_guessed_raw_image_cannot_be_turned_into_qcow2() {
    let pair = Pair::prepared(SETUP);
    let mut magic = b"QFI\xfb\0\0\0\x03".to_vec();
    magic.resize(512, 0);
    crate::tool::put(&pair, "magic", &magic);
    let (ours, theirs) = pair.io("a.raw", &["write -s magic 0 512", "length"]);
    assert_eq!((&ours.stdout, ours.code), (&theirs.stdout, theirs.code));
    let (ours, theirs) = pair.io("-f raw a.raw", &["write -s magic 0 512"]);
    assert_eq!(ours, theirs);
}

#[test]
fn nodes_that_let_everything_through_are_passed_over() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 a.qcow2 1M
         img create -q -f raw a.raw 1M",
    );
    for commands in [
        ["open -o driver=qcow2,file.align=4096 blkdebug::a.qcow2", "write -P 1 1000 5000"],
        [
            "open -o driver=blkdebug,image.driver=qcow2,max-transfer=64k blkdebug::a.qcow2",
            "read 0 8k",
        ],
        [
            "open -o driver=blkdebug,image.driver=file,image.filename=a.raw,align=512",
            "write -P 2 0 1k",
        ],
        ["open -o driver=raw,file.driver=qcow2,file.file.filename=a.qcow2", "read -P 1 1000 5000"],
        ["open -r -o driver=host_cdrom,filename=a.raw", "length"],
        ["open -r -o driver=host_cdrom,filename=.", "length"],
    ] {
        pair.same_io("", &commands);
    }
    pair.same_clean_image("a.qcow2");
    pair.same_disk("a.raw");
}

#[test]
fn copy_on_read_copies_no_more_than_subclusters() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 base.qcow2 1M
         io base.qcow2: write -P 1 0 1M
         img create -q -f qcow2 -o extended_l2=on -b base.qcow2 -F qcow2 top.qcow2",
    );
    pair.same_io("-C top.qcow2", &["read -P 1 30k 4k", "read -P 1 100k 1k"]);
    pair.same_json("map --output=json top.qcow2");
    pair.same_clean_image("top.qcow2");
}
