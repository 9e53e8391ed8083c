//! Guest memory: one sealed memfd, mapped once, that backends can share.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::layout;

/// What addresses are of the guest's memory.
pub type GuestMemory = GuestMemoryMmap<()>;

/// The name of its file, as the host shows it.
pub const FILE_NAME: &str = "guest-memory";
/// Least memory, in bytes: a kernel and its initramfs do not fit into less.
pub const SIZE_MIN: u64 = 32 << 20;
/// Memory comes in multiples of this, in bytes.
pub const SIZE_STEP: u64 = 2 << 20;

/// Makes `size` bytes of guest memory, which read as zeros and take up none of the host's before they are used.
///
/// # Errors
/// The size is too small or odd, or the host has no room for it.
pub fn make(size: u64) -> Result<GuestMemory> {
    if size < SIZE_MIN || !size.is_multiple_of(SIZE_STEP) {
        bail!("the memory must be a multiple of 2M, and at least 32M");
    }
    let file = sealed_file(size).context("cannot make the guest's memory")?;
    let mut offset = 0;
    let mut ranges = Vec::new();
    for (start, len) in layout::ram(size) {
        let file = FileOffset::new(file.try_clone()?, offset);
        ranges.push((GuestAddress(start), usize::try_from(len)?, Some(file)));
        offset += len;
    }
    GuestMemory::from_ranges_with_files(ranges).context("cannot map the guest's memory")
}

/// A file in memory whose length nobody can change: a mapping of it can then always be used.
fn sealed_file(len: u64) -> Result<File> {
    let fd = memfd_create(FILE_NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(len)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    #[test]
    fn memory_behind_the_devices_follows_in_the_file() {
        let memory = make(layout::DEVICES + (64 << 20)).expect("room");
        memory.write_obj(7_u32, GuestAddress(layout::HIGH)).expect("memory");
        let region = memory.find_region(GuestAddress(layout::HIGH)).expect("memory");
        let place = vm_memory::GuestMemoryRegion::file_offset(region).expect("a file");
        assert_eq!(place.start(), layout::DEVICES);
        assert!(place.file().set_len(1).is_err(), "sealed");
        assert!(memory.read_obj::<u8>(GuestAddress(layout::DEVICES)).is_err());
    }

    #[test]
    fn odd_sizes_are_refused() {
        for size in [0, 16 << 20, (64 << 20) + 1] {
            assert!(make(size).is_err(), "{size}");
        }
    }
}
