//! Pinned guest memory: the same answers as ever, nothing pinned behind the back of a frontend, and service without it where the
//! host does not allow it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Command, Stdio};

use benches::session::Session;
use common::{Bed, Daemon, vhost_blk};

/// Bytes of memory that `daemon` has pinned, in KiB.
fn pinned_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Writes, and reads some of it back, in one buffer and in several.
fn exercise(session: &mut Session) {
    let disk = session.queue(0);
    for (sector, len) in [(0, 512), (8, 4096), (100, 65536), (1000, 1 << 20)] {
        disk.write(sector, &vec![sector as u8 + 1; len]).unwrap();
    }
    disk.flush().unwrap();
    for (sector, len) in [(0, 512), (8, 4096), (100, 65536), (1000, 1 << 20)] {
        assert_eq!(disk.read(sector, len).unwrap(), vec![sector as u8 + 1; len as usize]);
    }
}

#[test]
fn memory_is_pinned_while_a_frontend_uses_its_queue() {
    for cache in ["writeback", "none"] {
        let bed = Bed::new();
        let daemon = bed.serve(&["--pin-memory", "--cache", cache]);
        assert_eq!(pinned_kib(&daemon), 0);
        // Each frontend comes with other memory.
        for _ in 0..3 {
            let mut session = daemon.connect();
            exercise(&mut session);
            assert!(pinned_kib(&daemon) > 0);
            session.stop().unwrap();
            assert_eq!(
                pinned_kib(&daemon),
                0,
                "let go of before the frontend is told that the queue has stopped"
            );
        }
        daemon.stop();
        bed.assert_clean();
    }
}

#[test]
fn a_host_that_does_not_allow_it_is_told_of_and_the_disk_is_served() {
    let bed = Bed::new();
    let script = "ulimit -l 512
        if [ $(id -u) = 0 ]; then exec setpriv --inh-caps=-ipc_lock --bounding-set=-ipc_lock \"$0\" \"$@\"; fi
        exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(vhost_blk().get_program()).stdin(Stdio::null());
    command.arg("--pin-memory").arg("--blk-file").arg(bed.image());
    command.arg("--socket-path").arg(bed.socket());
    let mut daemon = Daemon::start(command, bed.socket(), 1);
    let mut session = daemon.connect();
    exercise(&mut session);
    daemon.wait_for("memory is not pinned");
    assert_eq!(pinned_kib(&daemon), 0);
    session.stop().unwrap();
    daemon.stop();
    bed.assert_clean();
}
