//! A machine that runs: what the API does to it, and what its threads have given up.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use common::{has_kvm, said, text, vmm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Most bytes beside the guest's memory.
const OVERHEAD_MAX: u64 = 5 << 20;
/// Most lines of code.
const LINES_MAX: usize = 10_000;

/// A machine whose guest does nothing.
struct Idle {
    child: Child,
    api: PathBuf,
    _directory: TempDir,
}

/// A kernel that halts for ever: hlt, and back to it.
fn idle_kernel(directory: &TempDir) -> PathBuf {
    kernel_of(directory, &[0xf4, 0xeb, 0xfd])
}

/// A kernel that consists of `code`, which is entered in 64-bit mode.
fn kernel_of(directory: &TempDir, code: &[u8]) -> PathBuf {
    let mut bytes = vec![0; 2048];
    let mut set = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    set(0x1f1, &[1]);
    set(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    set(0x202, b"HdrS");
    set(0x206, &0x20f_u16.to_le_bytes());
    set(0x211, &[1]);
    set(0x214, &0x10_0000_u32.to_le_bytes());
    set(0x236, &1_u16.to_le_bytes());
    set(0x238, &2047_u32.to_le_bytes());
    set(0x258, &0x10_0000_u64.to_le_bytes());
    set(0x260, &(1_u32 << 20).to_le_bytes());
    set(1024 + 0x200, code);
    let path = directory.path().join("kernel");
    fs::write(&path, bytes).unwrap();
    path
}

impl Idle {
    fn start(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let api = directory.path().join("api");
        let mut command = vmm();
        command.args(["--kernel", text(&idle_kernel(&directory)), "--serial", "off"]);
        if !more.contains(&"--memory") {
            command.args(["--memory", "64M"]);
        }
        command.args(["--api-socket", text(&api)]).args(more);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        connect(&api);
        Self { child, api, _directory: directory }
    }

    fn ask(&self, what: &str, body: &str) -> (u16, Value) {
        ask(&self.api, what, body)
    }

    fn wait(self) -> Output {
        self.child.wait_with_output().unwrap()
    }
}

/// Connects as soon as somebody listens there.
fn connect(path: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            // A socket has a file before it listens.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                std::thread::yield_now();
            }
            Err(e) => panic!("{}: {e}", path.display()),
        }
    }
}

/// The status and the body of the answer.
fn ask(api: &Path, what: &str, body: &str) -> (u16, Value) {
    let mut stream = connect(api);
    let len = body.len();
    write!(stream, "{what} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn the_api_pauses_resumes_and_ends_a_machine() {
    if !has_kvm() {
        return;
    }
    let idle = Idle::start(&["--cpus", "2"]);
    let (status, info) = idle.ask("GET /v1/info", "");
    assert_eq!((status, &info["state"], &info["cpus"]), (200, &"running".into(), &2.into()));
    assert_eq!(idle.ask("POST /v1/pause", "").0, 204);
    assert_eq!(idle.ask("POST /v1/pause", "").0, 204, "once more");
    assert_eq!(idle.ask("GET /v1/info", "").1["state"], "paused");
    assert_eq!(idle.ask("POST /v1/resume", "").0, 204);
    assert_eq!(idle.ask("GET /v1/info", "").1["state"], "running");
    assert_eq!(idle.ask("POST /v1/shutdown", "").0, 204, "a button that nobody notices");
    assert_eq!(idle.ask("GET /v1/pause", "").0, 405);
    assert_eq!(idle.ask("GET /v2/info", "").0, 404);
    assert_eq!(idle.ask("GET /v1/info", "{").0, 400);
    assert_eq!(idle.ask("POST /v1/shutdown", "{\"force\": true}").0, 204);
    let api = idle.api.clone();
    let output = idle.wait();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(!api.exists());
}

#[test]
fn a_paused_machine_ends_on_a_signal() {
    if !has_kvm() {
        return;
    }
    let idle = Idle::start(&[]);
    idle.ask("POST /v1/pause", "");
    kill(Pid::from_raw(idle.child.id() as i32), Signal::SIGTERM).unwrap();
    let output = idle.wait();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

/// A guest that echoes what it reads from its serial line, and powers off on `q`.
const ECHO: &[u8] = &[
    0xba, 0xfd, 0x03, 0x00, 0x00, // again: mov edx, the line's status
    0xec, // wait: in al, dx
    0xa8, 0x01, // test al, there is something
    0x74, 0xfb, // jz wait
    0xb2, 0xf8, // mov dl, the line's data
    0xec, // in al, dx
    0x3c, b'q', // cmp al, 'q'
    0x74, 0x03, // je off
    0xee, // out dx, al
    0xeb, 0xec, // jmp again
    0x66, 0xba, 0x00, 0x06, // off: mov dx, the port of sleep
    0xb0, 0x34, // mov al, state 5 and go
    0xee, // out dx, al
    0xf4, // hlt
];

#[test]
fn a_serial_line_on_a_socket() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let line = directory.path().join("line");
    let mut command = vmm();
    command.args(["--kernel", text(&kernel_of(&directory, ECHO)), "--memory", "64M", "--serial"]);
    command.arg(format!("socket={}", text(&line)));
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    // One client after the other.
    for said in [&b"first"[..], b"second"] {
        let mut client = connect(&line);
        for byte in said {
            client.write_all(&[*byte]).unwrap();
            let mut answer = [0];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [*byte]);
        }
    }
    connect(&line).write_all(b"q").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(!line.exists());
}

#[test]
fn processors_stay_where_they_are_told_to() {
    if !has_kvm() {
        return;
    }
    let allowed = field(Path::new("/proc/self/status"), "Cpus_allowed_list:");
    let last = allowed.rsplit([',', '-']).next().unwrap();
    let idle = Idle::start(&["--cpus", &format!("2,affinity={last}"), "--memory", "64M,prefault"]);
    idle.ask("POST /v1/pause", "");
    let tasks = fs::read_dir(format!("/proc/{}/task", idle.child.id())).unwrap();
    let mut seen = 0;
    for task in tasks {
        let status = task.unwrap().path().join("status");
        if field(&status, "Name:").starts_with("vcpu") {
            assert_eq!(field(&status, "Cpus_allowed_list:"), last);
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
    idle.ask("POST /v1/shutdown", "{\"force\": true}");
    assert!(idle.wait().status.success());
}

/// A field of a `status` in /proc.
fn field(status: &Path, name: &str) -> String {
    let status = fs::read_to_string(status).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split('\t').nth(1).unwrap().to_owned()
}

#[test]
fn each_thread_is_confined() {
    if !has_kvm() {
        return;
    }
    let idle = Idle::start(&["--cpus", "2"]);
    // Once it answers, all threads run.
    idle.ask("GET /v1/info", "");
    idle.ask("POST /v1/pause", "");
    let tasks = format!("/proc/{}/task", idle.child.id());
    let mut seen = Vec::new();
    for task in fs::read_dir(tasks).unwrap() {
        let status = task.unwrap().path().join("status");
        let name = field(&status, "Name:");
        assert_eq!(field(&status, "NoNewPrivs:"), "1", "{name}");
        // 2: a filter. The kernel's own thread for KVM is one of the process, too.
        let is_ours = !name.starts_with("kvm");
        assert!(!is_ours || field(&status, "Seccomp:") == "2", "{name}");
        seen.push(name);
    }
    for name in ["vmm", "vcpu 0", "vcpu 1", "api", "signals"] {
        assert!(seen.iter().any(|seen| seen == name), "{name}: {seen:?}");
    }
    idle.ask("POST /v1/shutdown", "{\"force\": true}");
    assert!(idle.wait().status.success());
}

/// What docs/SPECIFICATION.md promises of memory.
#[test]
fn the_monitor_needs_little_memory() {
    if !has_kvm() {
        return;
    }
    let idle = Idle::start(&["--cpus", "4", "--report"]);
    idle.ask("GET /v1/info", "");
    idle.ask("POST /v1/shutdown", "{\"force\": true}");
    let output = idle.wait();
    let report = said(&output).lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
    let report = report.unwrap();
    println!("{report}");
    let overhead = report["memory_overhead"].as_u64().unwrap();
    assert!(overhead < OVERHEAD_MAX, "{overhead} bytes beside the guest's memory");
    assert!(report["until_first_run_us"].as_u64().is_some());
}

/// What docs/SPECIFICATION.md promises of size.
#[test]
fn the_monitor_is_small() {
    fn lines(path: &Path) -> usize {
        if path.is_dir() {
            return fs::read_dir(path).unwrap().map(|entry| lines(&entry.unwrap().path())).sum();
        }
        fs::read_to_string(path).unwrap().lines().count()
    }
    let count = lines(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    println!("{count} lines");
    assert!(count < LINES_MAX, "{count}");
}
