//! The zero page of the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst and zero-page.rst of Linux).

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::Placed;
use crate::layout;
use crate::ram::GuestMemory;

/// A boot loader without a number of its own.
const LOADER_OTHER: u8 = 0xff;
/// Kind of setup data that holds a seed.
const SETUP_RNG_SEED: u32 = 9;
/// Bytes of the seed.
const SEED_LEN: usize = 32;

/// Writes the zero page for a kernel with `header` in a memory of `size` bytes.
pub fn write(
    header: setup_header,
    initramfs: Option<Placed>,
    memory: &GuestMemory,
    size: u64,
    rsdp: u64,
) -> Result<()> {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.cmd_line_ptr = u32::try_from(layout::COMMAND_LINE)?;
    params.hdr.setup_data = write_seed(memory)?;
    if let Some(Placed { at, len }) = initramfs {
        params.hdr.ramdisk_image = u32::try_from(at)?;
        params.hdr.ramdisk_size = u32::try_from(len)?;
    }
    let map = layout::memory_map(size);
    params.e820_entries = u8::try_from(map.len())?;
    for (i, range) in map.into_iter().enumerate() {
        let (addr, size, kind) = (range.start, range.len, range.kind as u32);
        params.e820_table[i] = boot_e820_entry { addr, size, r#type: kind };
    }
    memory
        .write_obj(params, GuestAddress(layout::BOOT_PARAMS))
        .context("cannot write the zero page")
}

/// Writes a seed for the guest's random numbers: `struct setup_data`, then the bytes. Where it lies.
fn write_seed(memory: &GuestMemory) -> Result<u64> {
    let mut seed = [0; SEED_LEN];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed))?;
    let at = GuestAddress(layout::RNG_SEED);
    // The next one: there is none.
    memory.write_obj(0_u64, at)?;
    memory.write_obj(SETUP_RNG_SEED, GuestAddress(layout::RNG_SEED + 8))?;
    memory.write_obj(SEED_LEN as u32, GuestAddress(layout::RNG_SEED + 12))?;
    memory.write_slice(&seed, GuestAddress(layout::RNG_SEED + 16))?;
    Ok(layout::RNG_SEED)
}
