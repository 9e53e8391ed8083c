//! A machine that runs: what the API does to it, and what its threads have given up.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::{Read, Write};
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

/// A kernel that halts for ever.
fn idle_kernel(directory: &TempDir) -> PathBuf {
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
    // At the 64-bit entry: hlt, and back to it.
    set(1024 + 0x200, &[0xf4, 0xeb, 0xfd]);
    let path = directory.path().join("kernel");
    fs::write(&path, bytes).unwrap();
    path
}

impl Idle {
    fn start(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let api = directory.path().join("api");
        let mut command = vmm();
        command.args([
            "--kernel",
            text(&idle_kernel(&directory)),
            "--memory",
            "64M",
            "--serial",
            "off",
        ]);
        command.args(["--api-socket", text(&api)]).args(more);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let idle = Self { child, api, _directory: directory };
        while !idle.api.exists() {
            std::thread::yield_now();
        }
        idle
    }

    fn ask(&self, what: &str, body: &str) -> (u16, Value) {
        ask(&self.api, what, body)
    }

    fn wait(self) -> Output {
        self.child.wait_with_output().unwrap()
    }
}

/// The status and the body of the answer.
fn ask(api: &Path, what: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(api).unwrap();
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
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split('\t').nth(1).unwrap().to_owned()
        };
        let name = field("Name:");
        assert_eq!(field("NoNewPrivs:"), "1", "{name}");
        // 2: a filter. The kernel's own thread for KVM is one of the process, too, and the main thread has none.
        let is_ours = name.starts_with("vcpu") || name == "api" || name == "signals";
        assert!(!is_ours || field("Seccomp:") == "2", "{name}");
        seen.push(name);
    }
    for name in ["vcpu 0", "vcpu 1", "api", "signals"] {
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
