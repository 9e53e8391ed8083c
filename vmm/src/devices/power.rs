//! ACPI's sleep control register and reset register: how a guest ends its machine.

use std::sync::mpsc::Sender;

use crate::acpi;
use crate::outcome::{Event, Outcome};

/// Sleep type and enable bit in the sleep control register (ACPI 6.5, 4.8.3.7).
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
const SLEEP_ENABLE: u8 = 1 << 5;
/// The keyboard controller's command to pulse the processor's reset line.
const PULSE_RESET: u8 = 0xfe;

/// Tells the machine when the guest is done.
#[derive(Debug)]
pub struct Power {
    end: Sender<Event>,
}

impl Power {
    /// Says so through `end`.
    pub fn new(end: Sender<Event>) -> Self {
        Self { end }
    }

    /// The guest writes `value` to the sleep control register.
    pub fn sleep(&self, value: u8) {
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        if value & SLEEP_ENABLE != 0 && sleep_type == acpi::SLEEP_TYPE_OFF {
            self.end(Outcome::PoweredOff);
        }
    }

    /// The guest writes `value` to the reset register.
    pub fn reset(&self, value: u8) {
        if value == acpi::RESET_VALUE {
            self.end(Outcome::Reset);
        }
    }

    /// The guest writes `command` to the keyboard controller.
    pub fn pulse(&self, command: u8) {
        if command == PULSE_RESET {
            self.end(Outcome::Reset);
        }
    }

    fn end(&self, outcome: Outcome) {
        // Nobody listens any more where another processor was first.
        let _ = self.end.send(Event::Ended(outcome));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn only_soft_off_and_reset_end_the_machine() {
        let (end, outcomes) = channel();
        let power = Power::new(end);
        for value in 0..=u8::MAX {
            power.sleep(value);
        }
        let ended = || {
            let event = outcomes.try_iter();
            event.map(
                |event| if let Event::Ended(outcome) = event { outcome } else { unreachable!() },
            )
        };
        // The four bits beside type and enable mean nothing.
        assert_eq!(ended().filter(|outcome| *outcome == Outcome::PoweredOff).count(), 16);
        for value in 0..=u8::MAX {
            power.reset(value);
        }
        assert_eq!(ended().collect::<Vec<_>>(), [Outcome::Reset]);
    }
}
