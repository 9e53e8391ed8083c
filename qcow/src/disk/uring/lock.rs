//! QEMU's image locks: single bytes of the file under open-file-description locks.
//!
//! A program that uses a permission holds a shared lock on byte `100 + permission`; one that does not share a permission
//! with others holds byte `200 + permission`. Before it goes on, each looks whether somebody holds the opposite byte.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, ErrorKind, Result};

const USED_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// A permission of QEMU's block layer, by its bit number.
#[derive(Clone, Copy)]
struct Permission {
    bit: i64,
    name: &'static str,
}

const CONSISTENT_READ: Permission = Permission { bit: 0, name: "consistent read" };
const WRITE: Permission = Permission { bit: 1, name: "write" };
const RESIZE: Permission = Permission { bit: 3, name: "resize" };

const ALL: [Permission; 3] = [CONSISTENT_READ, WRITE, RESIZE];

/// Locks `file` as QEMU locks an image that it opens for reading or for writing, until the file is closed.
///
/// Fails with [`ErrorKind::Locked`] where another program's use conflicts.
pub(super) fn lock_image(file: impl AsFd, writable: bool) -> Result<()> {
    let file = file.as_fd();
    let used: &[Permission] = if writable { &ALL } else { &[CONSISTENT_READ] };
    let unshared: &[Permission] = &[WRITE, RESIZE];
    for permission in used {
        take(file, USED_BASE + permission.bit)?;
    }
    for permission in unshared {
        take(file, UNSHARED_BASE + permission.bit)?;
    }
    for permission in used {
        if is_held_elsewhere(file, UNSHARED_BASE + permission.bit)? {
            return Err(conflict("", *permission));
        }
    }
    for permission in unshared {
        if is_held_elsewhere(file, USED_BASE + permission.bit)? {
            return Err(conflict("shared ", *permission));
        }
    }
    Ok(())
}

/// Gives all image locks of `file` back at once. Closing it would, too, but only when the last copy of the descriptor is
/// gone, and a child process that is just being started holds copies for a moment.
pub(super) fn unlock_image(file: impl AsFd) {
    let mut all = one_byte(libc::F_UNLCK, USED_BASE);
    all.l_len = 2 * (UNSHARED_BASE - USED_BASE);
    // Nothing to do about a failure: the locks then go with the descriptor.
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&all));
}

fn conflict(how: &str, permission: Permission) -> Error {
    Error::new(
        ErrorKind::Locked,
        format!(
            "Failed to get {how}\"{}\" lock: is another process using the image?",
            permission.name
        ),
    )
}

fn take(file: impl AsFd, byte: i64) -> Result<()> {
    let lock = one_byte(libc::F_RDLCK, byte);
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        // File systems without locks cannot protect anybody; QEMU goes on without, too.
        Ok(_) | Err(Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(Error::new(
            ErrorKind::Locked,
            format!("Failed to lock byte {byte}: is another process using the image?"),
        )),
        Err(e) => Err(Error::io(format!("lock byte {byte}"), &io::Error::from(e))),
    }
}

fn is_held_elsewhere(file: impl AsFd, byte: i64) -> Result<bool> {
    let mut lock = one_byte(libc::F_WRLCK, byte);
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)) {
        Ok(_) => Ok(lock.l_type != libc::F_UNLCK as libc::c_short),
        Err(Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(false),
        Err(e) => Err(Error::io(format!("test the lock on byte {byte}"), &io::Error::from(e))),
    }
}

fn one_byte(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}
