//! What keeps the daemon from starting: one line that says why, and a fitting exit code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixListener;
use std::process::Command;

use common::{Bed, refused, serve_args, text, vhost_blk};

fn refused_with(command: Command, code: i32, words: &str) {
    let (ended, line) = refused(command);
    assert_eq!(ended, Some(code), "{line}");
    assert!(line.contains(words), "no '{words}' in: {line}");
}

#[test]
fn images_that_cannot_be_served() {
    let bed = Bed::new();
    let socket = bed.socket();
    let text_file = bed.path("notes.txt");
    std::fs::write(&text_file, "shopping list\n").unwrap();
    let truncated = bed.path("truncated.qcow2");
    std::fs::write(&truncated, &std::fs::read(bed.image()).unwrap()[..60]).unwrap();
    let fifo = bed.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let cases = [
        (bed.path("missing"), "No such file"),
        (bed.path(""), "directory"),
        (text_file, "-f raw"),
        (truncated, "truncated.qcow2"),
        (fifo, "neither a regular file"),
    ];
    for (image, words) in cases {
        refused_with(serve_args(&image, &socket), 1, words);
        assert!(!socket.exists());
    }
    let mut forced = serve_args(&bed.path("notes.txt"), &socket);
    forced.args(["-f", "qcow2"]);
    refused_with(forced, 1, "notes.txt");
}

#[test]
fn a_second_disk_that_cannot_be_served_closes_the_first() {
    let bed = Bed::new();
    let mut command = serve_args(&bed.image(), &bed.socket());
    command.arg("--blk-file").arg(bed.path("missing"));
    command.arg("--socket-path").arg(bed.path("other"));
    refused_with(command, 1, "missing");
    assert!(!bed.socket().exists());
    bed.assert_clean();
}

#[test]
fn sockets_that_cannot_be_made() {
    let bed = Bed::new();
    let taken = bed.path("taken");
    let _listener = UnixListener::bind(&taken).unwrap();
    refused_with(serve_args(&bed.image(), &taken), 1, "taken");
    assert!(taken.exists());

    let file = bed.path("file");
    std::fs::write(&file, "precious").unwrap();
    refused_with(serve_args(&bed.image(), &file), 1, "not a socket");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");

    refused_with(serve_args(&bed.image(), &bed.path("no/such/dir")), 1, "No such file");
    refused_with(serve_args(&bed.image(), &bed.path(&"x".repeat(200))), 1, "shorter");
    bed.assert_clean();
}

#[test]
fn a_stale_socket_is_replaced() {
    let bed = Bed::new();
    drop(UnixListener::bind(bed.socket()).unwrap());
    assert!(bed.socket().exists());
    let daemon = bed.serve(&[]);
    daemon.connect().queue(0).read(0, 512).unwrap();
    daemon.stop();
}

#[test]
fn descriptors_that_are_no_listening_socket() {
    let bed = Bed::new();
    let on_fd = |number: &str| {
        let mut command = vhost_blk();
        command.args(["--fd", number, "--blk-file"]).arg(bed.image());
        command
    };
    refused_with(on_fd("0"), 1, "not a socket");
    refused_with(on_fd("999"), 1, "not open");
    let (connected, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = on_fd("0");
    command.stdin(std::os::fd::OwnedFd::from(connected));
    refused_with(command, 1, "not a listening socket");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = on_fd("0");
    command.stdin(std::os::fd::OwnedFd::from(tcp));
    refused_with(command, 1, "not a UNIX socket");
}

#[test]
fn wrong_usage_ends_with_code_2() {
    let usage = |args: &[&str], words| {
        let mut command = vhost_blk();
        command.args(args);
        refused_with(command, 2, words);
    };
    usage(&[], "--blk-file");
    usage(&["--blk-file", "a"], "--socket-path");
    usage(&["--blk-file", "a", "--blk-file", "b", "--socket-path", "s"], "2 images and 1 sockets");
    let served =
        |more: &[&'static str]| [&["--blk-file", "a", "--socket-path", "s"], more].concat();
    usage(&served(&["--num-queues", "0"]), "num-queues");
    usage(&served(&["--queue-size", "100"]), "power of two");
    usage(&served(&["--detect-zeroes", "unmap", "--discard", "ignore"]), "detect-zeroes");
    usage(&served(&["--control-socket", "c"]), "not built yet");
    usage(&served(&["--control-socket", "c"]), "not built yet");
    usage(&served(&["--sandbox", "maybe"]), "sandbox");
    let output = vhost_blk().arg("--no-such-option").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[test]
fn settings_files_that_make_no_sense() {
    let bed = Bed::new();
    let config = bed.path("config.toml");
    let case = |content: &str, words: &str| {
        std::fs::write(&config, content).unwrap();
        let mut command = vhost_blk();
        command.arg("--config").arg(&config);
        refused_with(command, 1, words);
    };
    case("", "names no disk");
    case("[[disk]]\nfile = 'a'\nsocket = 's'\nnum-queue = 2\n", "line 4: unknown field");
    case("[[disk]]\nfile = 'a'\n", "missing field `socket`");
    case("disk = [\n", "line ");
    case("[[disk]]\nfile = 'a'\nsocket = 's'\nqueue-size = 3\n", "power of two");
    case("[[disk]]\nfile = 'a'\nsocket = 's'\nl2-cache-size = 'much'\n", "l2-cache-size");
    let mut command = vhost_blk();
    command.arg("--config").arg(bed.path("missing.toml"));
    refused_with(command, 1, "missing.toml");
}

#[test]
fn capabilities_are_those_of_the_conventions() {
    let output = vhost_blk().arg("--print-capabilities").output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().replace(' ', "").trim(),
        r#"{"type":"block","features":["read-only","blk-file"]}"#
    );
}
