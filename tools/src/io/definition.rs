//! What a command is: its names, its usage, and who carries it out.

use super::command::Arguments;
use super::session::{Done, Failed, Need, Session};
use crate::output::say;

/// One command.
pub struct Command {
    /// Its name and its short name.
    pub names: &'static [&'static str],
    /// How many words may follow it; no upper bound where that is `None`.
    count: (usize, Option<usize>),
    /// What it needs.
    pub need: Need,
    /// What may follow the name.
    usage: &'static str,
    /// What it does, in a few words.
    summary: &'static str,
    /// Carries it out.
    pub run: fn(&mut Session, &Command, &[&str]) -> Done,
}

/// A command, all in one line.
pub const fn command(
    names: &'static [&'static str],
    count: (usize, Option<usize>),
    need: Need,
    usage: &'static str,
    summary: &'static str,
    run: fn(&mut Session, &Command, &[&str]) -> Done,
) -> Command {
    Command { names, count, need, usage, summary, run }
}

impl Command {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    /// Checks how many words follow `name`, as which it was called; the error is what to tell.
    pub fn check_count(&self, name: &str, count: usize) -> Result<(), String> {
        let (least, most) = self.count;
        if count >= least && most.is_none_or(|most| count <= most) {
            return Ok(());
        }
        let expected = match most {
            None => format!("at least {least}"),
            Some(most) if most == least => least.to_string(),
            Some(most) => format!("between {least} and {most}"),
        };
        Err(format!("bad argument count {count} to {name}, expected {expected} arguments"))
    }

    /// Takes the words behind its name apart, given the flags that it knows; see [`Arguments::parse`].
    pub fn arguments(&self, words: &[&str], known: &str) -> Done<Arguments> {
        Arguments::parse(self.name(), words, known).ok_or_else(|| self.tell_usage())
    }

    /// Tells how it is used, because it was used wrongly.
    pub fn tell_usage(&self) -> Failed {
        say!("{}", self.line());
        Failed
    }

    /// Its usage in one line.
    pub fn line(&self) -> String {
        format!("{} {} -- {}", self.name(), self.usage, self.summary).replacen("  -- ", " -- ", 1)
    }
}
