//! The two sides of a comparison: our program behind links named `qemu-img` and `qemu-io`, and QEMU's.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whose program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Ours,
    Theirs,
}

impl Tool {
    /// `program`, ready to run in `directory`.
    pub fn command(self, program: &str, directory: &Path) -> Command {
        let mut command = match self {
            Self::Theirs => Command::new(program),
            Self::Ours => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_qcow"));
                command.arg0(program);
                command
            }
        };
        command.current_dir(directory).env("TZ", "Europe/Berlin").stdin(Stdio::null());
        command
    }
}

/// What a program said and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Nothing if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// What `command` says, once it has ended.
    pub fn by(command: &mut Command) -> Self {
        let output = command.output().expect("the program runs (apt-get install qemu-utils)");
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Which QEMU the results hold for.
pub fn qemu_version() -> String {
    let said = Said::by(Tool::Theirs.command("qemu-img", Path::new(".")).arg("--version"));
    said.stdout.lines().next().unwrap_or_default().to_owned()
}
