//! What all tests of the daemon use: an image made by `qemu-img`, and the built daemon serving it.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "every test program uses its own part of this, so nothing is expected to be unused in all of them"
)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use benches::frontend::Features;
use benches::session::Session;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
pub const SECTOR: usize = 512;

/// The daemon, without arguments.
pub fn vhost_blk() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-blk"));
    command.stdin(Stdio::null());
    command
}

/// A directory with one image in it.
pub struct Bed {
    directory: TempDir,
}

impl Bed {
    /// A fresh qcow2 image of 64 MiB.
    pub fn new() -> Self {
        Self::with_image(&["-f", "qcow2"])
    }

    /// An image of 64 MiB made by `qemu-img create` with `options`.
    pub fn with_image(options: &[&str]) -> Self {
        let bed = Self { directory: tempfile::tempdir().unwrap() };
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q"]).args(options).arg(bed.image()).arg("64M");
        assert!(create.status().unwrap().success());
        bed
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn image(&self) -> PathBuf {
        self.path("disk.img")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// The daemon serving the image, with `options`.
    pub fn serve(&self, options: &[&str]) -> Daemon {
        let mut command = vhost_blk();
        command.arg("-v").arg("--blk-file").arg(self.image());
        command.arg("--socket-path").arg(self.socket()).args(options);
        Daemon::start(command, self.socket(), 1)
    }

    /// `qemu-img check` must find nothing at all.
    pub fn assert_clean(&self) {
        let output = Command::new("qemu-img").arg("check").arg(self.image()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }

    /// The first `len` bytes of the disk, read by QEMU.
    pub fn content(&self, len: usize) -> Vec<u8> {
        let raw = self.path("content.raw");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-O", "raw"]).arg(self.image()).arg(&raw);
        assert!(convert.status().unwrap().success());
        let mut bytes = vec![0; len];
        std::fs::File::open(raw).unwrap().read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    log: BufReader<ChildStderr>,
    socket: PathBuf,
}

impl Daemon {
    /// Starts `command` and waits until it serves `disks` disks.
    pub fn start(mut command: Command, socket: PathBuf, disks: usize) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut daemon = Self { child, log, socket };
        for _ in 0..disks {
            daemon.wait_for("serving");
        }
        daemon
    }

    /// Reads the log until a line contains `what`.
    pub fn wait_for(&mut self, what: &str) {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(
                self.log.read_line(&mut line).unwrap(),
                0,
                "no '{what}' in the log:\n{seen}"
            );
            if line.contains(what) {
                return;
            }
            seen += &line;
        }
    }

    pub fn connect(&self) -> Session {
        self.connect_with(1, Features::default())
    }

    pub fn connect_with(&self, queues: u16, features: Features) -> Session {
        Session::connect(&self.socket, queues, 64, features).unwrap()
    }

    /// A connection without a word of vhost-user.
    pub fn connect_raw(&self) -> UnixStream {
        UnixStream::connect(&self.socket).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the end; the exit code, and the rest of the log.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }

    /// SIGTERM must end it with exit code 0 and without a trace of its socket.
    pub fn stop(self) {
        self.signal(Signal::SIGTERM);
        let socket = self.socket.clone();
        let (code, log) = self.wait();
        assert_eq!(code, Some(0), "{log}");
        assert!(!socket.exists());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail where the test has waited for the end already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the daemon where it must not start: its exit code and its one line.
pub fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "not one line: {stderr}");
    assert!(stderr.starts_with("vhost-blk: "), "{stderr}");
    (output.status.code(), stderr)
}

/// The arguments to serve `image` at `socket`.
pub fn serve_args(image: &Path, socket: &Path) -> Command {
    let mut command = vhost_blk();
    command.arg("--blk-file").arg(image).arg("--socket-path").arg(socket);
    command
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}
