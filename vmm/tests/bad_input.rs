//! Whatever is wrong is told in one line, with the exit code that fits, and nothing stays behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::fake_backend::{Answers, serve};
use common::{assert_refused, has_kvm, run, text, vmm};
use tempfile::TempDir;

/// Long enough for anything that begins a bzImage.
const FILE_LEN: usize = 8192;

fn file(directory: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// The first bytes of a kernel that says what it needs, and what follows.
fn bzimage(init_size: u32, body_len: usize) -> Vec<u8> {
    let mut bytes = vec![0; 1024 + body_len];
    let mut set = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    // Sectors of set-up code, the boot flag, the magic, protocol 2.15, loaded high, a 64-bit entry.
    set(0x1f1, &[1]);
    set(0x1fe, &[0x55, 0xaa]);
    set(0x200, &[0xeb, 0x66]);
    set(0x202, b"HdrS");
    set(0x206, &0x20f_u16.to_le_bytes());
    set(0x211, &[1]);
    set(0x214, &0x10_0000_u32.to_le_bytes());
    set(0x230, &0x20_0000_u32.to_le_bytes());
    set(0x236, &1_u16.to_le_bytes());
    set(0x238, &2048_u32.to_le_bytes());
    set(0x258, &0x10_0000_u64.to_le_bytes());
    set(0x260, &init_size.to_le_bytes());
    bytes
}

#[test]
fn wrong_usage() {
    for (args, what) in [
        (&["--cpus", "0"][..], "--cpus"),
        (&["--memory", "x", "--kernel", "k"], "--memory"),
        (&["--disk", "d,fast", "--kernel", "k"], "fast"),
        (&["--vhost-user", "s,queues=0", "--kernel", "k"], "queues"),
        (&["--serial", "lamp", "--kernel", "k"], "lamp"),
        (&["--nothing-like-it"], "--nothing-like-it"),
    ] {
        assert_refused(&run(args), 2, what);
    }
}

#[test]
fn files_that_are_no_kernels() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let random: Vec<u8> = (0..FILE_LEN).map(|i| ((i * i) >> 3) as u8).collect();
    let mut elf = random.clone();
    elf[..4].copy_from_slice(b"\x7fELF");
    let cases = [
        (file(&directory, "empty", &[]), "not a kernel"),
        (file(&directory, "random", &random), "not a kernel"),
        (file(&directory, "elf", &elf), "not a kernel"),
        (file(&directory, "huge", &bzimage(1 << 30, FILE_LEN)), "needs 1025 MiB"),
        (file(&directory, "long", &bzimage(1 << 20, 64 << 20)), "too large"),
        (directory.path().join("none"), "No such file"),
        (directory.path().to_owned(), "directory"),
    ];
    for (path, what) in cases {
        let output = run(&["--kernel", text(&path), "--memory", "64M", "--serial", "off"]);
        assert_refused(&output, 1, what);
        assert!(common::said(&output).contains(text(&path)));
    }
}

#[test]
fn an_initramfs_that_does_not_fit() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let kernel = file(&directory, "kernel", &bzimage(1 << 20, FILE_LEN));
    let initramfs = directory.path().join("initramfs");
    fs::File::create(&initramfs).unwrap().set_len(70 << 20).unwrap();
    let args = ["--kernel", text(&kernel), "--initramfs", text(&initramfs), "--memory", "64M"];
    assert_refused(&run(&args), 1, "does not fit");
    assert_refused(&run(&["--kernel", text(&kernel), "--memory", "33M"]), 1, "multiple of 2M");
}

#[test]
fn a_machine_without_kvm() {
    // Somebody who may not open it is as good as a machine without.
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return eprintln!("skipped: only root can become somebody who may not open /dev/kvm");
    }
    let copy = tempfile::tempdir().unwrap();
    let program = copy.path().join("vmm");
    fs::copy(env!("CARGO_BIN_EXE_vmm"), &program).unwrap();
    for path in [copy.path(), &program] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["--kernel", "/dev/null"])
        .output()
        .unwrap();
    assert_refused(&output, 1, "/dev/kvm");
}

fn with_backend(socket: &Path) -> std::process::Output {
    let backend = text(socket);
    run(&["--kernel", "/dev/null", "--vhost-user", backend, "--serial", "off"])
}

#[test]
fn sockets_that_nobody_serves() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    assert_refused(&with_backend(&directory.path().join("none")), 1, "nobody serves this socket");
    let dead = directory.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert_refused(&with_backend(&dead), 1, "nobody serves this socket");
}

#[test]
fn backends_that_end_at_any_step() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // The last one is asked everything, and then the kernel is none.
    for messages_max in 0.. {
        let socket = directory.path().join(format!("socket{messages_max}"));
        let backend = serve(&socket, Answers { messages_max, ..Answers::default() });
        let output = with_backend(&socket);
        assert_eq!(backend.join().unwrap(), messages_max);
        if common::said(&output).contains("/dev/null") {
            // The backend ends at about the same time, which may be told, too.
            assert_eq!(output.status.code(), Some(1));
            assert!(common::said(&output).contains("/dev/null: not a kernel"));
            assert!(messages_max >= 6, "it was asked little");
            return;
        }
        assert_refused(&output, 1, text(&socket));
    }
}

#[test]
fn backends_that_lie() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let honest = Answers::default();
    let cases = [
        (Answers { features: 1 << 30, ..honest }, "does not offer virtio 1"),
        (Answers { features: 1 << 32, ..honest }, "does not offer protocol features"),
        (Answers { protocol: 1 | 1 << 3, ..honest }, "does not tell its configuration"),
        (Answers { queues: 0, ..honest }, "has no queues"),
        (Answers { queues: 1 << 40, ..honest }, "GET_QUEUE_NUM"),
        (Answers { cuts_answers: true, ..honest }, "GET_FEATURES"),
    ];
    for (index, (answers, what)) in cases.into_iter().enumerate() {
        let socket = directory.path().join(format!("socket{index}"));
        let backend = serve(&socket, answers);
        assert_refused(&with_backend(&socket), 1, what);
        backend.join().unwrap();
    }
}

#[test]
fn disks_that_cannot_be_served() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = file(&directory, "image", &[7; FILE_LEN]);
    // The daemon says why, then the monitor says what that means.
    let output = vmm().args(["--kernel", "/dev/null", "--disk", text(&image)]).output().unwrap();
    let lines = common::said(&output);
    assert_eq!(output.status.code(), Some(1), "{lines}");
    assert!(lines.contains("cannot be served") || lines.contains("cannot be started"), "{lines}");
}
