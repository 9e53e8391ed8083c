//! What a process gives up that only reads what it has open: other files, other programs, all system calls but a few.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// What this process may still ask the kernel for: I/O on what it has open, memory, and its end.
const CALLS: [i64; 30] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_ftruncate,
    libc::SYS_close,
    libc::SYS_io_uring_enter,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mprotect,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_restart_syscall,
];

/// Confines this process, which has one thread.
pub fn confine() -> Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    nix::sys::prctl::set_dumpable(false)?;
    give_up_files()?;
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| anyhow!("{e}"))?;
    let rules: BTreeMap<i64, Vec<_>> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    let program = BpfProgram::try_from(filter)?;
    apply_filter(&program).context("cannot give up system calls")
}

/// Nothing can be opened from here on. A kernel without Landlock leaves that to the filter of system calls, which does not
/// see what goes through an io_uring.
fn give_up_files() -> Result<()> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?;
    rules.create()?.restrict_self()?;
    Ok(())
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
            confine().expect("allowed");
            match what.as_str() {
                "open" => drop(std::fs::File::open("/etc/passwd")),
                "start" => drop(Command::new("/bin/true").status()),
                _ => {}
            }
            std::process::exit(0);
        }
        let confined = |what| {
            let name = "boot::disk::confine::tests::nothing_can_be_opened_and_nothing_started";
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
