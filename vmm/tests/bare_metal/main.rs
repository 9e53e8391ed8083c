//! A guest of our own on the KVM of this machine, whatever that is: it drives virtio-pci, MSI-X masks, several queues, ring
//! wrap and resets, and the disk is looked at afterwards.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use common::{has_kvm, said, text};
use serde_json::Value;
use tempfile::TempDir;

/// Where the code lies in the file: behind two sectors of set-up code.
const CODE_AT: usize = 1024;
/// Where the code begins in what is loaded.
const ENTRY: usize = 0x200;

/// Compiles the guest, and gives it the header of a Linux kernel.
fn kernel(directory: &TempDir) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bare_metal");
    let (elf, flat) = (directory.path().join("guest.elf"), directory.path().join("guest.flat"));
    run(Command::new("cc")
        .args([
            "-std=gnu11",
            "-Wall",
            "-Werror",
            "-Os",
            "-ffreestanding",
            "-nostdlib",
            "-static",
            "-fno-pie",
            "-no-pie",
            "-mgeneral-regs-only",
            "-mno-red-zone",
            "-fno-stack-protector",
            "-fcf-protection=none",
            "-fno-tree-loop-distribute-patterns",
            "-Wl,--build-id=none",
            "-Wl,-z,noexecstack",
            "-Wl,--no-warn-rwx-segments",
            "-T",
        ])
        .arg(source.join("guest.ld"))
        .arg("-o")
        .arg(&elf)
        .arg(source.join("guest.c")));
    run(Command::new("objcopy")
        .args(["-O", "binary", "--set-section-flags", ".all=alloc,load,contents"])
        .arg(&elf)
        .arg(&flat));
    let code = fs::read(&flat).unwrap();
    let mut bytes = vec![0; CODE_AT + ENTRY];
    bytes.extend(&code);
    let mut set = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    // Sectors of set-up code, the boot flag, a jump, the magic, protocol 2.15, loaded high, a 64-bit entry.
    set(0x1f1, &[1]);
    set(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    set(0x202, b"HdrS");
    set(0x206, &0x20f_u16.to_le_bytes());
    set(0x211, &[1]);
    set(0x214, &0x10_0000_u32.to_le_bytes());
    set(0x236, &1_u16.to_le_bytes());
    set(0x238, &2047_u32.to_le_bytes());
    set(0x258, &0x10_0000_u64.to_le_bytes());
    set(0x260, &(4_u32 << 20).to_le_bytes());
    let path = directory.path().join("guest");
    fs::write(&path, bytes).unwrap();
    path
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
}

/// A daemon of ours, beside the monitor; says why a test is skipped if it has not been built.
fn daemon() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_vmm")).with_file_name("vhost-blk");
    if !program.exists() {
        eprintln!("skipped: {} has not been built", program.display());
        return None;
    }
    Some(program)
}

#[test]
fn a_guest_of_our_own_drives_everything() {
    if !has_kvm() || daemon().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = make_disk(&directory);
    let (console, _) = drive(&directory, &image, 0);
    for step in ["bus", "rings", "masks", "moved-vector", "moved-registers", "nonsense", "resets"] {
        assert!(console.contains(&format!("OK {step}\n")), "{step}: {console}");
    }
    check_disk(&image, &directory);
}

/// The data path is between the guest, KVM and the daemon: more requests need no more of the monitor.
#[test]
fn a_request_costs_the_monitor_nothing() {
    if !has_kvm() || daemon().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = make_disk(&directory);
    let (_, few) = drive(&directory, &image, 10);
    let (_, many) = drive(&directory, &image, 1010);
    println!("with 10 requests: {few}\nwith 1,010: {many}");
    let exits =
        |report: &Value| ["port", "memory"].map(|kind| report["exits"][kind].as_u64().unwrap());
    assert_eq!(exits(&few), exits(&many), "returns from the guest");
    let wake_ups = |report: &Value| report["devices"][0]["wake_ups"].as_u64().unwrap();
    assert_eq!(wake_ups(&few), wake_ups(&many), "wake-ups of the thread that knows the daemon");
}

/// QEMU's daemon says that the size of its disk has changed, and the guest learns of it.
#[test]
fn a_disk_that_grows_is_noticed() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = make_disk(&directory);
    let (socket, console) = (directory.path().join("socket"), directory.path().join("console"));
    let mut daemon = QemuDaemon::start(&image, &socket);
    let mut command = Command::new("timeout");
    let monitor = command
        .args(["120", env!("CARGO_BIN_EXE_vmm"), "--memory", "64M", "--cmdline", "size"])
        .args(["--kernel", text(&kernel(&directory)), "--vhost-user"])
        .arg(format!("{},queues=2", text(&socket)))
        .args(["--serial", &format!("file={}", text(&console))])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said_by_guest = || fs::read_to_string(&console).unwrap_or_default();
    while !said_by_guest().contains("SIZE 0x00000800\n") {
        assert!(Path::new(&format!("/proc/{}/exe", monitor.id())).exists(), "{}", said_by_guest());
        std::thread::yield_now();
    }
    daemon.resize(3 << 20);
    let output = monitor.wait_with_output().unwrap();
    let console = said_by_guest();
    assert!(output.status.success(), "{}\n{console}", said(&output));
    assert!(console.contains("SIZE 0x00001800\nOK size\nDONE\n"), "{console}");
}

/// `qemu-storage-daemon` that serves a disk with two queues. It ends when this is dropped.
struct QemuDaemon {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl QemuDaemon {
    fn start(image: &Path, socket: &Path) -> Self {
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor"]);
        let file = format!("driver=file,node-name=file,filename={}", text(image));
        command.args(["--blockdev", &file]);
        command.args(["--blockdev", "driver=qcow2,node-name=disk,file=file"]);
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path={}",
            text(socket)
        ));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut daemon = Self { child, said };
        daemon.hear("QMP");
        daemon.say(r#"{"execute": "qmp_capabilities"}"#);
        daemon
    }

    fn resize(&mut self, size: u64) {
        let arguments = format!(r#"{{"node-name": "disk", "size": {size}}}"#);
        self.say(&format!(r#"{{"execute": "block_resize", "arguments": {arguments}}}"#));
    }

    /// Sends a command, and waits until it has been carried out.
    fn say(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
        self.hear("return");
    }

    /// Waits for a line with `what`.
    fn hear(&mut self, what: &str) {
        let mut line = String::new();
        while !line.contains(what) {
            line.clear();
            assert_ne!(self.said.read_line(&mut line).unwrap(), 0, "qemu-storage-daemon has ended");
            assert!(!line.contains("\"error\""), "{line}");
        }
    }
}

impl Drop for QemuDaemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_disk(directory: &TempDir) -> PathBuf {
    let image = directory.path().join("disk.qcow2");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("1M"));
    image
}

/// Lets the guest drive `image`, with so many requests at the end; what it said, and the monitor's report.
fn drive(directory: &TempDir, image: &Path, requests: u64) -> (String, Value) {
    let console = directory.path().join("console");
    // Minutes where it takes seconds: it only ends what would never end.
    let mut command = Command::new("timeout");
    let output = command
        .args(["120", env!("CARGO_BIN_EXE_vmm")])
        .args(["--memory", "64M", "--report", "--kernel", text(&kernel(directory))])
        .args(["--cmdline", &requests.to_string()])
        .args(["--disk", &format!("{},queues=2", text(image))])
        .args(["--serial", &format!("file={}", text(&console))])
        .output()
        .unwrap();
    let console = fs::read_to_string(&console).unwrap_or_default();
    assert!(output.status.success() && console.ends_with("DONE\n"), "{}\n{console}", said(&output));
    assert!(!console.contains("FAIL"), "{console}");
    let report = said(&output).lines().find_map(|line| serde_json::from_str(line).ok());
    (console, report.unwrap())
}

/// What the guest has written is on the disk, and the image is clean.
fn check_disk(image: &Path, directory: &TempDir) {
    run(Command::new("qemu-img").arg("check").arg(image));
    let raw = directory.path().join("raw");
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(image).arg(&raw));
    let bytes = fs::read(&raw).unwrap();
    for queue in 0..2 {
        for n in 0..24 {
            // Sector 7 was written to once more.
            let value: u64 = if (queue, n) == (0, 7) { 0xabc2 } else { 0x1000 * queue + n };
            let at = (100 * queue + n) as usize * 512;
            assert_eq!(bytes[at..at + 512], value.to_le_bytes().repeat(64), "sector {}", at / 512);
        }
    }
}
