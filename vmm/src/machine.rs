//! A machine: memory, processors, devices and what is booted on them, put together and run to its end.

#![expect(unsafe_code, reason = "KVM is told where the guest's memory is mapped")]

use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;

use anyhow::{Context, Result, anyhow, bail, ensure};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, Boot};
use crate::devices::{Ports, Power, RawTerminal, SerialLine, SerialTarget};
use crate::outcome::Outcome;
use crate::ram::{self, GuestMemory};
use crate::vcpu::{self, Vcpu};
use crate::{acpi, layout};

/// What the user wants to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is booted.
    pub boot: Boot,
    /// Processors, at least one.
    pub cpus: u8,
    /// Memory in bytes.
    pub memory: u64,
    /// Where the serial line goes.
    pub serial: SerialTarget,
}

/// Runs a machine to its end.
///
/// # Errors
/// It cannot be started.
pub fn run(settings: &Settings) -> Result<Outcome> {
    let memory = ram::make(settings.memory)?;
    let rsdp = acpi::write(&memory, settings.cpus)?;
    let entry = boot::load(&settings.boot, &memory, settings.memory, rsdp)?;
    let kvm = open_kvm()?;
    let vm = make_vm(&kvm, &memory)?;
    let (end, ended) = channel();
    let serial = make_serial(&vm, &settings.serial)?;
    let ports = Arc::new(Ports::new(serial.clone(), Power::new(end.clone())));
    let cpuid = vcpu::supported(&kvm)?;
    let make = |id| Vcpu::new(&vm, id, settings.cpus, &cpuid);
    let vcpus = (0..settings.cpus).map(make).collect::<Result<Vec<_>>>()?;
    vcpus[0].start_at(entry, &memory)?;
    let _terminal = listen(&settings.serial, serial)?;
    for vcpu in vcpus {
        vcpu.run(memory.clone(), Arc::clone(&ports), end.clone())?;
    }
    ended.recv().map_err(|_| anyhow!("all processors are gone"))
}

fn open_kvm() -> Result<Kvm> {
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

fn make_vm(kvm: &Kvm, memory: &GuestMemory) -> Result<VmFd> {
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

fn make_serial(vm: &VmFd, target: &SerialTarget) -> Result<SerialLine> {
    let interrupt = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    vm.register_irqfd(&interrupt, layout::SERIAL_LINE)
        .context("cannot connect the serial line's interrupt")?;
    SerialLine::new(target, interrupt)
}

/// Gives the guest what is typed, where its serial line is this program's terminal.
fn listen(target: &SerialTarget, serial: SerialLine) -> Result<Option<RawTerminal>> {
    if *target != SerialTarget::Tty {
        return Ok(None);
    }
    let terminal = RawTerminal::enter()?;
    let feed = move || serial.feed(io::stdin());
    std::thread::Builder::new().name("serial".to_owned()).spawn(feed)?;
    Ok(terminal)
}

/// Whether the processors of this host can run guests by themselves; otherwise KVM emulates each instruction.
pub fn has_hardware_support() -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}
