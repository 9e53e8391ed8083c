//! Running a program of either side.

use std::path::Path;

use crate::script::{Program, Step};

pub use crate::sides::{Said, Tool, qemu_version};

/// Seconds after which QEMU's program is killed: once in thousands of scripts, its I/O by io_uring waits forever.
const HANGS_AFTER: &str = "300";

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
        let name = program.name();
        let mut command = match self {
            Self::Ours => self.command(name, directory),
            Self::Theirs => self.command("timeout", directory),
        };
        if self == Self::Theirs {
            command.args(["-s", "KILL", HANGS_AFTER, name]);
        }
        Said::by(command.args(words))
    }
}
