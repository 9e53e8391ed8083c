//! What the kernel does for a ring: the operations that this engine asks for, and nothing else.
//!
//! A filter of system calls does not see what is asked through a ring: no call is made for it. An attacker who writes to the
//! memory of a ring could otherwise open files, connect sockets and more, from a process that may call nothing of that. So
//! every ring is made unable to do it before it is used, by the kernel, and for good.

use std::io;

use io_uring::register::{Probe, Restriction};
use io_uring::{IoUring, opcode};

/// Operations that go through a ring.
const OPERATIONS: [u8; 10] = [
    opcode::Read::CODE,
    opcode::ReadFixed::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::WriteFixed::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
];
/// Kernels before 6.9 do not know it, and restrict nothing by what they do not know.
const SET_LEN: u8 = opcode::Ftruncate::CODE;
/// IORING_REGISTER_BUFFERS and IORING_UNREGISTER_BUFFERS: memory may be pinned and unpinned.
const REGISTRATIONS: [u8; 2] = [0, 1];

/// Restricts `ring`, which was made disabled, to those operations, and enables it.
///
/// # Errors
/// The kernel does not have restrictions: it is older than 5.10.
pub fn enable_restricted(ring: &IoUring) -> io::Result<()> {
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known)?;
    let set_len = Some(SET_LEN).filter(|code| known.is_supported(*code));
    let operations = OPERATIONS.into_iter().chain(set_len).map(Restriction::sqe_op);
    let registrations = REGISTRATIONS.into_iter().map(Restriction::register_op);
    let mut all: Vec<Restriction> = operations.chain(registrations).collect();
    ring.submitter().register_restrictions(&mut all)?;
    ring.submitter().register_enable_rings()
}
