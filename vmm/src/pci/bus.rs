//! Bus 0 and how the guest gets at it: configuration through memory (ECAM) and through ports, registers through memory.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::layout;

/// Devices of a bus.
const DEVICE_COUNT: usize = 32;
/// log2 of the bytes of configuration space by which ECAM tells functions apart.
const ECAM_FUNCTION_BITS: u32 = 12;
/// Functions of a device: there is only ever the first.
const FUNCTIONS_PER_DEVICE: usize = 8;
/// The address port: what the data port reaches is configuration space.
const ADDRESS_ENABLED: u32 = 1 << 31;

/// A function, as the processors see it. Each may be used by several at once.
pub trait Function: Debug + Send + Sync {
    /// The guest reads configuration space.
    fn read_config(&self, at: usize, data: &mut [u8]);
    /// The guest writes configuration space.
    fn write_config(&self, at: usize, data: &[u8]);
    /// Where the registers are, if they are anywhere.
    fn registers(&self) -> Option<Range<u64>>;
    /// The guest reads registers, `at` bytes from their start.
    fn read(&self, at: u64, data: &mut [u8]);
    /// The guest writes registers, `at` bytes from their start.
    fn write(&self, at: u64, data: &[u8]);
}

/// See the module.
#[derive(Debug)]
pub struct Bus {
    functions: Vec<Arc<dyn Function>>,
    /// What was last written to the address port.
    address: AtomicU32,
}

impl Bus {
    /// Most functions.
    pub const FUNCTION_COUNT_MAX: usize = DEVICE_COUNT;

    /// Each of `functions` as the only one of the device with its index.
    pub fn new(functions: Vec<Arc<dyn Function>>) -> Self {
        assert!(functions.len() <= Self::FUNCTION_COUNT_MAX);
        Self { functions, address: AtomicU32::new(0) }
    }

    /// The guest reads memory where there is none; whether somebody answers.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        if let Some(at) = ecam_offset(address) {
            self.read_config(at >> ECAM_FUNCTION_BITS, in_function(at), data);
            return true;
        }
        let found = self.find(address);
        if let Some((function, at)) = found {
            function.read(at, data);
        }
        found.is_some()
    }

    /// The guest writes memory where there is none.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some(at) = ecam_offset(address) {
            self.write_config(at >> ECAM_FUNCTION_BITS, in_function(at), data);
        } else if let Some((function, at)) = self.find(address) {
            function.write(at, data);
        }
    }

    /// The guest reads `port`, one of the eight of the address and the data port.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        match (port, self.addressed(port)) {
            (layout::PCI_ADDRESS_PORT, _) if data.len() == 4 => {
                data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
            }
            (layout::PCI_DATA_PORT.., Some((function, at))) => self.read_config(function, at, data),
            _ => data.fill(0xff),
        }
    }

    /// The guest writes `port`, one of the eight of the address and the data port.
    pub fn write_port(&self, port: u16, data: &[u8]) {
        match (port, self.addressed(port), <[u8; 4]>::try_from(data)) {
            (layout::PCI_ADDRESS_PORT, _, Ok(address)) => {
                self.address.store(u32::from_le_bytes(address), Ordering::Relaxed);
            }
            (layout::PCI_DATA_PORT.., Some((function, at)), _) => {
                self.write_config(function, at, data);
            }
            _ => {}
        }
    }

    /// Number of the function, and offset in its configuration space, that the data port `port` stands for.
    fn addressed(&self, port: u16) -> Option<(u64, usize)> {
        let address = self.address.load(Ordering::Relaxed);
        let at = (address & 0xfc) as usize + usize::from(port & 3);
        (address & ADDRESS_ENABLED != 0).then_some((u64::from(address >> 8 & 0xffff), at))
    }

    fn read_config(&self, number: u64, at: usize, data: &mut [u8]) {
        match self.function(number) {
            Some(function) => function.read_config(at, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&self, number: u64, at: usize, data: &[u8]) {
        if let Some(function) = self.function(number) {
            function.write_config(at, data);
        }
    }

    /// The function with this number: bus, device, function, in bits 8, 5 and 3.
    fn function(&self, number: u64) -> Option<&Arc<dyn Function>> {
        let number = usize::try_from(number).ok()?;
        let is_first = number.is_multiple_of(FUNCTIONS_PER_DEVICE);
        self.functions.get(number / FUNCTIONS_PER_DEVICE).filter(|_| is_first)
    }

    /// Whose register `address` is, and which.
    fn find(&self, address: u64) -> Option<(&Arc<dyn Function>, u64)> {
        self.functions.iter().find_map(|function| {
            let range = function.registers().filter(|range| range.contains(&address))?;
            Some((function, address - range.start))
        })
    }
}

fn ecam_offset(address: u64) -> Option<u64> {
    address.checked_sub(layout::ECAM).filter(|&at| at < layout::ECAM_LEN)
}

fn in_function(at: u64) -> usize {
    (at & ((1 << ECAM_FUNCTION_BITS) - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::HostBridge;

    fn bus() -> Bus {
        Bus::new(vec![Arc::new(HostBridge::new()), Arc::new(HostBridge::new())])
    }

    #[test]
    fn ports_and_memory_reach_the_same_function() {
        let bus = bus();
        let mut data = [0; 4];
        assert!(bus.read_memory(layout::ECAM + (1 << 15), &mut data));
        assert_eq!(u32::from_le_bytes(data), 0x0d57_8086);
        bus.write_port(layout::PCI_ADDRESS_PORT, &(ADDRESS_ENABLED | 1 << 11).to_le_bytes());
        let mut data = [0; 2];
        bus.read_port(layout::PCI_DATA_PORT + 2, &mut data);
        assert_eq!(data, [0x57, 0x0d]);
    }

    #[test]
    fn nobody_answers_elsewhere() {
        let bus = bus();
        let mut data = [0; 4];
        // The second function of the first device, and the third device.
        for at in [1 << 12, 2 << 15] {
            assert!(bus.read_memory(layout::ECAM + at, &mut data));
            assert_eq!(data, [0xff; 4]);
        }
        // Another bus, and the ports while they are not enabled.
        for address in [ADDRESS_ENABLED | 1 << 16, 0] {
            bus.write_port(layout::PCI_ADDRESS_PORT, &address.to_le_bytes());
            bus.read_port(layout::PCI_DATA_PORT, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
        assert!(!bus.read_memory(layout::PCI_WINDOW, &mut data));
    }
}
