//! A virtio device as a PCI function: capabilities, registers, and what follows when the driver uses them.
//!
//! ```text
//! registers (BAR 0, 32 KiB)   0x0000  common configuration     0x3000  notifications, one per queue
//!                             0x1000  interrupt status         0x4000  MSI-X: table
//!                             0x2000  device configuration     0x6000  MSI-X: pending vectors
//! ```
//!
//! A driver that notifies writes to an address that KVM knows: the write ends in the queue's eventfd, which whoever serves
//! the queue waits for. What interrupts goes the other way, by MSI-X. This program takes part in neither.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use qcow::sync::lock;
use vmm_sys_util::eventfd::EventFd;

use super::common::{self, Common, Effect};
use super::kind::DeviceKind;
use super::queue::Queue;
use super::{NO_VECTOR, status};
use crate::interrupts::Interrupts;
use crate::pci::{self, ConfigSpace, Function, MSIX_CONTROL_AT, Msix, VECTOR_LEN, offset};
use crate::ram::GuestMemory;
use crate::vhost_user::Backend;

const VENDOR: u16 = 0x1af4;
/// The number of a modern function is that of its device, from here on.
const DEVICE_BASE: u16 = 0x1040;
/// A modern function.
const REVISION: u8 = 1;

const REGISTERS_LEN: u64 = 0x8000;
const COMMON: u64 = 0;
const INTERRUPT_STATUS: u64 = 0x1000;
const DEVICE_CONFIG: u64 = 0x2000;
const NOTIFICATIONS: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x6000;
/// Most bytes of device configuration.
const DEVICE_CONFIG_LEN: u64 = 0x1000;
/// Distance of two queues' notifications.
const NOTIFICATION_STEP: u64 = 4;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

/// Kinds of virtio's capabilities (4.1.4).
const KIND_COMMON: u8 = 1;
const KIND_NOTIFICATIONS: u8 = 2;
const KIND_INTERRUPT_STATUS: u8 = 3;
const KIND_DEVICE_CONFIG: u8 = 4;
const KIND_CONFIG_ACCESS: u8 = 5;
/// Distances from the start of the last of them: the place that is accessed, its length, and what is there.
const ACCESS_OFFSET: usize = 8;
const ACCESS_LEN: usize = 12;
const ACCESS_DATA: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct VirtioFunction {
    vm: Arc<VmFd>,
    memory: GuestMemory,
    backend: Arc<Backend>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    space: ConfigSpace,
    /// Where its capabilities for MSI-X and for access through configuration space are.
    msix_at: usize,
    access_at: usize,
    msix: Msix,
    common: Common,
    /// What interrupts when the configuration has changed.
    changed: Arc<EventFd>,
    /// Where the registers are that KVM knows the notifications of.
    notified_at: Option<u64>,
}

impl VirtioFunction {
    /// The device that `backend` serves, with its registers at `at`, for a guest in `memory`.
    pub fn new(
        backend: Arc<Backend>,
        vm: Arc<VmFd>,
        interrupts: Arc<Interrupts>,
        memory: GuestMemory,
        at: u64,
    ) -> Result<Self> {
        let queue_count = backend.queue_count();
        let queues = (0..queue_count).map(|_| Queue::new()).collect::<Result<Vec<_>>>()?;
        let msix = Msix::new(interrupts, queue_count + 1);
        let (space, msix_at, access_at) = space(backend.kind(), &msix, at);
        let state = State {
            space,
            msix_at,
            access_at,
            msix,
            common: Common::new(backend.features(), queues),
            changed: Arc::clone(backend.changed()),
            notified_at: None,
        };
        Ok(Self { vm, memory, backend, state: Mutex::new(state) })
    }

    /// Bytes that the registers take, to which they are aligned.
    pub const REGISTERS_LEN: u64 = REGISTERS_LEN;

    fn write_register(&self, state: &mut State, at: u64, data: &[u8]) -> Result<()> {
        match at {
            COMMON..INTERRUPT_STATUS => self.write_common(state, at - COMMON, data),
            DEVICE_CONFIG..NOTIFICATIONS => {
                self.backend.write_config(at - DEVICE_CONFIG, data);
                Ok(())
            }
            // KVM takes these, but for what comes through configuration space.
            NOTIFICATIONS..MSIX_TABLE => {
                let index = (at - NOTIFICATIONS) / NOTIFICATION_STEP;
                if let Some(queue) = state.common.queues.get(index as usize) {
                    queue.kick.write(1)?;
                }
                Ok(())
            }
            MSIX_TABLE..MSIX_PENDING => state.msix.write_table(at - MSIX_TABLE, data),
            _ => Ok(()),
        }
    }

    fn read_register(&self, state: &mut State, at: u64, data: &mut [u8]) {
        state.common.generation = self.backend.generation();
        if self.backend.is_lost() {
            state.common.status |= status::NEEDS_RESET;
        }
        match at {
            COMMON..INTERRUPT_STATUS => state.common.read(at - COMMON, data),
            DEVICE_CONFIG..NOTIFICATIONS => self.backend.read_config(at - DEVICE_CONFIG, data),
            MSIX_TABLE..MSIX_PENDING => state.msix.read_table(at - MSIX_TABLE, data),
            MSIX_PENDING.. => state.msix.read_pending(at - MSIX_PENDING, data),
            // Whoever interrupts by message has no interrupt status.
            _ => data.fill(0),
        }
    }

    fn write_common(&self, state: &mut State, at: u64, data: &[u8]) -> Result<()> {
        match state.common.write(at, data) {
            Effect::None => {}
            Effect::Start => {
                let rings = state.common.queues.iter().enumerate();
                let rings = rings.filter_map(|(index, queue)| queue.ring(index)).collect();
                self.backend.start(state.common.accepted, rings, self.memory.clone());
            }
            Effect::Reset => {
                self.backend.stop();
                state.reset()?;
            }
            Effect::ConfigVector(vector) => state.set_config_vector(vector)?,
            Effect::QueueVector(index, vector) => state.set_queue_vector(index, vector)?,
        }
        Ok(())
    }

    /// Lets KVM know where the notifications are now.
    fn settle_notifications(&self, state: &mut State) -> Result<()> {
        let now = state.registers_at();
        if now == state.notified_at {
            return Ok(());
        }
        for (queue, index) in state.common.queues.iter().zip(0..) {
            let address = |at| IoEventAddress::Mmio(at + NOTIFICATIONS + index * NOTIFICATION_STEP);
            if let Some(before) = state.notified_at {
                self.vm.unregister_ioevent(&queue.kick, &address(before), NoDatamatch)?;
            }
            if let Some(now) = now {
                self.vm.register_ioevent(&queue.kick, &address(now), NoDatamatch)?;
            }
        }
        state.notified_at = now;
        Ok(())
    }

    /// What KVM refuses is told; the guest sees a device that does not do what it should.
    fn report(&self, result: Result<()>) {
        if let Err(error) = result {
            eprintln!("vmm: {}: {error:#}", self.backend.name());
        }
    }
}

impl State {
    fn registers_at(&self) -> Option<u64> {
        let answers = self.space.u16(offset::COMMAND) & pci::COMMAND_MEMORY != 0;
        answers.then(|| u64::from(self.space.u32(offset::BAR_0) & !0xf))
    }

    fn reset(&mut self) -> Result<()> {
        self.set_config_vector(NO_VECTOR)?;
        for index in 0..self.common.queues.len() {
            self.set_queue_vector(index, NO_VECTOR)?;
        }
        self.common.reset();
        Ok(())
    }

    fn set_config_vector(&mut self, vector: u16) -> Result<()> {
        let vector = self.existing(vector);
        self.msix.detach(self.common.config_vector, &self.changed)?;
        self.common.config_vector = vector;
        self.msix.attach(vector, &self.changed)
    }

    fn set_queue_vector(&mut self, index: usize, vector: u16) -> Result<()> {
        let vector = self.existing(vector);
        let queue = &mut self.common.queues[index];
        self.msix.detach(queue.vector, &queue.call)?;
        queue.vector = vector;
        self.msix.attach(vector, &queue.call)
    }

    /// A driver that asks for a vector that does not exist gets none, and sees that.
    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.count() { vector } else { NO_VECTOR }
    }

    /// The place in the registers that configuration space gives access to, and how many bytes of it.
    fn accessed(&self) -> Option<(u64, usize)> {
        let at = u64::from(self.space.u32(self.access_at + ACCESS_OFFSET));
        let len = self.space.u32(self.access_at + ACCESS_LEN) as usize;
        let is_whole = matches!(len, 1 | 2 | 4) && at.is_multiple_of(len as u64);
        (is_whole && at < REGISTERS_LEN).then_some((at, len))
    }

    fn is_access(&self, at: usize) -> bool {
        at == self.access_at + ACCESS_DATA
    }
}

impl Function for VirtioFunction {
    fn read_config(&self, at: usize, data: &mut [u8]) {
        let state = &mut *lock(&self.state);
        state.space.read(at, data);
        if state.is_access(at)
            && let Some((register, len)) = state.accessed()
            && len <= data.len()
        {
            self.read_register(state, register, &mut data[..len]);
        }
    }

    fn write_config(&self, at: usize, data: &[u8]) {
        let state = &mut *lock(&self.state);
        state.space.write(at, data);
        let control_at = state.msix_at + MSIX_CONTROL_AT;
        if (at..at + data.len()).contains(&(control_at + 1)) {
            self.report(state.msix.control(state.space.u16(control_at)));
        }
        if state.is_access(at)
            && let Some((register, len)) = state.accessed()
            && len <= data.len()
        {
            self.report(self.write_register(state, register, &data[..len]));
        }
        self.report(self.settle_notifications(state).context("cannot place its notifications"));
    }

    fn registers(&self) -> Option<Range<u64>> {
        let at = lock(&self.state).registers_at()?;
        Some(at..at + REGISTERS_LEN)
    }

    fn read(&self, at: u64, data: &mut [u8]) {
        self.read_register(&mut lock(&self.state), at, data);
    }

    fn write(&self, at: u64, data: &[u8]) {
        let state = &mut *lock(&self.state);
        self.report(self.write_register(state, at, data));
    }
}

/// The configuration space, and where its capabilities for MSI-X and for access through configuration space are.
fn space(kind: DeviceKind, msix: &Msix, at: u64) -> (ConfigSpace, usize, usize) {
    let mut space = ConfigSpace::new(VENDOR, DEVICE_BASE + kind.0, kind.class());
    space.set(offset::REVISION, &[REVISION]);
    space.set(offset::SUBSYSTEM_VENDOR, &VENDOR.to_le_bytes());
    space.set(offset::SUBSYSTEM, &(DEVICE_BASE + kind.0).to_le_bytes());
    space.set(offset::BAR_0, &(at as u32).to_le_bytes());
    space.allow(offset::BAR_0, &(!(REGISTERS_LEN as u32 - 1)).to_le_bytes());
    let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
    space.allow(offset::COMMAND, &command.to_le_bytes());
    let msix_at = add_msix(&mut space, msix);
    let notifications = NOTIFICATION_STEP * u64::from(msix.count() - 1);
    add_place(&mut space, KIND_COMMON, COMMON, common::LEN, &[]);
    add_place(&mut space, KIND_INTERRUPT_STATUS, INTERRUPT_STATUS, 4, &[]);
    add_place(&mut space, KIND_DEVICE_CONFIG, DEVICE_CONFIG, DEVICE_CONFIG_LEN, &[]);
    let step = (NOTIFICATION_STEP as u32).to_le_bytes();
    add_place(&mut space, KIND_NOTIFICATIONS, NOTIFICATIONS, notifications, &step);
    let access_at = add_place(&mut space, KIND_CONFIG_ACCESS, 0, 0, &[0; 4]);
    // The BAR, of which there is one, stays as it is.
    space.allow(access_at + ACCESS_OFFSET, &[0xff; ACCESS_DATA + 4 - ACCESS_OFFSET]);
    (space, msix_at, access_at)
}

fn add_msix(space: &mut ConfigSpace, msix: &Msix) -> usize {
    let mut body = (msix.count() - 1).to_le_bytes().to_vec();
    body.extend((MSIX_TABLE as u32).to_le_bytes());
    body.extend((MSIX_PENDING as u32).to_le_bytes());
    let at = space.add_capability(CAPABILITY_MSIX, &body);
    // Enabled, and masked.
    space.allow(at + MSIX_CONTROL_AT, &[0, 0xc0]);
    at
}

/// Adds a capability that says where a structure of this kind is in the registers.
fn add_place(space: &mut ConfigSpace, kind: u8, at: u64, len: u64, more: &[u8]) -> usize {
    let cap_len = 16 + more.len() as u8;
    // Its length, its kind, the BAR, and what tells several of a kind apart.
    let mut body = vec![cap_len, kind, 0, 0, 0, 0];
    body.extend((at as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more);
    space.add_capability(CAPABILITY_VENDOR, &body)
}

const _: () = assert!(MSIX_TABLE + pci::VECTOR_COUNT_MAX as u64 * VECTOR_LEN <= MSIX_PENDING);
const _: () =
    assert!(NOTIFICATIONS + pci::VECTOR_COUNT_MAX as u64 * NOTIFICATION_STEP <= MSIX_TABLE);
