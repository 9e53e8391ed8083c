//! SIGTERM at every stage: exit code 0, nothing acknowledged is lost, and QEMU calls the image clean.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use benches::Error;
use common::{Bed, SECTOR};
use nix::sys::signal::Signal;

#[test]
fn before_any_frontend() {
    let bed = Bed::new();
    bed.serve(&[]).stop();
    bed.assert_clean();
}

#[test]
fn with_a_frontend_that_says_nothing() {
    let bed = Bed::new();
    let mut daemon = bed.serve(&[]);
    let mut stream = daemon.connect_raw();
    daemon.wait_for("connected");
    daemon.stop();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    bed.assert_clean();
}

#[test]
fn in_the_middle_of_a_message() {
    let bed = Bed::new();
    for part in [&[1, 0, 0][..], &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0]] {
        let mut daemon = bed.serve(&[]);
        let mut stream = daemon.connect_raw();
        daemon.wait_for("connected");
        stream.write_all(part).unwrap();
        daemon.stop();
    }
    bed.assert_clean();
}

#[test]
fn with_an_idle_guest_that_never_flushed() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    session.queue(0).write(300, &[9; 4096]).unwrap();
    daemon.stop();
    bed.assert_clean();
    assert_eq!(bed.content(308 * SECTOR)[300 * SECTOR..], [9; 4096]);
}

#[test]
fn under_load_every_acknowledged_write_is_kept() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    let mut session = daemon.connect();
    let mut acknowledged = 0;
    loop {
        match session.queue(0).write(acknowledged * 8, &[(acknowledged % 251) as u8 + 1; 4096]) {
            Ok(()) => acknowledged += 1,
            Err(Error::Hangup) => break,
            Err(other) => panic!("{other}"),
        }
        if acknowledged == 100 {
            // Twice: the second must not hurry the first.
            daemon.signal(Signal::SIGTERM);
            daemon.signal(Signal::SIGINT);
        }
        assert!(acknowledged < 16384, "still serving after a whole disk of writes");
    }
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    bed.assert_clean();
    let content = bed.content(acknowledged as usize * 4096);
    for (index, block) in content.chunks(4096).enumerate() {
        assert_eq!(block, [(index % 251) as u8 + 1; 4096], "block {index} of {acknowledged}");
    }
}

#[test]
fn a_socket_that_somebody_else_put_in_place_is_left_alone() {
    let bed = Bed::new();
    let daemon = bed.serve(&[]);
    std::fs::remove_file(bed.socket()).unwrap();
    let _other = UnixListener::bind(bed.socket()).unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
    assert!(bed.socket().exists());
}
