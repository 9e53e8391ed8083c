//! Virtual processors: what they are told they are, how they start, and the loop in which they run.

mod cpuid;
mod registers;

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result};
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use crate::boot::Entry;
use crate::devices::Ports;
use crate::outcome::Outcome;
use crate::ram::GuestMemory;

pub use cpuid::supported;

/// A processor that has not started yet.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
}

impl Vcpu {
    /// Processor `id` of `count`, of the kind that `cpuid` describes. It waits for the first one to start it, unless it is that.
    pub fn new(vm: &VmFd, id: u8, count: u8, cpuid: &CpuId) -> Result<Self> {
        let fd = vm.create_vcpu(id.into()).context("cannot make a processor")?;
        let own = cpuid::of_processor(cpuid, id, count);
        fd.set_cpuid2(&own).context("cannot set what the processor is")?;
        registers::set_common(&fd)?;
        Ok(Self { id, fd })
    }

    /// Makes it start at `entry`.
    pub fn start_at(&self, entry: Entry, memory: &GuestMemory) -> Result<()> {
        registers::set_entry(&self.fd, entry, memory)
    }

    /// Runs it on a thread of its own until the machine ends, which it says through `end` where it is the cause. The thread
    /// keeps `memory` mapped: the guest uses it as long as it runs.
    pub fn run(
        self,
        memory: GuestMemory,
        ports: Arc<Ports>,
        end: Sender<Outcome>,
    ) -> Result<JoinHandle<()>> {
        let mut fd = self.fd;
        let body = move || {
            let _memory = memory;
            let outcome = run(&mut fd, &ports);
            // Nobody listens any more where another processor was first.
            let _ = end.send(outcome);
        };
        let name = format!("vcpu {}", self.id);
        Builder::new().name(name).spawn(body).context("cannot start a thread")
    }
}

fn run(fd: &mut VcpuFd, ports: &Ports) -> Outcome {
    loop {
        match fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => ports.read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => ports.write(port, data),
            // Nothing is there, as on a bus that nobody answers on.
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::MmioWrite(..) | VcpuExit::Intr) => {}
            Ok(VcpuExit::Shutdown) => return Outcome::Crashed("triple fault".to_owned()),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Outcome::Crashed(format!("KVM cannot run the guest: reason {reason:#x}"));
            }
            Ok(other) => return Outcome::Crashed(format!("KVM gave up: {other:?}")),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return Outcome::Crashed(format!("KVM failed: {e}")),
        }
    }
}
