//! The initramfs: as high as it can lie below the devices, and out of the kernel's way.

use std::io::{Read, Seek};

use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use super::{BootFile, Placed};
use crate::layout;
use crate::ram::GuestMemory;

const PAGE: u64 = 4096;

/// Loads the initramfs into a memory of `size` bytes, behind `kernel_end`.
///
/// # Errors
/// It cannot be read or does not fit.
pub fn load(file: &BootFile, memory: &GuestMemory, size: u64, kernel_end: u64) -> Result<Placed> {
    load_unnamed(file, memory, size, kernel_end).with_context(|| file.name.clone())
}

fn load_unnamed(
    file: &BootFile,
    memory: &GuestMemory,
    size: u64,
    kernel_end: u64,
) -> Result<Placed> {
    let mut bytes = Vec::new();
    let mut file = file.file.try_clone()?;
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    let len = bytes.len() as u64;
    let end = size.min(layout::DEVICES);
    let at = end.checked_sub(len).map(|at| at / PAGE * PAGE).filter(|&at| at >= kernel_end);
    ensure!(at.is_some(), "an initramfs of {len} bytes does not fit into the memory");
    let at = at.expect("just seen");
    memory.write_slice(&bytes, GuestAddress(at))?;
    Ok(Placed { at, len })
}
