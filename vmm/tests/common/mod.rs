//! What the tests of the built monitor use: running it, and a backend that speaks as much of vhost-user as a test wants.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "every test program uses its own part of this, so nothing is expected to be unused in all of them"
)]

pub mod fake_backend;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The monitor, without arguments.
pub fn vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.stdin(Stdio::null());
    command
}

/// Whether this machine has a KVM that may be used; says why a test is skipped if not.
pub fn has_kvm() -> bool {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(e) = &opened {
        eprintln!("skipped: /dev/kvm cannot be opened: {e}");
    }
    opened.is_ok()
}

/// Runs the monitor with these arguments; it has to end by itself.
pub fn run(args: &[&str]) -> Output {
    vmm().args(args).output().unwrap()
}

/// What it said on standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It could not start, said why in one line that holds `what`, and was not killed by anything.
pub fn assert_refused(output: &Output, code: i32, what: &str) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("vmm: ") && text.contains(what), "{text}");
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
