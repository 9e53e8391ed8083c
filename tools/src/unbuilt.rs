//! What `qemu-img` has and this program does not have yet: each says so in one line.

use crate::failure::{Failure, Outcome};

/// Subcommands that are not built yet.
const COMMANDS: &[&str] = &["ctl"];

/// Refuses `command` if it is one of them.
pub fn refuse_command(command: &str) -> Outcome {
    match COMMANDS.contains(&command) {
        true => Err(Failure::new(format!("{command}: this command is not supported yet"))),
        false => Ok(()),
    }
}
