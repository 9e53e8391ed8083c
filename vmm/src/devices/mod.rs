//! What the processors find where there is no memory: the PCI bus, a serial line, and the ports that end the machine. Nothing
//! else answers.

mod power;
mod serial;

use crate::layout;
use crate::outcome::Outcome;
use crate::pci::Bus;

pub use serial::{SerialLine, SerialTarget};

/// All devices of the machine.
#[derive(Debug)]
pub struct Devices {
    serial: SerialLine,
    bus: Bus,
}

impl Devices {
    /// These devices at their ports and addresses.
    pub fn new(serial: SerialLine, bus: Bus) -> Self {
        Self { serial, bus }
    }

    /// The guest reads where there is no memory. Where nothing is, all bits are set.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        if !self.bus.read_memory(address, data) {
            data.fill(0xff);
        }
    }

    /// The guest writes where there is no memory. Where nothing is, nothing happens.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        self.bus.write_memory(address, data);
    }

    /// The guest reads `data.len()` bytes from `port`. Where nothing is, all bits are set.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if is_of_bus(port, data) {
            return self.bus.read_port(port, data);
        }
        let [byte] = data else { return };
        match port {
            _ if serial_register(port).is_some() => {
                *byte = self.serial.read(serial_register(port).expect("just seen"));
            }
            // Nothing is in the way of a command.
            layout::SLEEP_PORT..=SLEEP_STATUS_PORT | layout::KEYBOARD_PORT => *byte = 0,
            _ => {}
        }
    }

    /// The guest writes `data` to `port`; what becomes of the machine, if that ends it. Where nothing is, nothing happens.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<Outcome> {
        if is_of_bus(port, data) {
            self.bus.write_port(port, data);
            return None;
        }
        let &[byte] = data else { return None };
        match port {
            layout::SLEEP_PORT => power::sleep(byte),
            layout::RESET_PORT => power::reset(byte),
            layout::KEYBOARD_PORT => power::pulse(byte),
            _ => {
                if let Some(register) = serial_register(port) {
                    self.serial.write(register, byte);
                }
                None
            }
        }
    }
}

/// Whether an access is one to the PCI bus. The reset register lies among its ports, and is one byte.
fn is_of_bus(port: u16, data: &[u8]) -> bool {
    let is_reset = port == layout::RESET_PORT && data.len() == 1;
    (layout::PCI_ADDRESS_PORT..=layout::PCI_DATA_PORT_LAST).contains(&port) && !is_reset
}

const SLEEP_STATUS_PORT: u16 = layout::SLEEP_PORT + 1;

/// The register of the serial line that `port` is.
fn serial_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(layout::SERIAL_PORT)?;
    (register < 8).then_some(register as u8)
}
