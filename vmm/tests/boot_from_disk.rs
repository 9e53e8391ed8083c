//! What is read out of disks: made with the tools that distributions use, and damaged at random.
//!
//! The reader is run by itself, as the monitor runs it. A failure of the damaged ones names its seed;
//! `DAMAGE_SEED=N cargo test -p vmm --test boot_from_disk damaged` repeats it alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// What the reader said, and what it handed over.
struct Answer {
    said: Value,
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
}

fn read(image: &Path) -> Answer {
    let (mut kernel, mut initramfs) =
        (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_vmm"))
        .arg("read-boot-files")
        .arg(image)
        .arg(if image.extension().is_some_and(|e| e == "raw") { "raw" } else { "guess" })
        .stdin(initramfs.try_clone().unwrap())
        .stdout(kernel.try_clone().unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.signal(), None, "{text}");
    let said = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let content = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    Answer { said, kernel: content(&mut kernel), initramfs: content(&mut initramfs) }
}

fn error_of(image: &Path) -> String {
    read(image).said["error"].as_str().unwrap_or_default().to_owned()
}

/// Files to be, by path and content.
type Files<'a> = &'a [(&'a str, &'a str)];

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    command
}

/// A raw file with an ext4 of `size` bytes that holds these files; `/vmlinuz` becomes a link.
fn ext4(directory: &TempDir, name: &str, size: u64, files: Files<'_>) -> PathBuf {
    let root = directory.path().join(format!("{name}.d"));
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("-> ") {
            Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
    let image = directory.path().join(format!("{name}.raw"));
    File::create(&image).unwrap().set_len(size).unwrap();
    run(tool("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&root).arg(&image));
    image
}

/// A disk with this table, as sfdisk reads it, and with these file systems where its partitions start (in MiB).
fn disk(directory: &TempDir, name: &str, table: &str, parts: &[(u64, &Path)]) -> PathBuf {
    let image = directory.path().join(format!("{name}.raw"));
    let mut file = File::create(&image).unwrap();
    file.set_len(160 * MIB).unwrap();
    for (at, part) in parts {
        file.seek(SeekFrom::Start(at * MIB)).unwrap();
        file.write_all(&fs::read(part).unwrap()).unwrap();
    }
    let mut sfdisk = tool("sfdisk").arg("-q").arg(&image).stdin(Stdio::piped()).spawn().unwrap();
    sfdisk.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    image
}

fn qcow2(image: &Path) -> PathBuf {
    let target = image.with_extension("qcow2");
    run(tool("qemu-img").args(["convert", "-c", "-O", "qcow2"]).arg(image).arg(&target));
    target
}

const DEBIAN: Files<'_> = &[
    ("boot/vmlinuz-6.12.1", "the kernel"),
    ("boot/initrd.img-6.12.1", "the initramfs"),
    ("vmlinuz", "-> boot/vmlinuz-6.12.1"),
    (
        "boot/grub/grub.cfg",
        "set default=\"0\"\nmenuentry 'Debian' $menuentry_id_option 'x' {\n\
         \tlinux /boot/vmlinuz-6.12.1 root=UUID=7 ro quiet\n\tinitrd /boot/initrd.img-6.12.1\n}\n",
    ),
];

fn assert_debian(answer: &Answer, partition: &str) {
    assert_eq!(answer.said["partition"], partition, "{}", answer.said);
    assert_eq!(answer.said["command_line"], "root=UUID=7 ro quiet");
    assert_eq!(
        (&answer.kernel[..], &answer.initramfs[..13]),
        (&b"the kernel"[..], &b"the initramfs"[..])
    );
}

#[test]
fn a_disk_as_debian_makes_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = ext4(&directory, "root", 64 * MIB, DEBIAN);
    // Root first, then what BIOS and UEFI boot from, as Debian's cloud images have it.
    let table = "label: gpt\nstart=8MiB, size=64MiB\nstart=1MiB, size=2MiB\nstart=3MiB, size=4MiB, type=U\n";
    let image = disk(&directory, "disk", table, &[(8, &root)]);
    assert_debian(&read(&image), "partition 1");
    assert_debian(&read(&qcow2(&image)), "partition 1");
    // The first copy of the table is gone; there is another one at the end.
    let mut file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.seek(SeekFrom::Start(512)).unwrap();
    file.write_all(&[0; 512]).unwrap();
    assert_debian(&read(&image), "partition 1");
}

#[test]
fn other_tables_and_none() {
    let directory = tempfile::tempdir().unwrap();
    let root = ext4(&directory, "root", 32 * MIB, DEBIAN);
    assert_debian(&read(&root), "the disk");
    let table = "label: dos\nstart=8MiB, size=4MiB\nstart=16MiB, size=100MiB, type=5\n\
                 start=17MiB, size=2MiB\nstart=24MiB, size=32MiB\n";
    let image = disk(&directory, "logical", table, &[(24, &root)]);
    assert_debian(&read(&image), "partition 6");
}

#[test]
fn a_boot_partition_with_entries_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let entry = |version: &str| {
        format!(
            "title Fedora ({version})\nversion {version}\nlinux /vmlinuz-{version}\n\
             initrd /initramfs-{version}.img\noptions root=UUID=8 ro\n"
        )
    };
    let (old, new) = (entry("6.9.9"), entry("6.10.1"));
    let boot = ext4(
        &directory,
        "boot",
        32 * MIB,
        &[
            ("grub2/grub.cfg", "set default=\"${saved_entry}\"\nblscfg\n"),
            ("loader/entries/a-6.9.9.conf", &old),
            ("loader/entries/a-6.10.1.conf", &new),
            ("vmlinuz-6.9.9", "old"),
            ("vmlinuz-6.10.1", "new"),
            ("initramfs-6.10.1.img", "newer"),
        ],
    );
    let table = "label: gpt\nstart=8MiB, size=32MiB\nstart=64MiB, size=64MiB\n";
    let image = disk(&directory, "disk", table, &[(8, &boot)]);
    // The root, which cannot be read.
    let mut file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.seek(SeekFrom::Start(64 * MIB)).unwrap();
    file.write_all(b"XFSB").unwrap();
    let answer = read(&image);
    assert_eq!((&answer.kernel[..], answer.initramfs.len()), (&b"new"[..], 8));
    assert_eq!(answer.said["command_line"], "root=UUID=8 ro");
}

#[test]
fn kernels_without_a_menu() {
    let directory = tempfile::tempdir().unwrap();
    let files: Files<'_> = &[
        ("boot/vmlinuz-6.9", "old"),
        ("boot/vmlinuz-6.10", "new"),
        ("boot/initrd.img-6.10", "abcd"),
    ];
    let answer = read(&ext4(&directory, "root", 32 * MIB, files));
    assert_eq!((&answer.kernel[..], &answer.initramfs[..]), (&b"new"[..], &b"abcd"[..]));
    assert!(answer.said["command_line"].as_str().unwrap().starts_with("root=UUID="));
}

#[test]
fn disks_that_boot_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.raw");
    File::create(&empty).unwrap().set_len(MIB).unwrap();
    assert!(error_of(&empty).contains("no partition"), "{}", error_of(&empty));
    let bare = ext4(&directory, "bare", 32 * MIB, &[("etc/hostname", "x")]);
    assert!(error_of(&bare).contains("no kernel in /boot"), "{}", error_of(&bare));
    let mut xfs = vec![0; MIB as usize];
    xfs[..4].copy_from_slice(b"XFSB");
    let image = directory.path().join("xfs.raw");
    fs::write(&image, xfs).unwrap();
    assert!(error_of(&image).contains("XFS"), "{}", error_of(&image));
    let gone = ext4(
        &directory,
        "gone",
        32 * MIB,
        &[("boot/grub/grub.cfg", "menuentry x {\nlinux /boot/gone\n}\n")],
    );
    assert!(error_of(&gone).contains("no kernel"), "{}", error_of(&gone));
    assert!(error_of(Path::new("/nonexistent")).contains("No such file"));
}

/// Bytes of a good disk are changed at random: the reader ends by itself, with an answer.
#[test]
fn damaged_disks() {
    let directory = tempfile::tempdir().unwrap();
    let root = ext4(&directory, "root", 8 * MIB, DEBIAN);
    let table = "label: gpt\nstart=8MiB, size=8MiB\n";
    let image = disk(&directory, "disk", table, &[(8, &root)]);
    let good = fs::read(&image).unwrap();
    let used: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    let seeds = match std::env::var("DAMAGE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..150,
    };
    for seed in seeds {
        eprintln!(
            "repeat with: DAMAGE_SEED={seed} cargo test -p vmm --test boot_from_disk damaged"
        );
        let mut random = qcow::disk::sim::Random::new(seed);
        let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
        let places: Vec<usize> = (0..1 + random.below(40))
            .map(|_| used[random.below(used.len() as u64) as usize])
            .collect();
        for at in &places {
            std::os::unix::fs::FileExt::write_all_at(&file, &[random.below(256) as u8], *at as u64)
                .unwrap();
        }
        let answer = read(&image);
        assert!(answer.said.is_object());
        for at in &places {
            std::os::unix::fs::FileExt::write_all_at(&file, &good[*at..=*at], *at as u64).unwrap();
        }
    }
    assert_debian(&read(&image), "partition 1");
}
