//! ACPI's sleep control register and reset register: how a guest ends its machine.

use crate::acpi;
use crate::outcome::Outcome;

/// Sleep type and enable bit in the sleep control register (ACPI 6.5, 4.8.3.7).
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
const SLEEP_ENABLE: u8 = 1 << 5;
/// The keyboard controller's command to pulse the processor's reset line.
const PULSE_RESET: u8 = 0xfe;

/// What becomes of the machine when the guest writes `value` to the sleep control register.
pub fn sleep(value: u8) -> Option<Outcome> {
    let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
    let is_off = value & SLEEP_ENABLE != 0 && sleep_type == acpi::SLEEP_TYPE_OFF;
    is_off.then_some(Outcome::PoweredOff)
}

/// What becomes of the machine when the guest writes `value` to the reset register.
pub fn reset(value: u8) -> Option<Outcome> {
    (value == acpi::RESET_VALUE).then_some(Outcome::Reset)
}

/// What becomes of the machine when the guest writes `command` to the keyboard controller.
pub fn pulse(command: u8) -> Option<Outcome> {
    (command == PULSE_RESET).then_some(Outcome::Reset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_soft_off_and_reset_end_the_machine() {
        let count = |of: fn(u8) -> Option<Outcome>| (0..=u8::MAX).filter_map(of).count();
        // The four bits beside type and enable mean nothing.
        assert_eq!(count(sleep), 16);
        assert_eq!((count(reset), count(pulse)), (1, 1));
        assert_eq!(reset(acpi::RESET_VALUE), Some(Outcome::Reset));
    }
}
