//! A machine: memory, processors, devices and what is booted on them, put together and run until it resets or ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use kvm_ioctls::{Kvm, VmFd};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmm_sys_util::eventfd::EventFd;

use crate::api::{Call, Response, Server, Verb};
use crate::boot::{self, Boot};
use crate::devices::{Devices, SerialLine, SerialTarget};
use crate::disks::{DiskSpec, Keeper, VhostUserSpec};
use crate::interrupts::Interrupts;
use crate::outcome::{Event, Outcome};
use crate::pci::{Bus, Function, HostBridge};
use crate::ram::{self, GuestMemory};
use crate::report::Report;
use crate::sandbox::Role;
use crate::sizing::{CpuSpec, MemorySpec};
use crate::vcpu::{self, Exits, Processors, Vcpu};
use crate::vhost_user::Backend;
use crate::virtio::{DeviceKind, VirtioFunction};
use crate::{acpi, kvm, layout, sandbox};

/// What the user wants to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is booted.
    pub boot: Boot,
    /// Processors.
    pub cpus: CpuSpec,
    /// Memory.
    pub memory: MemorySpec,
    /// Disks for which a daemon is started.
    pub disks: Vec<DiskSpec>,
    /// Backends that run already.
    pub backends: Vec<VhostUserSpec>,
    /// Where the serial line goes.
    pub serial: SerialTarget,
    /// Where the API listens.
    pub api_socket: Option<PathBuf>,
    /// Whether it is told at the end what the machine has cost.
    pub report: bool,
}

/// Runs a machine to its end: a reset lets it boot anew. `keeper` has the daemons of its disks.
///
/// # Errors
/// It cannot be started.
pub fn run(settings: &Settings, keeper: Option<&Keeper>, mut report: Report) -> Result<Outcome> {
    let kvm = kvm::open()?;
    let backends = connect(settings, keeper)?;
    let (serial, input) = SerialLine::open(&settings.serial)?;
    let (sender, events) = channel();
    let server = settings.api_socket.as_deref().map(Server::bind).transpose()?;
    if let Some(server) = &server {
        let calls = sender.clone();
        server.serve(move |call| calls.send(Event::Called(call)).is_ok())?;
    }
    watch_signals(sender.clone())?;
    let listening = input.listen(serial.clone())?;
    let exits = Arc::new(Exits::default());
    let memory = ram::make(&settings.memory)?;
    let sockets = server.iter().map(Server::path).chain(listening.path());
    sandbox::confine_main(sockets).context("cannot confine the main thread")?;
    let mut is_first = true;
    loop {
        let machine = Machine::make(settings, &kvm, memory.clone(), &backends, &serial, &sender)?;
        if std::mem::take(&mut is_first) && !kvm::has_hardware_support() {
            eprintln!(
                "vmm: the processors of this host cannot run guests by themselves: \
                 a kernel takes very long to boot here, if it does at all"
            );
        }
        report.note_first_run();
        let outcome = machine.run(&events, &exits, &mut report)?;
        // Before the memory is let go that they serve.
        backends.iter().for_each(|backend| backend.stop());
        if outcome != Outcome::Reset {
            if settings.report {
                eprintln!("{}", report.to_json(&exits, &backends));
            }
            return Ok(outcome);
        }
        // What the processors of this machine had to say is not about the next one.
        events.try_iter().for_each(refuse);
        ram::clear(&memory, &settings.memory)?;
    }
}

/// Somebody has called while the machine resets.
fn refuse(event: Event) {
    if let Event::Called(call) = event {
        let _ = call.answer.send(Response::error(409, "the machine is being reset; ask again"));
    }
}

/// Pulls the plug on SIGTERM and SIGINT, so that images are closed and the terminal is as it was.
fn watch_signals(events: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot catch signals")?;
    let body = move || {
        if let Err(error) = sandbox::confine_thread(Role::Listener) {
            return eprintln!("vmm: signals are not heard: cannot confine a thread: {error:#}");
        }
        for _ in signals.forever() {
            if events.send(Event::Ended(Outcome::Unplugged)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(body)?;
    Ok(())
}

/// Connects to all backends, in the order in which the guest is to find them: disks first.
fn connect(settings: &Settings, keeper: Option<&Keeper>) -> Result<Vec<Arc<Backend>>> {
    let mut backends = Vec::new();
    for (index, disk) in settings.disks.iter().enumerate() {
        let socket = keeper.context("no daemons")?.socket(index);
        let name = disk.path.display().to_string();
        let backend =
            Backend::connect(socket, &name, DeviceKind::BLOCK, disk.queues, settings.cpus.count);
        backends.push(Arc::new(backend.with_context(|| format!("{name}: cannot be served"))?));
    }
    for spec in &settings.backends {
        let name = spec.socket.display().to_string();
        let backend =
            Backend::connect(&spec.socket, &name, spec.kind, spec.queues, settings.cpus.count);
        backends.push(Arc::new(backend.with_context(|| name)?));
    }
    Ok(backends)
}

/// A machine from its start to its reset or its end.
#[derive(Debug)]
struct Machine<'a> {
    settings: &'a Settings,
    backends: &'a [Arc<Backend>],
    memory: GuestMemory,
    devices: Arc<Devices>,
    vcpus: Vec<Vcpu>,
    /// As long as this is open, KVM has the eventfds that interrupt.
    _vm: Arc<VmFd>,
    events: Sender<Event>,
    power_button: EventFd,
}

impl<'a> Machine<'a> {
    fn make(
        settings: &'a Settings,
        kvm: &Kvm,
        memory: GuestMemory,
        backends: &'a [Arc<Backend>],
        serial: &SerialLine,
        events: &Sender<Event>,
    ) -> Result<Self> {
        let cpus = &settings.cpus;
        let rsdp = acpi::write(&memory, cpus.count)?;
        let entry = boot::load(&settings.boot, &memory, settings.memory.size, rsdp)?;
        let vm = Arc::new(kvm::make_vm(kvm, &memory)?);
        vm.register_irqfd(serial.interrupt(), layout::SERIAL_LINE)
            .context("cannot connect the serial line's interrupt")?;
        let power_button = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        vm.register_irqfd(&power_button, layout::POWER_BUTTON_LINE)
            .context("cannot connect the power button's interrupt")?;
        let bus = make_bus(&vm, &memory, backends)?;
        let devices = Arc::new(Devices::new(serial.clone(), bus));
        let cpuid = vcpu::supported(kvm)?;
        let make = |id| Vcpu::new(&vm, id, cpus, &cpuid);
        let vcpus = (0..cpus.count).map(make).collect::<Result<Vec<_>>>()?;
        vcpus[0].start_at(entry, &memory)?;
        let events = events.clone();
        Ok(Self { settings, backends, memory, devices, vcpus, _vm: vm, events, power_button })
    }

    /// Until it resets or ends.
    fn run(
        mut self,
        events: &Receiver<Event>,
        exits: &Arc<Exits>,
        report: &mut Report,
    ) -> Result<Outcome> {
        let vcpus = std::mem::take(&mut self.vcpus);
        let processors =
            Processors::start(vcpus, &self.memory, &self.devices, exits, &self.events)?;
        let started = Instant::now();
        loop {
            match events.recv().map_err(|_| anyhow!("all processors are gone"))? {
                Event::Called(call) => self.obey(&call, &processors, started),
                Event::Ended(outcome) => {
                    report.note_memory();
                    processors.stop();
                    return Ok(outcome);
                }
            }
        }
    }

    fn obey(&self, call: &Call, processors: &Processors, started: Instant) {
        let response = match call.verb {
            Verb::Info => Response::ok(self.info(processors, started)),
            Verb::Pause => {
                processors.hold();
                Response::done()
            }
            Verb::Resume => {
                processors.go_on();
                Response::done()
            }
            Verb::PowerButton => match self.power_button.write(1) {
                Ok(()) => Response::done(),
                Err(error) => Response::error(500, &error.to_string()),
            },
            Verb::PullPlug => {
                // The events end with this one.
                let _ = self.events.send(Event::Ended(Outcome::Unplugged));
                Response::done()
            }
        };
        // Whoever asked may be gone.
        let _ = call.answer.send(response);
    }

    fn info(&self, processors: &Processors, started: Instant) -> Value {
        let disk = |backend: &Arc<Backend>| {
            json!({
                "name": backend.name(),
                "virtio_device": backend.kind().0,
                "queues": backend.queue_count(),
                "resumed": backend.resumed(),
                "lost": backend.is_lost(),
            })
        };
        json!({
            "state": if processors.are_held() { "paused" } else { "running" },
            "cpus": self.settings.cpus.count,
            "memory": self.settings.memory.size,
            "uptime_ms": started.elapsed().as_millis() as u64,
            "devices": self.backends.iter().map(disk).collect::<Vec<_>>(),
        })
    }
}

/// The bus with the bridge and a function for each of `backends`.
fn make_bus(vm: &Arc<VmFd>, memory: &GuestMemory, backends: &[Arc<Backend>]) -> Result<Bus> {
    ensure!(
        backends.len() < Bus::FUNCTION_COUNT_MAX,
        "{} devices are too many: {} fit on the bus",
        backends.len(),
        Bus::FUNCTION_COUNT_MAX - 1
    );
    let interrupts = Arc::new(Interrupts::new(Arc::clone(vm)));
    let mut functions: Vec<Arc<dyn Function>> = vec![Arc::new(HostBridge::new())];
    for (backend, index) in backends.iter().zip(0..) {
        let at = layout::PCI_WINDOW + index * VirtioFunction::REGISTERS_LEN;
        let (vm, interrupts) = (Arc::clone(vm), Arc::clone(&interrupts));
        let function =
            VirtioFunction::new(Arc::clone(backend), vm, interrupts, memory.clone(), at)?;
        functions.push(Arc::new(function));
    }
    Ok(Bus::new(functions))
}
