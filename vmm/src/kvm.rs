//! KVM: opening it, and making a virtual machine of it that has memory and interrupt controllers.

#![expect(unsafe_code, reason = "KVM is told where the guest's memory is mapped")]

use std::io;

use anyhow::{Context, Result, anyhow, bail, ensure};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;
use crate::ram::GuestMemory;

/// Opens KVM.
///
/// # Errors
/// There is none, or it lacks something.
pub fn open() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|e| {
        let why = io::Error::from(e);
        match why.kind() {
            io::ErrorKind::NotFound => anyhow!("/dev/kvm: this host has no KVM"),
            io::ErrorKind::PermissionDenied => {
                anyhow!("/dev/kvm: permission denied (is this user in the group 'kvm'?)")
            }
            _ => anyhow!("/dev/kvm: {why}"),
        }
    })?;
    ensure!(kvm.get_api_version() == 12, "/dev/kvm: an API that is not KVM's");
    for (cap, name) in [
        (Cap::Irqchip, "interrupt controllers"),
        (Cap::Irqfd, "interrupts by eventfd"),
        (Cap::UserMemory, "memory of programs"),
        (Cap::SetTssAddr, "a place for its task state"),
    ] {
        if !kvm.check_extension(cap) {
            bail!("/dev/kvm: this KVM lacks {name}");
        }
    }
    Ok(kvm)
}

/// Makes a virtual machine with this memory.
pub fn make_vm(kvm: &Kvm, memory: &GuestMemory) -> Result<VmFd> {
    let vm = kvm.create_vm().context("cannot make a virtual machine")?;
    vm.set_tss_address(layout::KVM_TSS).context("cannot set the task state's place")?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .context("cannot set the identity map's place")?;
    vm.create_irq_chip().context("cannot make interrupt controllers")?;
    for (slot, region) in (0..).zip(memory.iter()) {
        let range = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: needed to give the guest its memory. The mapping is as long as the region, and its file is sealed, so that
        // all of it can always be used. Whoever runs a processor keeps it mapped, and before that the guest uses nothing. No
        // reference to it exists.
        unsafe { vm.set_user_memory_region(range) }.context("cannot give the guest its memory")?;
    }
    Ok(vm)
}

/// Whether the processors of this host can run guests by themselves; otherwise KVM emulates each instruction.
pub fn has_hardware_support() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}
