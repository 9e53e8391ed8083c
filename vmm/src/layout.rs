//! Where everything lies in the guest's physical memory.
//!
//! ```text
//! 0x0000_0500  GDT                       0x000e_0000  ACPI: RSDP, then the tables
//! 0x0000_7000  zero page or start info   0x0010_0000  kernel
//! 0x0000_9000  page tables               ...          initramfs, at the end of low memory
//! 0x0002_0000  command line              0xc000_0000  no memory up to 4 GiB: devices
//!                                        0xe000_0000  configuration of PCI functions
//!                                        0x1_0000_0000  the rest of the memory
//! ```

/// The global descriptor table at entry.
pub const GDT: u64 = 0x500;
/// The zero page of the Linux boot protocol, or the start info of PVH.
pub const BOOT_PARAMS: u64 = 0x7000;
/// What PVH's start info names: the list of modules, then the memory map.
pub const PVH_LISTS: u64 = 0x7800;
/// A seed for the guest's random numbers.
pub const RNG_SEED: u64 = 0x8000;
/// Page tables at entry: a PML4, a page of pointers, a page of 2 MiB pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes for the command line and its end.
pub const COMMAND_LINE_LEN: u64 = 0x1_0000;
/// Memory ends here for what the BIOS of a PC would keep, up to [`KERNEL`].
pub const LOW_END: u64 = 0xa_0000;
/// Where the RSDP is looked for.
pub const ACPI: u64 = 0xe_0000;
/// A processor in real mode starts here after a reset.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The kernel is loaded here at the lowest.
pub const KERNEL: u64 = 0x10_0000;
/// Memory below 4 GiB ends here at the latest.
pub const DEVICES: u64 = 0xc000_0000;
/// Registers of PCI functions.
pub const PCI_WINDOW: u64 = DEVICES;
/// Bytes for them.
pub const PCI_WINDOW_LEN: u64 = 0x2000_0000;
/// Configuration of PCI functions: one bus.
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of it.
pub const ECAM_LEN: u64 = 1 << 20;
/// Memory goes on here.
pub const HIGH: u64 = 0x1_0000_0000;
/// Registers of the interrupt controllers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// See [`IO_APIC`].
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM keeps for itself on some processors, and one more for a page table.
pub const KVM_TSS: usize = 0xfffb_d000;
/// See [`KVM_TSS`].
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Names what [`PCI_DATA_PORT`] reaches; both have four ports.
pub const PCI_ADDRESS_PORT: u16 = 0xcf8;
/// Configuration of PCI functions, for whoever does not know of [`ECAM`].
pub const PCI_DATA_PORT: u16 = 0xcfc;
/// The last of its ports.
pub const PCI_DATA_PORT_LAST: u16 = 0xcff;
/// Ports of the first serial line.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt line.
pub const SERIAL_LINE: u32 = 4;
/// The power button's interrupt line.
pub const POWER_BUTTON_LINE: u32 = 5;
/// ACPI's sleep control register; its status register is the next port.
pub const SLEEP_PORT: u16 = 0x600;
/// The reset register.
pub const RESET_PORT: u16 = 0xcf9;
/// Command and status of the keyboard controller that is not there; kernels reset their machine through it, too.
pub const KEYBOARD_PORT: u16 = 0x64;

/// What an address range is for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory to use.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// A range of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
}

/// Where `size` bytes of memory lie: below the devices, and behind them.
pub fn ram(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(DEVICES);
    [(0, low), (HIGH, size - low)].into_iter().filter(|&(_, len)| len > 0).collect()
}

/// The memory map of a guest with `size` bytes of memory, as it is told.
pub fn memory_map(size: u64) -> Vec<Range> {
    let mut map = vec![
        Range { start: 0, len: LOW_END, kind: Kind::Ram },
        Range { start: LOW_END, len: KERNEL - LOW_END, kind: Kind::Reserved },
    ];
    map.push(Range { start: ECAM, len: ECAM_LEN, kind: Kind::Reserved });
    for (start, len) in ram(size) {
        let first = start.max(KERNEL);
        map.push(Range { start: first, len: start + len - first, kind: Kind::Ram });
    }
    map.sort_by_key(|range| range.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_room_for_devices() {
        assert_eq!(ram(1 << 30), [(0, 1 << 30)]);
        assert_eq!(ram(4 << 30), [(0, DEVICES), (HIGH, 1 << 30)]);
        let map = memory_map(4 << 30);
        let total: u64 = map.iter().filter(|r| r.kind == Kind::Ram).map(|r| r.len).sum();
        assert_eq!(total, (4 << 30) - (KERNEL - LOW_END));
        assert!(map.windows(2).all(|pair| pair[0].start + pair[0].len <= pair[1].start));
    }
}
