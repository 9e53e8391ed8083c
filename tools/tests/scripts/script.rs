//! What a script is made of: command lines.

use std::fmt::{Display, Formatter};

use crate::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Img,
    Io,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Self::Img => "qemu-img",
            Self::Io => "qemu-io",
        }
    }
}

/// One command line, and the files that it may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub program: Program,
    pub words: Vec<String>,
    pub changes: Vec<String>,
}

impl Step {
    pub fn img(command: &str) -> Self {
        Self { program: Program::Img, words: vec![command.to_owned()], changes: Vec::new() }
    }

    pub fn io() -> Self {
        Self { program: Program::Io, words: Vec::new(), changes: Vec::new() }
    }

    /// The subcommand.
    pub fn command(&self) -> &str {
        match self.program {
            Program::Img => self.words.first().map_or("", String::as_str),
            Program::Io => "io",
        }
    }

    pub fn has(&self, word: &str) -> bool {
        self.words.iter().any(|other| other == word)
    }

    /// Adds words.
    pub fn add(&mut self, words: &[&str]) -> &mut Self {
        self.words.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// Adds words `percent` times in a hundred.
    pub fn maybe(&mut self, random: &mut Random, percent: u64, words: &[&str]) -> &mut Self {
        if random.chance(percent) { self.add(words) } else { self }
    }

    /// Adds an option with one of its values `percent` times in a hundred.
    pub fn option(
        &mut self,
        random: &mut Random,
        percent: u64,
        name: &str,
        values: &[&str],
    ) -> &mut Self {
        let value = *random.pick(values);
        self.maybe(random, percent, &[name, value])
    }

    /// Notes that the file `name` may be changed.
    pub fn changes(&mut self, name: &str) -> &mut Self {
        if !self.changes.iter().any(|other| other == name) {
            self.changes.push(name.to_owned());
        }
        self
    }
}

/// As one types it into a shell.
impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.program.name())?;
        self.words.iter().try_for_each(|word| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./".contains(c);
            match !word.is_empty() && word.chars().all(is_plain) {
                true => write!(f, " {word}"),
                false => write!(f, " '{word}'"),
            }
        })
    }
}
