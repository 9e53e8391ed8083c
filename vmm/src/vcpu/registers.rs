//! The state in which a processor starts: as after a reset, but for the first one, which starts where its kernel wants it.

use anyhow::{Context, Result, anyhow, ensure};
use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::Entry;
use crate::layout;
use crate::ram::GuestMemory;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Memory types are on, and memory is cached for writes, too, unless said otherwise.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Control word of the FPU, and of SSE, after a reset.
const FCW: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// The local APIC's registers for its two pins, and what they deliver (Intel SDM 3, 11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_EXTINT: u32 = 7 << 8;
const DELIVER_NMI: u32 = 4 << 8;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// An entry of a page table that names another one, or a page of 2 MiB.
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

/// The bit of RFLAGS that is always set.
const RFLAGS: u64 = 2;

/// Sets what is the same for every processor.
pub fn set_common(fd: &VcpuFd) -> Result<()> {
    let fpu = kvm_fpu { fcw: FCW, mxcsr: MXCSR, ..Default::default() };
    fd.set_fpu(&fpu).context("cannot set the FPU")?;
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = [
        msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let wanted = Msrs::from_entries(&msrs).map_err(|e| anyhow!("cannot list MSRs: {e:?}"))?;
    let set = fd.set_msrs(&wanted).context("cannot set MSRs")?;
    ensure!(set == msrs.len(), "KVM does not take MSR {:#x}", msrs[set].index);
    set_pins(fd)
}

fn set_pins(fd: &VcpuFd) -> Result<()> {
    let mut apic = fd.get_lapic().context("cannot read the local APIC")?;
    set_register(&mut apic, LVT_LINT0, DELIVER_EXTINT);
    set_register(&mut apic, LVT_LINT1, DELIVER_NMI);
    fd.set_lapic(&apic).context("cannot set the local APIC")
}

fn set_register(apic: &mut kvm_lapic_state, at: usize, value: u32) {
    for (register, byte) in apic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *register = byte as _;
    }
}

/// Makes the first processor start at `entry`.
pub fn set_entry(fd: &VcpuFd, entry: Entry, memory: &GuestMemory) -> Result<()> {
    let mut special = fd.get_sregs().context("cannot read registers")?;
    let long = matches!(entry, Entry::Linux { .. });
    let code = segment(1, if long { 0xa09b } else { 0xc09b });
    let data = segment(2, 0xc093);
    let task = segment(3, 0x008b);
    special.cs = code;
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = task;
    special.gdt.base = layout::GDT;
    special.gdt.limit = write_gdt(&[code, data, task], memory)?;
    special.cr0 = CR0_PE | CR0_ET;
    special.cr4 = 0;
    if long {
        special.cr3 = write_page_tables(memory)?;
        special.cr4 = CR4_PAE;
        special.cr0 |= CR0_PG;
        special.efer = EFER_LME | EFER_LMA;
    }
    fd.set_sregs(&special).context("cannot set registers")?;
    let regs = match entry {
        Entry::Linux { ip } => kvm_regs { rip: ip, rsi: layout::BOOT_PARAMS, ..Default::default() },
        Entry::Pvh { ip } => kvm_regs { rip: ip, rbx: layout::BOOT_PARAMS, ..Default::default() },
    };
    fd.set_regs(&kvm_regs { rflags: RFLAGS, ..regs }).context("cannot set registers")
}

/// A segment from 0 on at `index` of the GDT. `flags` are bits 40 to 55 of its descriptor but for the limit.
fn segment(index: u16, flags: u16) -> kvm_segment {
    let bit = |at: u16| (flags >> at & 1) as u8;
    let is_task = bit(4) == 0;
    kvm_segment {
        base: 0,
        limit: if is_task { 0x67 } else { u32::MAX },
        selector: index * 8,
        type_: (flags & 0xf) as u8,
        s: bit(4),
        dpl: (flags >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        ..Default::default()
    }
}

/// Writes a GDT of an empty descriptor and `segments`; its limit.
fn write_gdt(segments: &[kvm_segment], memory: &GuestMemory) -> Result<u16> {
    let descriptors = std::iter::once(0).chain(segments.iter().map(descriptor));
    let mut bytes = Vec::new();
    descriptors.for_each(|d: u64| bytes.extend(d.to_le_bytes()));
    memory.write_slice(&bytes, GuestAddress(layout::GDT))?;
    Ok(bytes.len() as u16 - 1)
}

/// The descriptor of a segment from 0 on (Intel SDM 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let field = |value: u8, at: u32| u64::from(value) << at;
    limit & 0xffff
        | (limit >> 16 & 0xf) << 48
        | field(segment.type_, 40)
        | field(segment.s, 44)
        | field(segment.dpl, 45)
        | field(segment.present, 47)
        | field(segment.avl, 52)
        | field(segment.l, 53)
        | field(segment.db, 54)
        | field(segment.g, 55)
}

/// Writes page tables that map the first GiB to itself, in which lies all that a kernel uses before it has its own.
fn write_page_tables(memory: &GuestMemory) -> Result<u64> {
    let (top, pointers, pages) =
        (layout::PAGE_TABLES, layout::PAGE_TABLES + 0x1000, layout::PAGE_TABLES + 0x2000);
    memory.write_obj(pointers | PRESENT_WRITABLE, GuestAddress(top))?;
    memory.write_obj(pages | PRESENT_WRITABLE, GuestAddress(pointers))?;
    for page in 0..512 {
        let entry = page << 21 | PRESENT_WRITABLE | LARGE;
        memory.write_obj(entry, GuestAddress(pages + page * 8))?;
    }
    Ok(top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        assert_eq!(descriptor(&segment(1, 0xa09b)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(1, 0xc09b)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(2, 0xc093)), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&segment(3, 0x008b)), 0x0000_8b00_0000_0067);
    }
}
