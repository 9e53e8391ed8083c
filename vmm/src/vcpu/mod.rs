//! Virtual processors: what they are told they are, how they start, and the loop in which they run.

mod cpuid;
mod exits;
mod processors;
mod registers;

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result};
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::boot::Entry;
use crate::devices::Devices;
use crate::outcome::{Event, Outcome};
use crate::ram::GuestMemory;
use crate::sandbox::{self, Role};
use crate::sizing::CpuSpec;

pub use cpuid::supported;
pub use exits::Exits;
pub use processors::Processors;

use processors::Gate;

/// A processor that has not started yet.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    /// The host's processor that it stays on.
    place: Option<usize>,
    fd: VcpuFd,
}

impl Vcpu {
    /// Processor `id` of `cpus`, of the kind that `cpuid` describes. It waits for the first one to start it, unless it is that.
    pub fn new(vm: &VmFd, id: u8, cpus: &CpuSpec, cpuid: &CpuId) -> Result<Self> {
        let fd = vm.create_vcpu(id.into()).context("cannot make a processor")?;
        let own = cpuid::of_processor(cpuid, id, cpus.count);
        fd.set_cpuid2(&own).context("cannot set what the processor is")?;
        registers::set_common(&fd)?;
        Ok(Self { id, place: cpus.place(id), fd })
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
        devices: Arc<Devices>,
        gate: Arc<Gate>,
        exits: Arc<Exits>,
        end: Sender<Event>,
    ) -> Result<JoinHandle<()>> {
        let Self { place, mut fd, .. } = self;
        let body = move || {
            let _memory = memory;
            let prepared = stay(place).and_then(|()| sandbox::confine_thread(Role::Processor));
            let outcome = match prepared {
                Ok(()) => run(&mut fd, &devices, &gate, &exits),
                Err(error) => Some(Outcome::Crashed(format!("cannot run a processor: {error:#}"))),
            };
            if let Some(outcome) = outcome {
                gate.leave();
                // Nobody listens any more where another processor was first.
                let _ = end.send(Event::Ended(outcome));
            }
        };
        let name = format!("vcpu {}", self.id);
        Builder::new().name(name).spawn(body).context("cannot start a thread")
    }
}

/// Keeps the calling thread on the host's processor `place`, if there is one.
fn stay(place: Option<usize>) -> Result<()> {
    let Some(place) = place else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(place)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("cannot stay on processor {place} of the host"))
}

/// Until it ends the machine, and then how, or until it is stopped.
fn run(fd: &mut VcpuFd, devices: &Devices, gate: &Gate, exits: &Exits) -> Option<Outcome> {
    let crashed = |why: String| Some(Outcome::Crashed(why));
    while gate.pass() {
        let exit = fd.run();
        match &exit {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => exits.count_port(),
            Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => exits.count_memory(),
            _ => exits.count_other(),
        }
        match exit {
            Ok(VcpuExit::IoIn(port, data)) => devices.read_port(port, data),
            Ok(VcpuExit::IoOut(port, data)) => {
                // A guest that has switched its machine off would wait for that, and ask for it again and again.
                if let Some(outcome) = devices.write_port(port, data) {
                    return Some(outcome);
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => devices.read_memory(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => devices.write_memory(address, data),
            Ok(VcpuExit::Intr) => {}
            Ok(VcpuExit::Shutdown) => return crashed("triple fault".to_owned()),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return crashed(format!("KVM cannot run the guest: reason {reason:#x}"));
            }
            Ok(other) => return crashed(format!("KVM gave up: {other:?}")),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return crashed(format!("KVM failed: {e}")),
        }
    }
    None
}
