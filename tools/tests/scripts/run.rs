//! Running a program of either side.

use std::path::Path;

use crate::script::{Program, Step};

pub use crate::sides::{Said, Tool, qemu_version};

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
        Said::by(self.command(program.name(), directory).args(words))
    }
}
