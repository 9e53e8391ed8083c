//! The guest's memory: one sealed memfd that driver and daemon share.

use std::fs::File;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use crate::{Error, Result};

/// Where the guest's memory starts. Not 0, so that a daemon which takes a guest address for an
/// offset, or a zeroed descriptor for a valid one, is found out.
pub const BASE: GuestAddress = GuestAddress(0x4000_0000);

const PAGE: u64 = 4096;

/// Guest-physical memory `BASE .. BASE + len`, readable and writable here and in the daemon.
#[derive(Debug)]
pub struct GuestMemory {
    region: GuestRegionMmap<()>,
}

impl GuestMemory {
    /// Makes `len` bytes (rounded up to pages) of zeroed memory. The host spends pages only on
    /// what is touched.
    pub fn new(len: u64) -> Result<Self> {
        let len = len.next_multiple_of(PAGE);
        let file = sealed_memfd(len)?;
        let bytes = usize::try_from(len).map_err(|_| Error::MemoryFull { wanted: len, left: 0 })?;
        let region =
            GuestRegionMmap::from_range(BASE, bytes, Some(FileOffset::new(file, 0))).map_err(
                |e| Error::System { what: "map guest memory", cause: std::io::Error::other(e) },
            )?;
        Ok(Self { region })
    }

    /// All of it, to be handed out piece by piece.
    pub fn arena(&self) -> Arena {
        Arena { start: BASE.0, next: BASE.0, end: BASE.0 + self.region.len() }
    }

    /// Copies `bytes` to `addr`.
    pub fn write(&self, addr: GuestAddress, bytes: &[u8]) -> Result<()> {
        self.region.write_slice(bytes, self.at(addr)?).map_err(|_| Error::Address(addr))
    }

    /// Fills `bytes` from `addr`.
    pub fn read(&self, addr: GuestAddress, bytes: &mut [u8]) -> Result<()> {
        self.region.read_slice(bytes, self.at(addr)?).map_err(|_| Error::Address(addr))
    }

    /// Atomically stores a little-endian 16-bit ring index or flag.
    pub fn store_u16(&self, addr: GuestAddress, value: u16, order: Ordering) -> Result<()> {
        let at = self.at(addr)?;
        self.region.store(value.to_le(), at, order).map_err(|_| Error::Address(addr))
    }

    /// Atomically loads a little-endian 16-bit ring index or flag.
    pub fn load_u16(&self, addr: GuestAddress, order: Ordering) -> Result<u16> {
        let value: u16 =
            self.region.load(self.at(addr)?, order).map_err(|_| Error::Address(addr))?;
        Ok(u16::from_le(value))
    }

    /// Address in this process of a guest address: what SET_VRING_ADDR wants.
    pub fn user_address(&self, addr: GuestAddress) -> Result<u64> {
        Ok(self.region.as_ptr() as u64 + self.at(addr)?.0)
    }

    /// The one region for SET_MEM_TABLE.
    pub fn region_info(&self) -> Result<VhostUserMemoryRegionInfo> {
        VhostUserMemoryRegionInfo::from_guest_region(&self.region)
            .map_err(Error::protocol("SET_MEM_TABLE"))
    }

    fn at(&self, addr: GuestAddress) -> Result<MemoryRegionAddress> {
        self.region.to_region_addr(addr).ok_or(Error::Address(addr))
    }
}

/// A stretch of guest memory that is handed out from its start and taken back all at once.
#[derive(Debug)]
pub struct Arena {
    start: u64,
    next: u64,
    end: u64,
}

impl Arena {
    /// Sets `len` bytes aside at a multiple of `align` (a power of two).
    pub fn take(&mut self, len: u64, align: u64) -> Result<GuestAddress> {
        let addr = self.next.next_multiple_of(align);
        let end = addr.checked_add(len).filter(|end| *end <= self.end);
        self.next = end.ok_or(Error::MemoryFull { wanted: len, left: self.end - self.next })?;
        Ok(GuestAddress(addr))
    }

    /// Sets `len` bytes aside as an arena of its own, on whole pages.
    pub fn split(&mut self, len: u64) -> Result<Self> {
        let start = self.take(len, PAGE)?.0;
        Ok(Self { start, next: start, end: start + len })
    }

    /// Takes everything back.
    pub fn reset(&mut self) {
        self.next = self.start;
    }
}

/// A memfd that nobody can resize, so that no access through a mapping of it can fault.
fn sealed_memfd(len: u64) -> Result<File> {
    let fd = memfd_create("guest-memory", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(Error::system("memfd_create"))?;
    let file = File::from(fd);
    file.set_len(len).map_err(Error::system("size the guest memory"))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::system("seal the guest memory"))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_hands_out_disjoint_aligned_pieces_and_then_refuses() {
        let memory = GuestMemory::new(2 * PAGE).unwrap();
        let mut arena = memory.arena();
        let first = arena.take(3, 1).unwrap();
        let second = arena.take(16, 16).unwrap();
        assert_eq!(first, BASE);
        assert_eq!(second, GuestAddress(BASE.0 + 16));
        assert!(matches!(arena.take(2 * PAGE, 1), Err(Error::MemoryFull { .. })));
        arena.reset();
        assert_eq!(arena.take(2 * PAGE, 1).unwrap(), BASE);
    }

    #[test]
    fn accesses_outside_are_refused() {
        let memory = GuestMemory::new(PAGE).unwrap();
        assert!(memory.write(GuestAddress(0), &[1]).is_err());
        assert!(memory.write(GuestAddress(BASE.0 + PAGE - 1), &[1, 2]).is_err());
        assert!(memory.write(GuestAddress(BASE.0 + PAGE - 1), &[1]).is_ok());
    }

    #[test]
    fn the_daemon_cannot_resize_the_memory() {
        let memory = GuestMemory::new(PAGE).unwrap();
        let file = memory.region.file_offset().unwrap().file();
        assert!(file.set_len(0).is_err());
    }
}
