//! `qemu-img` with a bound on its time, its memory and its files: damaged images make it ask for any of them.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// What `qemu-img check` said.
#[derive(Debug)]
pub enum Verdict {
    /// It came to an end.
    Told { exit: i32, figures: Option<serde_json::Value> },
    /// It was killed by a signal, by its own doing or by a bound.
    Died,
}

impl Verdict {
    pub fn exit(&self) -> Option<i32> {
        match self {
            Self::Told { exit, .. } => Some(*exit),
            Self::Died => None,
        }
    }

    /// Whether it could not do its work.
    pub fn failed(&self) -> bool {
        self.exit().is_none_or(|exit| exit == 1)
    }
}

pub struct Peer;

impl Peer {
    /// Checks `image` in `directory`.
    pub fn check(directory: &Path, image: &str, options: &[&str]) -> Verdict {
        let mut arguments = vec!["check", "-f", "qcow2", "--output=json"];
        arguments.extend(options);
        arguments.push(image);
        let output = run(directory, &arguments.iter().map(OsStr::new).collect::<Vec<_>>());
        // Nothing, where a signal has ended it.
        match output.status.code() {
            Some(exit) => {
                Verdict::Told { exit, figures: serde_json::from_slice(&output.stdout).ok() }
            }
            _ => Verdict::Died,
        }
    }

    /// What the disk reads as; zeros where it cannot be read.
    pub fn content(directory: &Path, image: &OsStr) -> Option<Vec<u8>> {
        let raw = directory.join("raw");
        let arguments = ["convert", "--salvage", "-f", "qcow2", "-O", "raw"].map(OsStr::new);
        let arguments = [&arguments[..], &[image, "raw".as_ref()]].concat();
        let output = run(directory, &arguments);
        output.status.success().then(|| std::fs::read(raw).unwrap())
    }
}

fn run(directory: &Path, arguments: &[&OsStr]) -> Output {
    let bounds = "ulimit -v 4000000; ulimit -f 4000000; ulimit -t 60; exec qemu-img \"$@\"";
    let mut command = Command::new("sh");
    command.current_dir(directory).args(["-c", bounds, "sh"]).args(arguments);
    command.output().expect("this test needs qemu-img: install qemu-utils")
}
