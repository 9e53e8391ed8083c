//! What is emulated: a serial line, and the ports that end the machine. Nothing else answers.

mod power;
mod serial;

use crate::layout;

pub use power::Power;
pub use serial::{RawTerminal, SerialLine, SerialTarget};

/// All ports of the machine.
#[derive(Debug)]
pub struct Ports {
    serial: SerialLine,
    power: Power,
}

impl Ports {
    /// These devices at their ports.
    pub fn new(serial: SerialLine, power: Power) -> Self {
        Self { serial, power }
    }

    /// The guest reads `data.len()` bytes from `port`. Where nothing is, all bits are set.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
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

    /// The guest writes `data` to `port`. Where nothing is, nothing happens.
    pub fn write(&self, port: u16, data: &[u8]) {
        let &[byte] = data else { return };
        match port {
            layout::SLEEP_PORT => self.power.sleep(byte),
            layout::RESET_PORT => self.power.reset(byte),
            layout::KEYBOARD_PORT => self.power.pulse(byte),
            _ => {
                if let Some(register) = serial_register(port) {
                    self.serial.write(register, byte);
                }
            }
        }
    }
}

const SLEEP_STATUS_PORT: u16 = layout::SLEEP_PORT + 1;

/// The register of the serial line that `port` is.
fn serial_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(layout::SERIAL_PORT)?;
    (register < 8).then_some(register as u8)
}
