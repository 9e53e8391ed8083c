//! QEMU's programs, run for real.

use std::path::Path;
use std::process::{Command, Output};

use crate::encryption;
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
    command.args(["-d", "unmap"]);
    for op in ops {
        command.arg("-c").arg(op.to_qemu_io());
    }
    let output = run(command.args(named(image)));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("failed"), "qemu-io: {text}");
}

/// The whole disk, as QEMU reads it.
pub fn read_all(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("qemu-raw");
    let mut args = vec!["convert".to_owned()];
    args.extend(named(image));
    // The options of the source come before the files.
    let name = args.pop().expect("a name");
    args.extend(["-O", "raw", &name, path(&raw)].map(str::to_owned));
    run(Command::new("qemu-img").args(args));
    let bytes = std::fs::read(&raw).expect("the converted disk");
    std::fs::remove_file(&raw).expect("remove the converted disk");
    bytes
}

/// Fails unless QEMU finds the image clean: no leak, no corruption.
pub fn check(image: &Path) {
    on_image(&["check", "-q"], image);
}

/// Runs `qemu-img` with `args` on `image`.
pub fn on_image(args: &[&str], image: &Path) {
    run(Command::new("qemu-img").args(args).args(named(image)));
}

/// How `image` is named, with its key if it has one; its name last.
fn named(image: &Path) -> Vec<String> {
    let Some(key) = encryption::key_file(image) else {
        return ["-f", "qcow2", path(image)].map(str::to_owned).to_vec();
    };
    let name = format!("driver=qcow2,encrypt.key-secret=key,file.filename={}", path(image));
    let secret = format!("secret,id=key,file={}", path(&key));
    ["--object", &secret, "--image-opts", &name].map(str::to_owned).to_vec()
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
