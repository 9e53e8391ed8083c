//! Under which name this program runs, and what that name makes of it.
//!
//! Scripts put a link named `qemu-img` or `qemu-io` in front of this program; it then speaks as that program would.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::OnceLock;

/// Which program the caller expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persona {
    /// `qcow`, under whatever name.
    Qcow,
    /// A stand-in for `qemu-img`.
    QemuImg,
    /// A stand-in for `qemu-io`: the program is its subcommand `io`.
    QemuIo,
}

/// The version of `qemu-img` that this program stands in for.
const STAND_IN_VERSION: &str = "10.0.0";

static NAME: OnceLock<String> = OnceLock::new();

/// Remembers the name that the program was called by.
pub fn set_name(argv0: Option<&OsStr>) {
    let base = argv0.and_then(|path| Path::new(path).file_name()).unwrap_or(OsStr::new("qcow"));
    NAME.get_or_init(|| base.to_string_lossy().into_owned());
}

/// The name before every message: the last part of the path that the program was called by.
pub fn name() -> &'static str {
    NAME.get().map_or("qcow", String::as_str)
}

/// What the name makes of this program.
pub fn persona() -> Persona {
    match name() {
        "qemu-img" => Persona::QemuImg,
        "qemu-io" => Persona::QemuIo,
        _ => Persona::Qcow,
    }
}

/// Whether images get a close mark, by which the leaks of a crash are found at the next open. The headers that a stand-in
/// writes are those of the other program.
pub fn adds_marks() -> bool {
    persona() == Persona::Qcow
}

/// What `--version` says behind the name. Scripts read QEMU's version out of a stand-in's answer.
pub fn version() -> String {
    let own = env!("CARGO_PKG_VERSION");
    match persona() {
        Persona::Qcow => own.to_owned(),
        Persona::QemuImg | Persona::QemuIo => format!("version {STAND_IN_VERSION} (qcow {own})"),
    }
}

/// A message of the engine as this program says it: a stand-in leaves out the field and its value in brackets at the end, which
/// the other program does not tell.
pub fn plainly(message: &str) -> &str {
    match message.strip_suffix(')').and_then(|text| text.rsplit_once(" (")) {
        Some((plain, detail)) if persona() != Persona::Qcow && is_detail(detail) => plain,
        _ => message,
    }
}

fn is_detail(text: &str) -> bool {
    text.contains(" is ") || text.starts_with("entry ") || text.ends_with(" snapshots")
}
