//! Giving up system calls.
//!
//! Calls that every request makes are allowed without a look at their arguments: the kernel then answers from a bitmap,
//! without running the filter.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::Role;

/// What the standard library and the allocator need on every thread.
const ALL: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Threads that unpack start when there is something to unpack.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    // A ring that is let go of waits for what is under way.
    libc::SYS_io_uring_enter,
];

/// What is done with files beside the ring.
const FILES: &[i64] = &[
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
];

/// What frontends, and the memory that they share, need.
const FRONTENDS: &[i64] = &[
    libc::SYS_ppoll,
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_memfd_create,
    libc::SYS_fstatfs,
    libc::SYS_unlinkat,
];
#[cfg(target_arch = "x86_64")]
const FRONTENDS_OLD: &[i64] = &[libc::SYS_poll, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const FRONTENDS_OLD: &[i64] = &[];

/// What is done with signals, and to let others go.
const SIGNALS: &[i64] = &[libc::SYS_recvfrom, libc::SYS_shutdown];

/// What libraries try, such as for the backtrace of a panic, and do without where it is not there: such calls fail, and
/// nothing is said. Threads are started by the older call then, whose flags a filter can see.
const MISSING: &[i64] =
    &[libc::SYS_openat, libc::SYS_readlinkat, libc::SYS_getcwd, libc::SYS_clone3];
#[cfg(target_arch = "x86_64")]
const MISSING_OLD: &[i64] = &[libc::SYS_open, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const MISSING_OLD: &[i64] = &[];

/// Flags of a thread of this process, as opposed to another process.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
/// IORING_UNREGISTER_BUFFERS; pinning memory is the one before it.
const UNREGISTER_BUFFERS: u64 = 1;
/// The image's locks are given back by the thread that lets go of it last; and builds with debug assertions look at
/// descriptors before they close them.
const FCNTL_ALL: &[i32] = &[libc::F_OFD_SETLK, libc::F_GETFD];
const FCNTL_FRONTENDS: &[i32] =
    &[libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC, libc::F_GET_SEALS, libc::F_ADD_SEALS];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// From here on the calling thread makes only the calls that `role` needs. Any other ends the process.
pub fn give_up(role: Role<'_>) -> Result<()> {
    let missing = freely(MISSING).chain(freely(MISSING_OLD)).collect();
    apply(missing, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?;
    apply(needed(role)?, SeccompAction::Trap, SeccompAction::Allow)
}

fn apply(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| anyhow!("{e}"))?;
    let filter = SeccompFilter::new(rules, otherwise, matching, arch)?;
    Ok(apply_filter(&BpfProgram::try_from(filter)?)?)
}

fn needed(role: Role<'_>) -> Result<Rules> {
    let mut rules: Rules = freely(ALL).chain(freely(MISSING)).chain(freely(MISSING_OLD)).collect();
    match role {
        Role::Worker => rules.extend(freely(FILES)),
        Role::Control(_) => {
            rules.extend(freely(FILES).chain(freely(FRONTENDS)).chain(freely(FRONTENDS_OLD)));
        }
        Role::Watcher => rules.extend(freely(SIGNALS)),
    }
    let frontends = if matches!(role, Role::Control(_)) { FCNTL_FRONTENDS } else { &[] };
    let commands = FCNTL_ALL.iter().chain(frontends);
    let commands = commands.map(|command| only(1, SeccompCmpOp::Eq, *command as u64));
    rules.extend([
        (libc::SYS_fcntl, commands.collect::<Result<_>>()?),
        (libc::SYS_mmap, vec![not_executable()?]),
        (libc::SYS_mprotect, vec![not_executable()?]),
        (libc::SYS_clone, vec![only(0, SeccompCmpOp::MaskedEq(THREAD), THREAD)?]),
        (libc::SYS_prctl, vec![only(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?]),
        // A signal may arrive at any thread, which passes it on through a socket that is connected.
        (libc::SYS_sendto, vec![no_address(4)?]),
        (libc::SYS_io_uring_register, vec![only(1, SeccompCmpOp::Le, UNREGISTER_BUFFERS)?]),
    ]);
    Ok(rules)
}

/// These calls, with any arguments.
fn freely(calls: &[i64]) -> impl Iterator<Item = (i64, Vec<SeccompRule>)> {
    calls.iter().map(|call| (*call, Vec::new()))
}

/// A call whose argument number `index`, a number of 32 bits, compares so to `value`.
fn only(index: u8, compares: SeccompCmpOp, value: u64) -> Result<SeccompRule> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, compares, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// A call whose argument number `index`, an address, is none.
fn no_address(index: u8) -> Result<SeccompRule> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    Ok(SeccompRule::new(vec![condition])?)
}

fn not_executable() -> Result<SeccompRule> {
    only(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)
}
