//! Taking over descriptors that the program was started with (`--fd`, `--encrypt-key-fd`).
#![expect(
    unsafe_code,
    reason = "a descriptor is inherited by number, and only the user can know that it is ours"
)]

use std::fs::{self, File};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;

use anyhow::{Result, bail};

/// The socket that came as descriptor `number`. Call it once per number, before anything else is opened.
pub fn take_socket(number: RawFd) -> Result<UnixListener> {
    let Ok(metadata) = fs::metadata(format!("/proc/self/fd/{number}")) else {
        bail!("descriptor {number} is not open");
    };
    if !metadata.file_type().is_socket() {
        bail!("descriptor {number} is not a socket");
    }
    // SAFETY: needed because a number is all that is inherited. It is open, as was just checked; at this point of the
    // program nothing of ours has been opened, so nobody else owns it.
    Ok(unsafe { UnixListener::from_raw_fd(number) })
}

/// The file that came as descriptor `number`. As for [`take_socket`].
pub fn take_file(number: RawFd) -> Result<File> {
    if fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err() {
        bail!("descriptor {number} is not open");
    }
    // SAFETY: as in `take_socket`.
    Ok(unsafe { File::from_raw_fd(number) })
}
