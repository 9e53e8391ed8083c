//! From files to a guest that can be started: kernel, initramfs, command line, and what the kernel is told of them.

pub mod disk;
mod initramfs;
mod kernel;
mod linux;
mod pvh;
mod reset_vector;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use crate::disks::DiskSpec;
use crate::layout;
use crate::ram::GuestMemory;

/// What is to be booted.
#[derive(Clone, Debug)]
pub enum Boot {
    /// These files.
    Files {
        /// A bzImage, or an ELF file with a PVH note.
        kernel: PathBuf,
        /// Unpacked by the kernel.
        initramfs: Option<PathBuf>,
        /// For the kernel.
        command_line: String,
    },
    /// What a disk says that it boots.
    Disk {
        /// The disk.
        disk: DiskSpec,
        /// More for the kernel.
        command_line: Option<String>,
    },
}

/// A file that a kernel or an initramfs is read from.
#[derive(Debug)]
pub struct BootFile {
    /// Its content.
    pub file: File,
    /// What people know it by.
    pub name: String,
}

/// All that is booted.
#[derive(Debug)]
pub struct BootFiles {
    /// A bzImage, or an ELF file with a PVH note.
    pub kernel: BootFile,
    /// Unpacked by the kernel.
    pub initramfs: Option<BootFile>,
    /// For the kernel.
    pub command_line: String,
}

impl BootFile {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| name.clone())?;
        Ok(Self { file, name })
    }
}

impl Boot {
    fn open(&self) -> Result<BootFiles> {
        match self {
            Self::Files { kernel, initramfs, command_line } => Ok(BootFiles {
                kernel: BootFile::open(kernel)?,
                initramfs: initramfs.as_deref().map(BootFile::open).transpose()?,
                command_line: command_line.clone(),
            }),
            Self::Disk { disk, command_line } => {
                let mut files = disk::find(disk)?;
                files.command_line = with_console(&files.command_line, command_line.as_deref());
                Ok(files)
            }
        }
    }
}

/// A disk's command line, what the user adds to it, and the console there is, if nobody names that.
fn with_console(own: &str, added: Option<&str>) -> String {
    let mut words = vec![own, added.unwrap_or_default()];
    if !words.iter().any(|text| text.contains("console=ttyS0")) {
        words.push("console=ttyS0");
    }
    words.retain(|text| !text.is_empty());
    words.join(" ")
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
    let BootFiles { kernel: kernel_file, initramfs, command_line } = boot.open()?;
    let kernel = kernel::load(&kernel_file, memory)?;
    let (needed, low) = (kernel.end(), size.min(layout::DEVICES));
    ensure!(
        needed <= low,
        "{}: the kernel needs {} MiB of memory, and the guest has {}",
        kernel_file.name,
        needed.div_ceil(1 << 20),
        low >> 20
    );
    write_command_line(&command_line, kernel.command_line_max(), memory)?;
    let initramfs = match &initramfs {
        Some(file) => Some(initramfs::load(file, memory, size, kernel.end())?),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_gets_the_console_that_there_is() {
        assert_eq!(with_console("ro quiet", None), "ro quiet console=ttyS0");
        assert_eq!(
            with_console("console=ttyS0,115200 ro", Some("single")),
            "console=ttyS0,115200 ro single"
        );
        assert_eq!(with_console("", None), "console=ttyS0");
    }
}
