//! What threads give up before they touch anything that a guest or a backend has to say: files, other programs, and all system
//! calls but those that they need.
//!
//! Each thread has a filter of its own. The main thread has none: it waits for the others to say something, and starts the
//! process that reads boot files anew when the machine resets. That process keeps next to nothing ([`confine_reader`]).

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// Memory, locks, time, signals, and the end of a thread: what the standard library needs.
const ALL: [i64; 22] = [
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mprotect,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_write,
];

/// A kind of thread, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs a processor: KVM's calls.
    Processor,
    /// Talks to a backend: sockets and eventfds.
    Link,
    /// Talks to whoever uses the API: sockets.
    Api,
    /// Reads what is typed, or waits for signals.
    Listener,
}

impl Role {
    fn calls(self) -> &'static [i64] {
        match self {
            Self::Processor => &[libc::SYS_ioctl],
            Self::Link => &[
                libc::SYS_poll,
                libc::SYS_ppoll,
                libc::SYS_socket,
                libc::SYS_socketpair,
                libc::SYS_connect,
                libc::SYS_setsockopt,
                libc::SYS_getsockopt,
                libc::SYS_sendmsg,
                libc::SYS_recvmsg,
                libc::SYS_sendto,
                libc::SYS_recvfrom,
                libc::SYS_fcntl,
            ],
            Self::Api => &[
                libc::SYS_accept4,
                libc::SYS_setsockopt,
                libc::SYS_sendto,
                libc::SYS_recvfrom,
                libc::SYS_fcntl,
            ],
            Self::Listener => {
                &[libc::SYS_poll, libc::SYS_ppoll, libc::SYS_recvfrom, libc::SYS_sendto]
            }
        }
    }
}

/// What holds for the whole process, and for all that it starts: no new privileges, and nobody looks into its memory.
pub fn confine_process() -> Result<()> {
    nix::sys::prctl::set_no_new_privs().context("cannot give up new privileges")?;
    nix::sys::prctl::set_dumpable(false).context("cannot keep others out of this process")
}

/// Confines the calling thread. A call that it may not make fails from here on; the thread goes on.
pub fn confine_thread(role: Role) -> Result<()> {
    give_up_files()?;
    give_up_calls(role.calls(), SeccompAction::Errno(libc::EPERM as u32))
}

/// Confines a process of one thread that only reads what it has open, and writes. Anything else ends it.
pub fn confine_reader() -> Result<()> {
    confine_process()?;
    give_up_files()?;
    let calls = [
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_ftruncate,
        libc::SYS_io_uring_enter,
        libc::SYS_fcntl,
    ];
    give_up_calls(&calls, SeccompAction::KillProcess)
}

fn give_up_calls(kept: &[i64], otherwise: SeccompAction) -> Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| anyhow!("{e}"))?;
    let kept = ALL.iter().chain(kept).map(|call| (*call, Vec::new()));
    let rules: BTreeMap<i64, Vec<_>> = kept.collect();
    let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch)?;
    apply_filter(&BpfProgram::try_from(filter)?).context("cannot give up system calls")
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
