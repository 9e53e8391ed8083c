//! Interrupts by message: which message each of KVM's interrupt numbers (GSIs) stands for, and which eventfds raise it.
//!
//! An eventfd that is connected here interrupts the guest without any thread of this program.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use qcow::sync::lock;
use vmm_sys_util::eventfd::EventFd;

/// Pins of the I/O APIC, whose numbers come first.
const PIN_COUNT: u32 = 24;

/// A message that interrupts a processor: what a function writes, and where to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Names the processors.
    pub address: u64,
    /// Names the vector.
    pub data: u32,
}

/// The number of an interrupt by message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gsi(u32);

/// All interrupts by message of a machine.
#[derive(Debug)]
pub struct Interrupts {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

#[derive(Debug)]
struct Routes {
    next: u32,
    messages: BTreeMap<Gsi, Message>,
}

impl Interrupts {
    /// None yet; the pins of the I/O APIC are KVM's.
    pub fn new(vm: Arc<VmFd>) -> Self {
        let routes = Routes { next: PIN_COUNT, messages: BTreeMap::new() };
        Self { vm, routes: Mutex::new(routes) }
    }

    /// A number that nobody else has.
    pub fn reserve(&self) -> Gsi {
        let mut routes = lock(&self.routes);
        routes.next += 1;
        Gsi(routes.next - 1)
    }

    /// Makes `gsi` stand for `message`.
    pub fn route(&self, gsi: Gsi, message: Message) -> Result<()> {
        let mut routes = lock(&self.routes);
        // Each change makes KVM wait until no processor uses the old table.
        if routes.messages.insert(gsi, message) == Some(message) {
            return Ok(());
        }
        let pins = (0..PIN_COUNT).map(pin);
        let messages = routes.messages.iter().map(|(gsi, message)| by_message(*gsi, *message));
        let table = KvmIrqRouting::from_entries(&pins.chain(messages).collect::<Vec<_>>())
            .map_err(|e| anyhow!("too many interrupts: {e:?}"))?;
        self.vm.set_gsi_routing(&table).context("cannot route interrupts")
    }

    /// Lets `event` raise `gsi`, at once if it has been signalled before.
    pub fn connect(&self, gsi: Gsi, event: &EventFd) -> Result<()> {
        self.vm.register_irqfd(event, gsi.0).context("cannot connect an interrupt")
    }

    /// From now on `event` is left alone; what is signalled stays in it.
    pub fn disconnect(&self, gsi: Gsi, event: &EventFd) -> Result<()> {
        self.vm.unregister_irqfd(event, gsi.0).context("cannot disconnect an interrupt")
    }
}

fn pin(number: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: number, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = number;
    entry
}

fn by_message(gsi: Gsi, message: Message) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: gsi.0, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}
