//! QEMU's programs, run for real.

use std::path::Path;
use std::process::{Command, Output};

use crate::script::Op;

/// Which QEMU is the judge.
pub fn version() -> String {
    let output = run(Command::new("qemu-img").arg("--version"));
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

/// Runs `qemu-img` with `args`, which must succeed.
pub fn img(args: &[&str]) -> Output {
    run(Command::new("qemu-img").args(args))
}

/// Runs `ops` on `image` through one `qemu-io`.
pub fn io(image: &Path, ops: &[Op]) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qcow2", "-d", "unmap"]);
    for op in ops {
        command.arg("-c").arg(op.to_qemu_io());
    }
    let output = run(command.arg(image));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("failed"), "qemu-io: {text}");
}

/// The whole disk, as QEMU reads it.
pub fn read_all(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("qemu-raw");
    img(&["convert", "-f", "qcow2", "-O", "raw", path(image), path(&raw)]);
    let bytes = std::fs::read(&raw).expect("the converted disk");
    std::fs::remove_file(&raw).expect("remove the converted disk");
    bytes
}

/// Fails unless QEMU finds the image clean: no leak, no corruption.
pub fn check(image: &Path) {
    img(&["check", "-q", "-f", "qcow2", path(image)]);
}

/// A path as an argument.
pub fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

fn run(command: &mut Command) -> Output {
    let output =
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e} (is qemu-utils installed?)"));
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    output
}
