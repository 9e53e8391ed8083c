//! From files to a guest that can be started: kernel, initramfs, command line, and what the kernel is told of them.

mod initramfs;
mod kernel;
mod linux;
mod pvh;
mod reset_vector;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::ram::GuestMemory;

/// What is to be booted.
#[derive(Clone, Debug)]
pub struct Boot {
    /// A bzImage, or an ELF file with a PVH note.
    pub kernel: PathBuf,
    /// Unpacked by the kernel.
    pub initramfs: Option<PathBuf>,
    /// For the kernel.
    pub command_line: String,
}

/// Where the first processor starts, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In long mode, by the 64-bit Linux boot protocol.
    Linux {
        /// Its first instruction.
        ip: u64,
    },
    /// In protected mode without paging, by PVH.
    Pvh {
        /// Its first instruction.
        ip: u64,
    },
}

/// Bytes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    at: u64,
    len: u64,
}

/// Puts everything into a memory of `size` bytes; where to start. ACPI's RSDP lies at `rsdp`.
///
/// # Errors
/// A file cannot be read, is not what it should be, or does not fit.
pub fn load(boot: &Boot, memory: &GuestMemory, size: u64, rsdp: u64) -> Result<Entry> {
    reset_vector::write(memory)?;
    let kernel = kernel::load(&boot.kernel, memory)?;
    let (needed, low) = (kernel.end(), size.min(layout::DEVICES));
    ensure!(
        needed <= low,
        "{}: the kernel needs {} MiB of memory, and the guest has {}",
        boot.kernel.display(),
        needed.div_ceil(1 << 20),
        low >> 20
    );
    write_command_line(&boot.command_line, kernel.command_line_max(), memory)?;
    let initramfs = match &boot.initramfs {
        Some(path) => Some(initramfs::load(path, memory, size, kernel.end())?),
        None => None,
    };
    match kernel {
        kernel::Kernel::Linux { ip, header, .. } => {
            linux::write(*header, initramfs, memory, size, rsdp)?;
            Ok(Entry::Linux { ip })
        }
        kernel::Kernel::Pvh { ip, .. } => {
            pvh::write(initramfs, memory, size, rsdp)?;
            Ok(Entry::Pvh { ip })
        }
    }
}

fn write_command_line(text: &str, len_max: u64, memory: &GuestMemory) -> Result<()> {
    let len = text.len() as u64;
    ensure!(!text.contains('\0'), "the command line must not hold a NUL");
    ensure!(len <= len_max, "the command line has {len} bytes, and the kernel takes {len_max}");
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    Ok(memory.write_slice(&bytes, GuestAddress(layout::COMMAND_LINE))?)
}
