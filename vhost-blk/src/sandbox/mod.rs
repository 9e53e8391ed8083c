//! What the threads of the daemon give up before a guest, a frontend or an image can say anything to them.
//!
//! | given up | how | by whom |
//! |---|---|---|
//! | new privileges, core dumps, being traced or looked into through `/proc` | `prctl` | the process, before it starts a thread |
//! | all files but those that are open, all TCP, signals and abstract sockets of others | Landlock | each thread |
//! | all system calls but those that it needs | seccomp | each thread |
//! | all operations of its io_uring but transfers, flushes, lengths and polls | restrictions of the ring | each ring, in `qcow::disk::uring` |
//!
//! A thread confines itself before it does anything else. Only the main thread opens images, and so it does so afterwards,
//! before the first disk is served: what images and their names say is read by a thread that is not confined yet, by the
//! rules of `qcow::gate`.
//!
//! Filters of system calls do not see what goes through an io_uring, for which no call is made. That is why rings are
//! restricted, and why no thread may set up another one. Nor do they see what a call's memory says, so they cannot tell one
//! path from another: that is Landlock's part.
//!
//! Threads share their memory. Who takes over one of them can make another one run what he likes, with what that one may
//! still do; so what the daemon has given up is what all of its threads have. The thread that differs is the one that talks
//! to frontends: it removes the socket's file in the end, and so may remove files in that directory and below.
//!
//! A call that is not expected ends the process, with one line that says which it was: it is a bug here, or an attack.

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;

mod calls;
mod files;
mod report;

/// Whether the daemon confines itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// It gives up all files, system calls and privileges that it does not need
    #[default]
    On,
    /// It may do whatever the user who started it may
    Off,
}

/// A kind of thread, by what it does.
#[derive(Clone, Copy, Debug)]
pub enum Role<'a> {
    /// Serves a queue, unpacks, looks after files: through its io_uring.
    Worker,
    /// Talks to frontends, and removes the socket's file, which lies in this directory if there is one.
    Control(Option<&'a Path>),
    /// Waits for signals and for the others.
    Watcher,
}

impl Sandbox {
    /// Gives up what the whole process can do without. Call it before any thread is started.
    pub fn enter(self) -> Result<()> {
        if self == Self::Off {
            return Ok(());
        }
        report::install()?;
        nix::sys::prctl::set_no_new_privs().context("cannot give up new privileges")?;
        nix::sys::prctl::set_dumpable(false).context("cannot keep others out of this process")
    }

    /// Gives up what a thread of this kind can do without; for the calling thread and those that it starts.
    ///
    /// # Errors
    /// The host does not allow that. One without Landlock is not an error: that is told once, and files are left to the
    /// filter of system calls.
    pub fn confine(self, role: Role<'_>) -> Result<()> {
        if self == Self::Off {
            return Ok(());
        }
        let removable = match role {
            Role::Control(directory) => directory,
            Role::Worker | Role::Watcher => None,
        };
        files::give_up(removable).context("cannot give up files (--sandbox off does without)")?;
        calls::give_up(role).context("cannot give up system calls (--sandbox off does without)")
    }
}

#[cfg(test)]
mod tests;
