//! How a command fails: one message for people, one exit code for scripts.

use std::fmt::{Display, Formatter};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::output;
use crate::program::{self, Persona};

/// The result of whatever a command does.
pub type Outcome<T = ()> = Result<T, Failure>;

/// The exit code of most failures.
pub const FAILED: u8 = 1;

/// A failed command.
#[derive(Clone, Debug)]
pub struct Failure {
    code: u8,
    /// Lines in QEMU's wording.
    message: String,
    /// What to put before `--help` in the hint that follows a usage error.
    hint: Option<String>,
    /// What there is to be warned of besides.
    warning: Option<String>,
    /// What stands between the program's name and the message.
    speaker: String,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            code: FAILED,
            message: message.into(),
            hint: None,
            warning: None,
            speaker: String::new(),
        }
    }

    /// Wrong arguments of `command`; the message is followed by a hint at its help.
    pub fn usage(command: &str, message: impl Into<String>) -> Self {
        let hint = format!("{} {command}", program::name());
        Self { hint: Some(hint.trim_end().to_owned()), ..Self::new(message) }
    }

    /// The same failure, told by `command` of the program: `qcow create: ...`.
    #[must_use]
    pub fn spoken_by(self, command: &str) -> Self {
        Self { speaker: format!(" {command}").trim_end().to_owned(), ..self }
    }

    /// The same failure, followed by a warning.
    #[must_use]
    pub fn with_warning(self, warning: impl Into<String>) -> Self {
        Self { warning: Some(warning.into()), ..self }
    }

    /// The same failure without the hint at the help.
    #[must_use]
    pub fn without_hint(self) -> Self {
        Self { hint: None, ..self }
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The same failure with `prefix` and a colon before its message.
    #[must_use]
    pub fn context(self, prefix: impl Display) -> Self {
        Self { message: format!("{prefix}: {}", self.message), ..self }
    }

    /// The same failure with every `from` of its message written as `to`: a file that has a name for the moment is called
    /// what the user calls it.
    #[must_use]
    pub fn calling(self, from: &Path, to: &Path) -> Self {
        let (from, to) = (from.display().to_string(), to.display().to_string());
        Self { message: self.message.replace(&from, &to), ..self }
    }

    /// Tells it on stderr; the exit code of the program.
    pub fn report(&self) -> ExitCode {
        let speaker = format!("{}{}", program::name(), self.speaker);
        tell_plain(&format!("{speaker}: {}", shown(&self.message)));
        if let Some(warning) = &self.warning {
            tell(&format!("warning: {warning}"));
        }
        if let Some(hint) = &self.hint {
            tell_plain(&format!("Try '{hint} --help' for more info"));
        }
        ExitCode::from(self.code)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<qcow::Error> for Failure {
    fn from(error: qcow::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Says `message` on stderr behind the program's name.
///
/// QEMU spreads some messages over several lines. A stand-in does so too; under its own name, the program keeps to one
/// line per message.
pub fn tell(message: &str) {
    tell_plain(&format!("{}: {}", program::name(), shown(message)));
}

fn shown(message: &str) -> String {
    match program::persona() {
        Persona::Qcow => message.replace('\n', "; "),
        Persona::QemuImg | Persona::QemuIo => message.to_owned(),
    }
}

/// Says `line` on stderr as it is, behind everything that has gone to stdout before.
pub fn tell_plain(line: &str) {
    output::flush();
    // Nobody is left to tell if this fails.
    let _ = writeln!(std::io::stderr(), "{line}");
}
