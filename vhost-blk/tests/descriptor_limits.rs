//! A host that is short of descriptors: the daemon starts whole or not at all, and later loses one frontend, not the disk.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};

use benches::frontend::Features;
use common::{Bed, Daemon, refused, vhost_blk};

/// The daemon, to be given arguments, with a limit on open files as `ulimit` takes it.
fn limited(limit: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit {limit} && exec \"$0\" \"$@\"");
    command.arg("-c").arg(script).arg(vhost_blk().get_program()).stdin(Stdio::null());
    command
}

#[test]
fn too_few_for_all_queues_of_all_disks() {
    let (one, two) = (Bed::new(), Bed::new());
    for limit in 8..40 {
        let mut command = limited(&format!("-n {limit}"));
        command.args(["--num-queues", "4"]);
        for bed in [&one, &two] {
            command.arg("--blk-file").arg(bed.image()).arg("--socket-path").arg(bed.socket());
        }
        let (code, line) = refused(command);
        assert_eq!(code, Some(1), "limit {limit}: {line}");
        assert!(line.contains("Too many open files"), "limit {limit}: {line}");
        assert!(!one.socket().exists() && !two.socket().exists(), "limit {limit}");
    }
    one.assert_clean();
    two.assert_clean();
}

#[test]
fn a_soft_limit_is_raised() {
    let bed = Bed::new();
    let mut command = limited("-S -n 16");
    command.args(["--num-queues", "8", "--blk-file"]).arg(bed.image());
    command.arg("--socket-path").arg(bed.socket());
    let daemon = Daemon::start(command, bed.socket(), 1);
    let mut session = daemon.connect_with(8, Features::default());
    session.queue(7).write(0, &[1; 512]).unwrap();
    drop(session);
    daemon.stop();
    bed.assert_clean();
}

/// Leaves a running daemon `more` descriptors: the kernel gives the lowest free number, and the limit is on numbers.
fn leave(daemon: &Daemon, more: u32) {
    let open: BTreeSet<u32> = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let free = (0..).find(|number| !open.contains(number)).unwrap();
    set_soft_limit(daemon, &(free + more).to_string());
}

fn set_soft_limit(daemon: &Daemon, limit: &str) {
    let mut prlimit = Command::new("prlimit");
    prlimit.arg("--pid").arg(daemon.pid().to_string()).arg(format!("--nofile={limit}:"));
    assert!(prlimit.status().unwrap().success());
}

#[test]
fn a_frontend_for_which_none_is_left_is_dropped_alone() {
    let bed = Bed::new();
    let mut daemon = bed.serve(&[]);
    // One for the connection, none for its duplicate.
    leave(&daemon, 1);
    let mut stream = daemon.connect_raw();
    daemon.wait_for("cannot duplicate its socket: Too many open files");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    set_soft_limit(&daemon, "1024");
    daemon.connect().queue(0).write(0, &[1; 512]).unwrap();
    daemon.stop();
    bed.assert_clean();
}
