//! What threads give up before they touch anything that a guest or a backend has to say: files, other programs, and all system
//! calls but those that they need.
//!
//! Each thread has a filter of its own. The main thread waits for the others to say something, makes the machine anew when it
//! resets, and for that starts the process that reads boot files: so it keeps more than the others, but may neither write to
//! files nor talk to anybody. The process that it starts keeps next to nothing ([`confine_reader`]). The keeper of daemons,
//! which is forked before all this, is not confined: it does nothing that a guest or a backend could tell it to, and the
//! daemons confine themselves.

mod calls;
mod files;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

pub use calls::Role;

/// What holds for the whole process, and for all that it starts: no new privileges, and nobody looks into its memory.
pub fn confine_process() -> Result<()> {
    nix::sys::prctl::set_no_new_privs().context("cannot give up new privileges")?;
    nix::sys::prctl::set_dumpable(false).context("cannot keep others out of this process")
}

/// Confines the main thread, and with it all that it starts from here on. It may still remove the files `sockets`.
pub fn confine_main<'a>(sockets: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    files::give_up_all_but(sockets)?;
    // As if the kernel were too old to have it: libraries then do without. The programs' loader is among what calls.
    give_up_calls(calls::MAIN, SeccompAction::Errno(libc::ENOSYS as u32))
}

/// Confines the calling thread. A call that it may not make fails from here on; the thread goes on.
pub fn confine_thread(role: Role) -> Result<()> {
    files::give_up()?;
    give_up_calls(role.calls(), SeccompAction::Errno(libc::EPERM as u32))
}

/// Confines a process of one thread that only reads what it has open, and writes. Anything else ends it.
pub fn confine_reader() -> Result<()> {
    confine_process()?;
    files::give_up()?;
    give_up_calls(calls::READER, SeccompAction::KillProcess)
}

fn give_up_calls(kept: &[i64], otherwise: SeccompAction) -> Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| anyhow!("{e}"))?;
    let kept = calls::ALL.iter().chain(kept).map(|call| (*call, Vec::new()));
    let rules: BTreeMap<i64, Vec<_>> = kept.collect();
    let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch)?;
    apply_filter(&BpfProgram::try_from(filter)?).context("cannot give up system calls")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Set for the process that confines itself.
    const CONFINED: &str = "VMM_TEST_CONFINED";

    #[test]
    fn nothing_can_be_opened_and_nothing_started() {
        if let Ok(what) = std::env::var(CONFINED) {
            confine_reader().expect("allowed");
            match what.as_str() {
                "open" => drop(std::fs::File::open("/etc/passwd")),
                "start" => drop(Command::new("/bin/true").status()),
                _ => {}
            }
            std::process::exit(0);
        }
        let confined = |what| {
            let name = "sandbox::tests::nothing_can_be_opened_and_nothing_started";
            let program = std::env::current_exe().expect("a program");
            let mut command = Command::new(program);
            let status =
                command.args(["--exact", name, "--test-threads=1"]).env(CONFINED, what).status();
            status.expect("started")
        };
        assert!(confined("nothing").success());
        for what in ["open", "start"] {
            assert_eq!(confined(what).signal(), Some(libc::SIGSYS), "{what}");
        }
    }
}
