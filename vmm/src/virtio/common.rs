//! The common configuration structure (Virtual I/O Device 1.2, 4.1.4.3): what driver and device agree on, register by register.
//!
//! This is the state alone. What follows from a change - starting, stopping, another vector - is told to the caller.

use super::queue::Queue;
use super::{NO_VECTOR, status};

/// Bytes of the structure.
pub const LEN: u64 = 0x38;

/// Virtio 1: there is no other kind of device here.
const VERSION_1: u64 = 1 << 32;

/// Offsets of its fields.
mod field {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_AVAILABLE: u64 = 0x28;
    pub const QUEUE_USED: u64 = 0x30;
    pub const END: u64 = 0x38;
}

/// What the driver has told so far.
#[derive(Debug)]
pub struct Common {
    /// What the device has, one bit each.
    pub offered: u64,
    /// What the driver has accepted, one bit each.
    pub accepted: u64,
    /// Device status.
    pub status: u8,
    /// Counts changes of the device's configuration.
    pub generation: u8,
    /// Vector for changes of the configuration.
    pub config_vector: u16,
    /// All queues.
    pub queues: Vec<Queue>,
    offered_select: u32,
    accepted_select: u32,
    queue_select: u16,
}

/// What follows from a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The queues are to be served from now on.
    Start,
    /// The device is reset; until that is done, the status is what it was.
    Reset,
    /// Changes of the configuration are to interrupt by this vector.
    ConfigVector(u16),
    /// This queue is to interrupt by this vector.
    QueueVector(usize, u16),
}

impl Common {
    /// A device that has these features and queues.
    pub fn new(offered: u64, queues: Vec<Queue>) -> Self {
        Self {
            offered,
            accepted: 0,
            status: 0,
            generation: 0,
            config_vector: NO_VECTOR,
            queues,
            offered_select: 0,
            accepted_select: 0,
            queue_select: 0,
        }
    }

    /// The driver reads, `at` bytes from the start.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        let (start, value) = self.field(at);
        let bytes = value.to_le_bytes();
        let at = (at - start) as usize;
        for (byte, at) in data.iter_mut().zip(at..) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// The field that byte `at` is in: where it starts, and what it holds.
    fn field(&self, at: u64) -> (u64, u64) {
        use field::*;
        let queue = self.queue();
        let of_queue = |get: fn(&Queue) -> u64| queue.map_or(0, get);
        match at {
            DEVICE_FEATURE_SELECT..DEVICE_FEATURE => {
                (DEVICE_FEATURE_SELECT, self.offered_select.into())
            }
            DEVICE_FEATURE..DRIVER_FEATURE_SELECT => {
                (DEVICE_FEATURE, half(self.offered, self.offered_select).into())
            }
            DRIVER_FEATURE_SELECT..DRIVER_FEATURE => {
                (DRIVER_FEATURE_SELECT, self.accepted_select.into())
            }
            DRIVER_FEATURE..CONFIG_VECTOR => {
                (DRIVER_FEATURE, half(self.accepted, self.accepted_select).into())
            }
            CONFIG_VECTOR..NUM_QUEUES => (CONFIG_VECTOR, self.config_vector.into()),
            NUM_QUEUES..DEVICE_STATUS => (NUM_QUEUES, self.queues.len() as u64),
            DEVICE_STATUS => (DEVICE_STATUS, self.status.into()),
            CONFIG_GENERATION => (CONFIG_GENERATION, self.generation.into()),
            QUEUE_SELECT..QUEUE_SIZE => (QUEUE_SELECT, self.queue_select.into()),
            QUEUE_SIZE..QUEUE_VECTOR => (QUEUE_SIZE, of_queue(|queue| queue.size.into())),
            QUEUE_VECTOR..QUEUE_ENABLE => {
                (QUEUE_VECTOR, queue.map_or(NO_VECTOR, |queue| queue.vector).into())
            }
            QUEUE_ENABLE..QUEUE_NOTIFY_OFF => {
                (QUEUE_ENABLE, of_queue(|queue| queue.enabled.into()))
            }
            QUEUE_NOTIFY_OFF..QUEUE_DESCRIPTORS => (QUEUE_NOTIFY_OFF, self.queue_select.into()),
            QUEUE_DESCRIPTORS..QUEUE_AVAILABLE => {
                (QUEUE_DESCRIPTORS, of_queue(|queue| queue.descriptors))
            }
            QUEUE_AVAILABLE..QUEUE_USED => (QUEUE_AVAILABLE, of_queue(|queue| queue.available)),
            QUEUE_USED..END => (QUEUE_USED, of_queue(|queue| queue.used)),
            _ => (at, 0),
        }
    }

    /// The driver writes, `at` bytes from the start: a field, or half of one of 64 bits.
    pub fn write(&mut self, at: u64, data: &[u8]) -> Effect {
        use field::*;
        let mut bytes = [0; 8];
        if data.len() > bytes.len() {
            return Effect::None;
        }
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        match at {
            DEVICE_FEATURE_SELECT => self.offered_select = value as u32,
            DRIVER_FEATURE_SELECT => self.accepted_select = value as u32,
            DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 => self.accept(value as u32),
            CONFIG_VECTOR => return Effect::ConfigVector(value as u16),
            DEVICE_STATUS => return self.set_status(value as u8),
            QUEUE_SELECT => self.queue_select = value as u16,
            QUEUE_VECTOR if self.queue().is_some() => {
                return Effect::QueueVector(self.queue_select.into(), value as u16);
            }
            _ => self.write_queue(at, value, data.len()),
        }
        Effect::None
    }

    fn write_queue(&mut self, at: u64, value: u64, len: usize) {
        use field::*;
        let is_live = self.status & status::DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        // Neither the standard nor whoever serves the queue knows of changes to one that is in use.
        if queue.enabled || is_live {
            return;
        }
        match at {
            QUEUE_SIZE => queue.set_size(value as u16),
            QUEUE_ENABLE => queue.enabled = value & 1 != 0,
            QUEUE_DESCRIPTORS..QUEUE_AVAILABLE => {
                set_address(&mut queue.descriptors, at - QUEUE_DESCRIPTORS, value, len);
            }
            QUEUE_AVAILABLE..QUEUE_USED => {
                set_address(&mut queue.available, at - QUEUE_AVAILABLE, value, len);
            }
            QUEUE_USED..END => set_address(&mut queue.used, at - QUEUE_USED, value, len),
            _ => {}
        }
    }

    fn accept(&mut self, bits: u32) {
        match self.accepted_select {
            0 => self.accepted = self.accepted & !u64::from(u32::MAX) | u64::from(bits),
            1 => self.accepted = self.accepted & u64::from(u32::MAX) | u64::from(bits) << 32,
            _ => {}
        }
    }

    fn set_status(&mut self, wanted: u8) -> Effect {
        if wanted == 0 {
            return Effect::Reset;
        }
        let before = self.status;
        // A driver that accepts what is not offered learns of it by this bit staying clear.
        let agreed = self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0;
        let refused = if agreed { 0 } else { status::FEATURES_OK };
        // Only a reset clears bits.
        self.status = before | wanted & !refused & !status::NEEDS_RESET;
        let is_ready = self.status & status::FEATURES_OK != 0;
        let starts = self.status & !before & status::DRIVER_OK != 0;
        if starts && is_ready { Effect::Start } else { Effect::None }
    }

    /// Forgets what the driver has told, but for vectors.
    pub fn reset(&mut self) {
        self.accepted = 0;
        self.status = 0;
        (self.offered_select, self.accepted_select, self.queue_select) = (0, 0, 0);
        self.queues.iter_mut().for_each(Queue::reset);
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.queue_select))
    }
}

/// 32 of 64 features.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Writes the lower or upper half of an address, or all of it.
fn set_address(address: &mut u64, at: u64, value: u64, len: usize) {
    match (at, len) {
        (0, 8) => *address = value,
        (0, 4) => *address = *address & !u64::from(u32::MAX) | value,
        (4, 4) => *address = *address & u64::from(u32::MAX) | value << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUSH: u64 = 1 << 9;

    fn common() -> Common {
        let queues = (0..2).map(|_| Queue::new().expect("an eventfd")).collect();
        Common::new(VERSION_1 | FLUSH, queues)
    }

    fn accept(common: &mut Common, features: u64) {
        for (select, bits) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            common.write(field::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            common.write(field::DRIVER_FEATURE, &bits.to_le_bytes());
        }
    }

    #[test]
    fn features_that_are_not_offered_are_refused() {
        let mut common = common();
        for (features, expected) in [(VERSION_1 | 1 << 3, 3), (FLUSH, 3), (VERSION_1 | FLUSH, 11)] {
            accept(&mut common, features);
            assert_eq!(common.write(field::DEVICE_STATUS, &[11]), Effect::None);
            assert_eq!(common.status, expected, "{features:#x}");
        }
        assert_eq!(common.write(field::DEVICE_STATUS, &[15]), Effect::Start);
        assert_eq!(common.write(field::DEVICE_STATUS, &[15]), Effect::None);
        accept(&mut common, VERSION_1);
        assert_eq!(common.accepted, VERSION_1 | FLUSH, "they are settled");
    }

    #[test]
    fn a_queue_is_told_in_halves_and_settled_when_enabled() {
        let mut common = common();
        common.write(field::QUEUE_SELECT, &1_u16.to_le_bytes());
        common.write(field::QUEUE_SIZE, &100_u16.to_le_bytes());
        common.write(field::QUEUE_SIZE, &64_u16.to_le_bytes());
        common.write(field::QUEUE_USED, &0x2000_u32.to_le_bytes());
        common.write(field::QUEUE_USED + 4, &1_u32.to_le_bytes());
        common.write(field::QUEUE_ENABLE, &1_u16.to_le_bytes());
        common.write(field::QUEUE_SIZE, &32_u16.to_le_bytes());
        let ring = common.queues[1].ring(1).expect("enabled");
        assert_eq!((ring.size, ring.used), (64, 0x1_0000_2000));
        assert!(common.queues[0].ring(0).is_none());
        common.write(field::QUEUE_SELECT, &2_u16.to_le_bytes());
        let mut size = [0xff; 2];
        common.read(field::QUEUE_SIZE, &mut size);
        assert_eq!(size, [0; 2], "there is no such queue");
    }

    #[test]
    fn reads_of_any_width_stay_inside() {
        let common = common();
        let mut data = [0; 8];
        for at in 0..LEN + 8 {
            for len in [1, 2, 4, 8] {
                common.read(at, &mut data[..len]);
            }
        }
        common.read(field::NUM_QUEUES, &mut data[..2]);
        assert_eq!(data[..2], [2, 0]);
    }
}
