//! Files that cannot be used: one message, the right exit code, and nothing harmed.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use crate::tool::{Pair, Tool, damage, put};

const SETUP: &str = "
    img create -q -f qcow2 a.qcow2 1M
    img create -q -f raw a.raw 1M
";

#[test]
fn truncated_and_foreign_files_are_refused_alike() {
    let pair = Pair::prepared(SETUP);
    let whole = std::fs::read(pair.ours().join("a.qcow2")).unwrap();
    put(&pair, "empty", b"");
    put(&pair, "text", b"not an image at all\n");
    put(&pair, "short", &whole[..50]);
    // QEMU opens an image whose tables are cut off, and stumbles later.
    put(&pair, "header", &whole[..70_000]);
    let said = Tool::Ours.img(pair.ours(), "info header");
    assert!(said.stderr.contains("Active L1 table lies past the end of the file"), "{said:?}");
    for line in [
        "info -f qcow2 empty",
        "info -f qcow2 text",
        "info short",
        "check short",
        "check empty",
        "map -f qcow2 text",
        "convert -f qcow2 text out",
        "convert short out",
        "compare short a.raw",
    ] {
        let (ours, theirs) = pair.img(line);
        assert_eq!((ours.code, &ours.stderr), (theirs.code, &theirs.stderr), "{line}");
        assert!(!pair.ours().join("out").exists(), "{line}");
    }
}

#[test]
fn broken_headers_are_refused_alike() {
    let fields: [(&str, u64, &[u8]); 8] = [
        ("version", 4, &[0, 0, 0, 9]),
        ("cluster_bits", 20, &[0, 0, 0, 40]),
        ("size", 24, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ("crypt_method", 32, &[0, 0, 0, 9]),
        ("l1_size", 36, &[0xff; 4]),
        ("refcount_table_clusters", 56, &[0; 4]),
        ("incompatible_features", 72, &[0x80, 0, 0, 0, 0, 0, 0, 0]),
        ("refcount_order", 96, &[0, 0, 0, 7]),
    ];
    for (field, at, bytes) in fields {
        let pair = Pair::prepared(SETUP);
        damage(&pair, "a.qcow2", at, bytes);
        let (ours, theirs) = pair.img("info a.qcow2");
        assert_eq!(ours.code, theirs.code, "{field}: {ours:?} {theirs:?}");
        assert_eq!(ours.stderr.lines().count(), 1, "{field}: {ours:?}");
    }
}

#[test]
fn a_file_in_use_is_left_alone() {
    let pair = Pair::prepared(SETUP);
    for directory in [pair.ours(), pair.theirs()] {
        let mut holder = Tool::Theirs
            .command("qemu-io", directory)
            .arg("a.qcow2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut held = BufReader::new(holder.stdout.take().unwrap());
        let mut stdin = holder.stdin.take().unwrap();
        // Once the program answers, it holds its locks.
        stdin.write_all(b"length\n").unwrap();
        held.read_line(&mut String::new()).unwrap();
        for (line, code) in [
            ("info a.qcow2", 1),
            ("check a.qcow2", 1),
            ("check -r leaks a.qcow2", 1),
            ("map a.qcow2", 1),
            ("compare a.qcow2 a.raw", 2),
            ("convert a.qcow2 out", 1),
            ("create -q -f qcow2 a.qcow2 5M", 1),
            ("convert -O qcow2 a.raw a.qcow2", 1),
            ("info -U a.qcow2", 0),
            ("check -q -U a.qcow2", 0),
        ] {
            let ours = Tool::Ours.img(directory, line);
            let theirs = Tool::Theirs.img(directory, line);
            assert_eq!((&ours.stderr, ours.code), (&theirs.stderr, Some(code)), "{line}");
        }
        for options in ["a.qcow2", "-r a.qcow2", "-U a.qcow2", "-r -U a.qcow2"] {
            let ours = Tool::Ours.io(directory, options, &["read -q 0 512"]);
            assert_eq!(ours, Tool::Theirs.io(directory, options, &["read -q 0 512"]), "{options}");
        }
        stdin.write_all(b"write -q -P 1 0 512\nread -q -P 1 0 512\n").unwrap();
        drop(stdin);
        assert!(holder.wait().unwrap().success());
        assert_eq!(Tool::Theirs.img(directory, "check -q a.qcow2").code, Some(0));
    }
}

#[test]
fn our_locks_hold_against_qemu() {
    let pair = Pair::prepared(SETUP);
    let mut holder = Tool::Ours
        .command("qemu-io", pair.ours())
        .arg("a.qcow2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut held = BufReader::new(holder.stdout.take().unwrap());
    let mut stdin = holder.stdin.take().unwrap();
    stdin.write_all(b"length\n").unwrap();
    held.read_line(&mut String::new()).unwrap();
    let said = Tool::Theirs.img(pair.ours(), "info a.qcow2");
    assert!(said.stderr.contains("Failed to get shared \"write\" lock"), "{said:?}");
    drop(stdin);
    assert!(holder.wait().unwrap().success());
}

#[test]
fn under_its_own_name_every_failure_is_one_line() {
    let pair = Pair::prepared(SETUP);
    put(&pair, "text", b"not an image at all\n");
    for (line, message) in [
        (
            "info missing",
            "qcow: Could not open 'missing': Could not open 'missing': No such file or directory\n",
        ),
        ("info -f qcow2 text", "qcow: Could not open 'text': Image is not in qcow2 format\n"),
        (
            "check /tmp",
            "qcow: Could not open '/tmp': 'file' driver requires '/tmp' to be a regular file\n",
        ),
        (
            "create -f qcow2 -b a.qcow2 x.qcow2",
            "qcow: x.qcow2: Backing file specified without backing format; Detected format of qcow2.\n",
        ),
        ("ctl a.qcow2", "qcow: ctl: this command is not supported yet\n"),
    ] {
        let said = Tool::Ours.run("qcow", pair.ours(), line.split(' '));
        assert_eq!((said.stderr.as_str(), said.code), (message, Some(1)), "{line}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let pair = Pair::prepared(SETUP);
    for line in ["info a.qcow2", "map a.qcow2", "convert -p -O qcow2 a.raw out"] {
        let mut command = Tool::Ours.command("qemu-img", pair.ours());
        let mut child = command
            .args(line.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(output.stderr.is_empty(), "{line}");
    }
}

/// A small file system in memory, gone again in the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` without the right to mount.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(directory.path())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success()).then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_fails_cleanly() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: no right to mount a file system");
        return;
    };
    let directory = disk.0.path();
    let source = tempfile::tempdir().unwrap();
    Tool::Theirs.img(source.path(), "create -q -f raw big.raw 8M").expect_success();
    Tool::Theirs.io(source.path(), "-f raw big.raw", &["write -q 0 8M"]).expect_success();
    let big = source.path().join("big.raw");
    for format in ["qcow2", "raw"] {
        let said = Tool::Ours.img(directory, &format!("convert -O {format} {} out", big.display()));
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains("No space left on device"), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        assert!(!directory.join("out").exists());
    }
    let said = Tool::Ours.img(directory, "create -q -f qcow2 -o preallocation=full out 8M");
    assert!(said.stderr.contains("No space left on device"), "{said:?}");
    assert!(!directory.join("out").exists());
    // A write that finds no room fails alone, and what is there stays sound.
    Tool::Ours.img(directory, "create -q -f qcow2 a.qcow2 8M").expect_success();
    let said = Tool::Ours.io(directory, "a.qcow2", &["write -q -P 1 0 64k", "write -q 1M 4M"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stdout.contains("write failed: No space left on device"), "{said:?}");
    Tool::Theirs.io(directory, "a.qcow2", &["read -q -P 1 0 64k"]).expect_success();
    let check = Tool::Theirs.img(directory, "check -q a.qcow2");
    assert!(matches!(check.code, Some(0 | 3)), "{check:?}");
}

#[test]
fn a_conversion_that_is_stopped_leaves_no_target() {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
    let pair = Pair::prepared(SETUP);
    Tool::Theirs.img(pair.ours(), "create -q -f raw big.raw 64M").expect_success();
    Tool::Theirs.io(pair.ours(), "-f raw big.raw", &["write -q 0 64M"]).expect_success();
    let files = || std::fs::read_dir(pair.ours()).unwrap().count();
    let before = files();
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        stop_conversion(&pair, signal);
        assert_eq!(files(), before, "{signal} leaves a file behind");
    }
    // Nobody can clean up after this one, but nothing bears the target's name.
    stop_conversion(&pair, SIGKILL);
    assert!(!pair.ours().join("out").exists());
}

fn stop_conversion(pair: &Pair, signal: nix::sys::signal::Signal) {
    let mut child = Tool::Ours
        .command("qemu-img", pair.ours())
        .args("convert -p -m 1 -t directsync -O qcow2 -o cluster_size=512 big.raw out".split(' '))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a conversion to stop");
    let mut progress = BufReader::new(child.stdout.take().expect("a conversion to stop"));
    // The second picture comes after the first part has been written.
    for _ in 0..2 {
        progress.read_until(b'\r', &mut Vec::new()).expect("a conversion to stop");
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a conversion to stop"));
    nix::sys::signal::kill(pid, signal).expect("a conversion to stop");
    std::io::copy(&mut progress, &mut std::io::sink()).expect("a conversion to stop");
    assert_eq!(
        child.wait().expect("a conversion to stop").code(),
        None,
        "it was not stopped by {signal}"
    );
}
