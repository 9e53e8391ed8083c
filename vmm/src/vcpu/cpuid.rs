//! What a processor is told of itself: all that KVM supports, and its place among the others.

use anyhow::{Context, Result};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// Leaf 1, ECX: the local APIC's timer takes deadlines.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: this is a virtual machine.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: there may be several logical processors in a package.
const HTT: u32 = 1 << 28;
/// Kinds of level in the leaves of the topology.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What KVM supports here.
pub fn supported(kvm: &Kvm) -> Result<CpuId> {
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("no processor to offer")?;
    // KVM leaves this bit to whoever has made sure that there is a local APIC in the kernel.
    let deadline = if kvm.check_extension(Cap::TscDeadlineTimer) { TSC_DEADLINE } else { 0 };
    for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx |= HYPERVISOR | deadline;
    }
    Ok(cpuid)
}

/// `cpuid` for processor `id` of `count`, each a core of the one package.
pub fn of_processor(cpuid: &CpuId, id: u8, count: u8) -> CpuId {
    let mut own = cpuid.clone();
    own.as_mut_slice().iter_mut().for_each(|entry| place(entry, id.into(), count.into()));
    own
}

fn place(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    // Bits of an APIC id that tell the cores of a package apart.
    let bits = count.next_power_of_two().trailing_zeros();
    match (entry.function, entry.index) {
        (1, _) => {
            entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | id << 24;
            entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Deterministic caches: which processors share each, and how many cores there are. Type 0 ends the list.
        (4, _) if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { (1 << bits) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | ((1 << bits) - 1) << 26;
        }
        (0xb | 0x1f, 0) => level(entry, 0, 1, LEVEL_THREAD, id),
        (0xb | 0x1f, 1) => level(entry, bits, count, LEVEL_CORE, id),
        (0xb | 0x1f, index) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, index & 0xff, id);
        }
        // AMD: cores of the package and bits of their ids, then the place of this one.
        (0x8000_0008, _) => entry.ecx = bits << 12 | (count - 1),
        (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

/// A level of the topology: how far to shift an id to get to the next one, and how many processors are on this one.
fn level(entry: &mut kvm_cpuid_entry2, shift: u32, count: u32, kind: u32, id: u32) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) =
        (shift, count, entry.index & 0xff | kind << 8, id);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    #[test]
    fn each_processor_knows_its_place() {
        let all = [entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0xb, 2)];
        let all = CpuId::from_entries(&all).expect("few");
        let own = of_processor(&all, 2, 3);
        let own = own.as_slice();
        assert_eq!(own[0].ebx, 3 << 16 | 2 << 24);
        assert_eq!(own[0].edx, HTT);
        assert_eq!((own[1].eax, own[1].ebx, own[1].ecx, own[1].edx), (0, 1, 0x100, 2));
        assert_eq!((own[2].eax, own[2].ebx, own[2].ecx, own[2].edx), (2, 3, 0x201, 2));
        assert_eq!((own[3].eax, own[3].ebx, own[3].ecx), (0, 0, 2));
    }
}
