//! Guest memory: one sealed memfd, mapped once, that backends can share.

#![expect(
    unsafe_code,
    reason = "the host is told what pages a mapping is to consist of, and from where"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use crate::layout;
use crate::sizing::MemorySpec;

/// What addresses are of the guest's memory.
pub type GuestMemory = GuestMemoryMmap<()>;

/// The name of its file, as the host shows it.
pub const FILE_NAME: &str = "guest-memory";
/// Least memory, in bytes: a kernel and its initramfs do not fit into less.
pub const SIZE_MIN: u64 = 32 << 20;
/// Memory comes in multiples of this, in bytes.
pub const SIZE_STEP: u64 = 2 << 20;
/// Bytes of a huge page.
const HUGE_PAGE: u64 = 2 << 20;

/// Makes the guest's memory, which reads as zeros. It takes up none of the host's before it is used, if nothing else is wanted.
///
/// # Errors
/// The size is too small or odd, or the host has no room for it.
pub fn make(spec: &MemorySpec) -> Result<GuestMemory> {
    let size = spec.size;
    if size < SIZE_MIN || !size.is_multiple_of(SIZE_STEP) {
        bail!("the memory must be a multiple of 2M, and at least 32M");
    }
    let file = sealed_file(size, spec.huge_pages).context("cannot make the guest's memory")?;
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in layout::ram(size) {
        let region = map(FileOffset::new(file.try_clone()?, offset), usize::try_from(len)?);
        let region = region.with_context(|| no_room(spec))?;
        if let Some(node) = spec.node {
            bind(&region, node)?;
        }
        ask_for_large_pages(&region);
        let region = GuestRegionMmap::new(region, GuestAddress(start));
        regions.push(region.context("the guest's memory is too large")?);
        offset += len;
    }
    if spec.prefault {
        set_aside(&file, spec)?;
    }
    GuestMemory::from_regions(regions).context("cannot map the guest's memory")
}

/// Makes all of `memory`, which [`make`] has made as `spec` says, zeros again.
///
/// # Errors
/// The host had no room for it a second time.
pub fn clear(memory: &GuestMemory, spec: &MemorySpec) -> Result<()> {
    let place = memory.iter().next().and_then(GuestMemoryRegion::file_offset);
    let file = place.context("the guest's memory has no file")?.file();
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, 0, whole(spec)?).context("cannot clear the guest's memory")?;
    // A huge page that is given back is not reserved any more.
    if spec.prefault || spec.huge_pages { set_aside(file, spec) } else { Ok(()) }
}

/// Takes all of the memory from the host now.
fn set_aside(file: &File, spec: &MemorySpec) -> Result<()> {
    fallocate(file, FallocateFlags::empty(), 0, whole(spec)?)
        .map_err(|e| anyhow!("{}: {}", no_room(spec), e.desc()))
}

fn whole(spec: &MemorySpec) -> Result<i64> {
    spec.size.try_into().context("the guest's memory is too large")
}

/// A file in memory whose length nobody can change: a mapping of it can then always be used.
fn sealed_file(len: u64, huge_pages: bool) -> Result<File> {
    let huge =
        if huge_pages { MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB } else { MFdFlags::empty() };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | huge;
    let file = File::from(memfd_create(FILE_NAME, flags)?);
    file.set_len(len)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// Maps `len` bytes of a file. Without MAP_NORESERVE, so that huge pages are reserved here, where their lack can be told, and
/// not missed when the guest uses them. Other memory of a file is never reserved.
fn map(place: FileOffset, len: usize) -> Result<MmapRegion> {
    let builder = MmapRegionBuilder::new(len)
        .with_file_offset(place)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED);
    Ok(builder.build()?)
}

fn no_room(spec: &MemorySpec) -> String {
    let MemorySpec { size, huge_pages, .. } = spec;
    if *huge_pages {
        let count = size / HUGE_PAGE;
        format!("the host has less than {count} free huge pages (see /proc/sys/vm/nr_hugepages)")
    } else {
        format!("the host has no room for {size} bytes of memory")
    }
}

/// Lets what `region` maps come from the host's NUMA node `node` and from nowhere else.
fn bind(region: &MmapRegion, node: u16) -> Result<()> {
    const WORD: usize = u64::BITS as usize;
    let node = usize::from(node);
    let mut mask = vec![0_u64; node / WORD + 1];
    mask[node / WORD] |= 1 << (node % WORD);
    // The kernel looks at one bit less than it is told.
    let bits = mask.len() * WORD + 1;
    // SAFETY: needed because no library at hand wraps mbind. The range is that of a mapping of ours, whose content the call
    // does not touch, and the mask is as long as said, the bit too many never being looked at.
    let code = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            region.as_ptr(),
            region.size(),
            libc::MPOL_BIND,
            mask.as_ptr(),
            bits,
            0,
        )
    };
    if code != 0 {
        let error = io::Error::last_os_error();
        bail!("cannot take the guest's memory from the host's NUMA node {node}: {error}");
    }
    Ok(())
}

/// Lets the host use large pages for `region` where it uses them for who asks: `advise` in
/// /sys/kernel/mm/transparent_hugepage/shmem_enabled. A guest then returns for a fortieth of as many pages.
fn ask_for_large_pages(region: &MmapRegion) {
    // SAFETY: needed because madvise takes an address. The range is that of a mapping of ours, and this advice changes none of
    // its content.
    let asked =
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
    // A host without large pages refuses, and that is all right.
    let _ = asked;
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn spec(text: &str) -> MemorySpec {
        text.parse().expect("good")
    }

    #[test]
    fn memory_behind_the_devices_follows_in_the_file() {
        let size = layout::DEVICES + (64 << 20);
        let memory = make(&spec(&size.to_string())).expect("room");
        memory.write_obj(7_u32, GuestAddress(layout::HIGH)).expect("memory");
        let region = memory.find_region(GuestAddress(layout::HIGH)).expect("memory");
        let place = region.file_offset().expect("a file");
        assert_eq!(place.start(), layout::DEVICES);
        assert!(place.file().set_len(1).is_err(), "sealed");
        assert!(memory.read_obj::<u8>(GuestAddress(layout::DEVICES)).is_err());
    }

    #[test]
    fn odd_sizes_are_refused() {
        for size in ["0", "16M", "67108865"] {
            assert!(make(&spec(size)).is_err(), "{size}");
        }
    }

    #[test]
    fn memory_can_be_there_from_the_start() {
        use std::os::unix::fs::MetadataExt;
        let taken = |text: &str| {
            let memory = make(&spec(text)).expect("room");
            let region = memory.find_region(GuestAddress(0)).expect("memory");
            let place = region.file_offset().expect("a file");
            place.file().metadata().expect("a file").blocks() * 512
        };
        assert_eq!(taken("32M"), 0);
        assert_eq!(taken("32M,prefault"), 32 << 20);
    }

    #[test]
    fn cleared_memory_reads_as_zeros() {
        for text in ["32M", "32M,prefault"] {
            let memory = make(&spec(text)).expect("room");
            memory.write_obj(7_u32, GuestAddress(1 << 20)).expect("memory");
            clear(&memory, &spec(text)).expect("room");
            assert_eq!(memory.read_obj::<u32>(GuestAddress(1 << 20)).expect("memory"), 0);
        }
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let refused = |text: &str| format!("{:#}", make(&spec(text)).expect_err("too much"));
        assert!(refused("512G,hugepages").contains("262144 free huge pages"));
        assert!(refused("32M,numa=1023").contains("NUMA node 1023"));
        assert!(refused("32M,numa=65535").contains("NUMA node 65535"));
    }
}
