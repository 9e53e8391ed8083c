//! The start info of PVH (Xen's `hvm/start_info.h`).

use anyhow::Result;
use vm_memory::{Bytes, GuestAddress};

use super::Placed;
use crate::layout;
use crate::ram::GuestMemory;

const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;
/// Bytes of an entry of the list of modules, of which there is at most one.
const MODULE_LEN: u64 = 32;

/// Writes the start info for a memory of `size` bytes.
pub fn write(initramfs: Option<Placed>, memory: &GuestMemory, size: u64, rsdp: u64) -> Result<()> {
    let map = layout::memory_map(size);
    let map_at = layout::PVH_LISTS + MODULE_LEN;
    let modules = initramfs.map_or(0, |_| layout::PVH_LISTS);
    let mut info = Words::default();
    info.u32(MAGIC).u32(VERSION).u32(0).u32(u32::from(initramfs.is_some()));
    info.u64(modules).u64(layout::COMMAND_LINE).u64(rsdp).u64(map_at);
    info.u32(u32::try_from(map.len())?).u32(0);
    memory.write_slice(&info.0, GuestAddress(layout::BOOT_PARAMS))?;
    let mut lists = Words::default();
    let Placed { at, len } = initramfs.unwrap_or(Placed { at: 0, len: 0 });
    lists.u64(at).u64(len).u64(0).u64(0);
    for range in map {
        lists.u64(range.start).u64(range.len).u32(range.kind as u32).u32(0);
    }
    Ok(memory.write_slice(&lists.0, GuestAddress(layout::PVH_LISTS))?)
}

/// Fields in a row, little-endian.
#[derive(Default)]
struct Words(Vec<u8>);

impl Words {
    fn u32(&mut self, word: u32) -> &mut Self {
        self.0.extend(word.to_le_bytes());
        self
    }

    fn u64(&mut self, word: u64) -> &mut Self {
        self.0.extend(word.to_le_bytes());
        self
    }
}
