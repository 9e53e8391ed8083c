//! The kernel's file: a bzImage, entered by the 64-bit boot protocol, or an ELF file with a PVH entry.

use std::fs::File;
use std::io::{Read, Seek};

use anyhow::{Context, Result, bail, ensure};
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Address, GuestAddress};

use super::BootFile;
use crate::layout;
use crate::ram::GuestMemory;

const ELF_MAGIC: &[u8; 4] = b"\x7fELF";
/// Distance of the 64-bit entry from where the kernel is loaded.
const ENTRY_64: u64 = 0x200;
/// The kernel has a 64-bit entry (`xloadflags`).
const XLF_KERNEL_64: u16 = 1;
/// The first boot protocol with `xloadflags`.
const PROTOCOL_MIN: u16 = 0x20c;

/// A kernel in memory.
#[derive(Debug)]
pub enum Kernel {
    /// To be entered by the 64-bit Linux boot protocol.
    Linux {
        /// Its first instruction.
        ip: u64,
        /// The first byte behind all that it uses before it reads the memory map.
        end: u64,
        /// What it says of itself.
        header: Box<setup_header>,
    },
    /// To be entered by PVH.
    Pvh {
        /// Its first instruction.
        ip: u64,
        /// The first byte behind it.
        end: u64,
    },
}

impl Kernel {
    /// The first byte that it leaves to others.
    pub fn end(&self) -> u64 {
        match self {
            Self::Linux { end, .. } | Self::Pvh { end, .. } => *end,
        }
    }

    /// Most bytes of a command line.
    pub fn command_line_max(&self) -> u64 {
        let room = layout::COMMAND_LINE_LEN - 1;
        match self {
            Self::Linux { header, .. } => u64::from(header.cmdline_size).min(room),
            Self::Pvh { .. } => room,
        }
    }
}

/// Loads the kernel.
///
/// # Errors
/// It cannot be read, is no kernel or an unusual one, or is too large for the memory.
pub fn load(kernel: &BootFile, memory: &GuestMemory) -> Result<Kernel> {
    load_unnamed(kernel, memory).with_context(|| kernel.name.clone())
}

fn load_unnamed(kernel: &BootFile, memory: &GuestMemory) -> Result<Kernel> {
    let mut file = kernel.file.try_clone()?;
    file.rewind()?;
    let mut magic = [0; 4];
    if file.read(&mut magic)? < magic.len() {
        bail!("not a kernel: neither a bzImage nor an ELF file");
    }
    file.rewind()?;
    if &magic == ELF_MAGIC { load_elf(file, memory) } else { load_bzimage(file, memory) }
}

fn load_elf(mut file: File, memory: &GuestMemory) -> Result<Kernel> {
    let lowest = Some(GuestAddress(layout::KERNEL));
    let loaded = Elf::load(memory, None, &mut file, lowest).map_err(cannot_load)?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(ip) => {
            Ok(Kernel::Pvh { ip: ip.raw_value(), end: loaded.kernel_end })
        }
        _ => bail!("this ELF file has no PVH entry: take the bzImage of the same kernel"),
    }
}

fn load_bzimage(mut file: File, memory: &GuestMemory) -> Result<Kernel> {
    let at = GuestAddress(layout::KERNEL);
    let loaded = BzImage::load(memory, Some(at), &mut file, Some(at)).map_err(cannot_load)?;
    let header = loaded.setup_header.context("not a kernel")?;
    let (version, flags) = (header.version, header.xloadflags);
    ensure!(
        version >= PROTOCOL_MIN && flags & XLF_KERNEL_64 != 0,
        "a kernel without a 64-bit entry"
    );
    let end = loaded.kernel_load.raw_value() + u64::from(header.init_size);
    let ip = loaded.kernel_load.raw_value() + ENTRY_64;
    Ok(Kernel::Linux { ip, end: end.max(loaded.kernel_end), header: Box::new(header) })
}

fn cannot_load(error: linux_loader::loader::Error) -> anyhow::Error {
    use linux_loader::loader::{Error, bzimage, elf};
    match error {
        Error::Bzimage(bzimage::Error::InvalidBzImage | bzimage::Error::ReadBzImageHeader) => {
            anyhow::anyhow!("not a kernel: neither a bzImage nor an ELF file")
        }
        Error::Bzimage(bzimage::Error::ReadBzImageCompressedKernel)
        | Error::Elf(elf::Error::ReadKernelImage) => {
            anyhow::anyhow!("the kernel is cut short, or too large for the guest's memory")
        }
        other => anyhow::anyhow!("not a kernel that can be loaded: {other}"),
    }
}
