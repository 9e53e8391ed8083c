//! Running a program of either side.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::script::{Program, Step};

/// Whose program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Ours,
    Theirs,
}

/// What a program said and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Nothing if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Tool {
    /// Runs the words of `step` in `directory`.
    pub fn run(self, directory: &Path, step: &Step) -> Said {
        let words: Vec<&str> = step.words.iter().map(String::as_str).collect();
        self.run_words(step.program, directory, &words)
    }

    /// Runs `qemu-img` with `words` in `directory`.
    pub fn img(self, directory: &Path, words: &[&str]) -> Said {
        self.run_words(Program::Img, directory, words)
    }

    fn run_words(self, program: Program, directory: &Path, words: &[&str]) -> Said {
        let mut command = match self {
            Self::Theirs => Command::new(program.name()),
            Self::Ours => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_qcow"));
                command.arg0(program.name());
                command
            }
        };
        command.args(words).current_dir(directory).env("TZ", "UTC").stdin(Stdio::null());
        let output = command.output().expect("the program runs (apt-get install qemu-utils)");
        Said {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Which QEMU the results hold for.
pub fn qemu_version() -> String {
    let said = Tool::Theirs.img(Path::new("."), &["--version"]);
    said.stdout.lines().next().unwrap_or_default().to_owned()
}
