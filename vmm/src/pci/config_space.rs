//! A function's configuration space: bytes, and which bits of them the guest may change.

use super::{STATUS_CAPABILITIES, offset};

/// Bytes of a configuration space without PCI Express.
pub const LEN: usize = 256;
/// Where the list of capabilities begins.
const CAPABILITIES_AT: usize = 0x40;

/// See the module.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    /// Where the last capability is, and where the next one goes.
    last: Option<usize>,
    next: usize,
}

impl ConfigSpace {
    /// A function with these numbers, and with nothing that the guest may change.
    pub fn new(vendor: u16, device: u16, class: [u8; 3]) -> Self {
        let mut space =
            Self { bytes: [0; LEN], writable: [0; LEN], last: None, next: CAPABILITIES_AT };
        space.set(offset::VENDOR, &vendor.to_le_bytes());
        space.set(offset::DEVICE, &device.to_le_bytes());
        let [class, kind, interface] = class;
        space.set(offset::CLASS, &[interface, kind, class]);
        space
    }

    /// Sets bytes, whoever may change them.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Lets the guest change the bits of `mask`.
    pub fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Adds a capability of this kind to the list: `body` follows its first two bytes. Where it is.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next;
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.set(self.last.map_or(offset::CAPABILITIES, |last| last + 1), &[at as u8]);
        let status = self.u16(offset::STATUS) | STATUS_CAPABILITIES;
        self.set(offset::STATUS, &status.to_le_bytes());
        self.last = Some(at);
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// The guest reads. Behind the end everything is zero: there is no PCI Express.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(at..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// The guest writes.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        for (new, at) in data.iter().zip(at..LEN) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
    }

    /// Two bytes as a number.
    pub fn u16(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Four bytes as a number.
    pub fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_changes_only_what_it_may() {
        let mut space = ConfigSpace::new(0x1af4, 0x1042, [1, 0, 0]);
        space.allow(offset::BAR_0, &0xffff_8000_u32.to_le_bytes());
        space.write(0, &[0xff; 64]);
        assert_eq!((space.u32(0), space.u32(offset::BAR_0)), (0x1042_1af4, 0xffff_8000));
        assert_eq!(space.u32(8), 0x0100_0000);
        let mut behind = [0xff; 4];
        space.read(LEN - 2, &mut behind);
        space.write(LEN - 2, &behind);
        assert_eq!(behind, [0; 4]);
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = ConfigSpace::new(1, 2, [0; 3]);
        let first = space.add_capability(0x11, &[0; 10]);
        let second = space.add_capability(0x09, &[14; 13]);
        assert_eq!((first, second), (0x40, 0x4c));
        assert_eq!(usize::from(space.u16(offset::CAPABILITIES)), first);
        assert_eq!((space.u16(first), space.u16(second)), (0x4c11, 0x0009));
        assert_eq!(space.u16(offset::STATUS), STATUS_CAPABILITIES);
    }
}
