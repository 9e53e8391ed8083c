//! Two programs never write one image: the daemon against `qemu-io`, in both directions.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use common::{Bed, refused, serve_args, text};

#[test]
fn qemu_does_not_open_what_the_daemon_serves() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let open = |options: &[&str]| {
        let mut command = Command::new("qemu-io");
        command.args(options).args(["-c", "read 0 512"]).arg(bed.image());
        command.output().unwrap()
    };
    let output = open(&["-f", "qcow2"]);
    assert!(!output.status.success() && text(&output).contains("lock"), "{}", text(&output));
    let output = open(&["-f", "qcow2", "-r"]);
    assert!(!output.status.success() && text(&output).contains("lock"), "{}", text(&output));
    daemon.stop();
    assert!(open(&["-f", "qcow2"]).status.success());
}

#[test]
fn the_daemon_does_not_open_what_qemu_writes() {
    let bed = Bed::new();
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "qcow2"]).arg(bed.image()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut qemu_io = qemu_io.spawn().unwrap();
    // Its answer shows that it has opened the image.
    qemu_io.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
    let mut line = String::new();
    BufReader::new(qemu_io.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    for options in [&[][..], &["--read-only"]] {
        let mut command = serve_args(&bed.image(), &bed.socket());
        command.args(options);
        let (code, line) = refused(command);
        assert_eq!(code, Some(1));
        assert!(line.contains("lock"), "{line}");
    }
    drop(qemu_io.stdin.take());
    assert!(qemu_io.wait().unwrap().success());
}

#[test]
fn readers_share_an_image() {
    let bed = Bed::new();
    let daemon = bed.serve(&["--read-only"]);
    let mut read = Command::new("qemu-io");
    read.args(["-f", "qcow2", "-r", "-c", "read 0 512"]).arg(bed.image());
    assert!(read.status().unwrap().success());
    daemon.stop();
}
