//! The system calls that threads keep.

/// Memory, locks, time, signals, and the end of a thread: what the standard library needs.
pub const ALL: &[i64] = &[
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
    // A signal's handler, which may run on any thread, passes the signal on by it.
    libc::SYS_sendto,
];

/// What the process that reads boot files calls, with what it has open.
pub const READER: &[i64] = &[
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

/// What the main thread calls to make a machine, and what a process and a thread call that it starts, up to where they confine
/// themselves.
pub const MAIN: &[i64] = &[
    // Files: those that are booted, this program and its libraries, sockets to be removed.
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_access,
    libc::SYS_faccessat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    // Memory of the guest, and of what is booted.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    // KVM, eventfds, terminals.
    libc::SYS_ioctl,
    libc::SYS_eventfd2,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    // Threads and processes.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_arch_prctl,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_setrlimit,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    // How they confine themselves, and what the reader reads with.
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_enter,
];

/// A kind of thread, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs a processor: KVM's calls.
    Processor,
    /// Talks to a backend: sockets and eventfds.
    Link,
    /// Talks to its clients, one after the other: sockets.
    Server,
    /// Reads what is typed, or waits for signals.
    Listener,
}

impl Role {
    /// What it calls beside [`ALL`].
    pub fn calls(self) -> &'static [i64] {
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
                libc::SYS_recvfrom,
                libc::SYS_fcntl,
            ],
            Self::Server => {
                &[libc::SYS_accept4, libc::SYS_setsockopt, libc::SYS_recvfrom, libc::SYS_fcntl]
            }
            Self::Listener => &[libc::SYS_poll, libc::SYS_ppoll, libc::SYS_recvfrom],
        }
    }
}
