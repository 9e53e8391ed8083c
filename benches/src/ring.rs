//! Layout of a split virtqueue in guest memory.

use vm_memory::GuestAddress;

use crate::descriptor::DESCRIPTOR_LEN;
use crate::memory::Arena;
use crate::{Error, Result};

/// Where the three parts of a split virtqueue lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Descriptors the queue holds, a power of two.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: GuestAddress,
    /// Ring of offered chains: flags, index, entries, `used_event`.
    pub available: GuestAddress,
    /// Ring of completed chains: flags, index, entries, `avail_event`.
    pub used: GuestAddress,
}

impl RingLayout {
    /// Bytes of guest memory that a queue of `size` takes at most.
    pub fn bytes(size: u16) -> u64 {
        // The three parts, and what aligning them may waste.
        (DESCRIPTOR_LEN + 2 + 8) * u64::from(size) + 6 + 6 + 32
    }

    /// Sets the parts aside in `arena`, aligned as the specification asks.
    pub fn place(size: u16, arena: &mut Arena) -> Result<Self> {
        if !size.is_power_of_two() || size > 1 << 15 {
            return Err(Error::Invalid(format!(
                "queue size {size}: must be a power of two and at most 32768"
            )));
        }
        let entries = u64::from(size);
        Ok(Self {
            size,
            descriptors: arena.take(DESCRIPTOR_LEN * entries, 16)?,
            available: arena.take(6 + 2 * entries, 2)?,
            used: arena.take(6 + 8 * entries, 4)?,
        })
    }

    /// Entry `index` of the descriptor table.
    pub fn descriptor(&self, index: u16) -> GuestAddress {
        GuestAddress(self.descriptors.0 + DESCRIPTOR_LEN * u64::from(index))
    }

    /// Where the driver counts what it offered.
    pub fn available_index(&self) -> GuestAddress {
        GuestAddress(self.available.0 + 2)
    }

    /// Entry of the available ring for that count, modulo the size.
    pub fn available_entry(&self, index: u16) -> GuestAddress {
        GuestAddress(self.available.0 + 4 + 2 * u64::from(index % self.size))
    }

    /// The driver asks for a call when this used entry is written.
    pub fn used_event(&self) -> GuestAddress {
        GuestAddress(self.available.0 + 4 + 2 * u64::from(self.size))
    }

    /// Where the device counts what it completed.
    pub fn used_index(&self) -> GuestAddress {
        GuestAddress(self.used.0 + 2)
    }

    /// Entry of the used ring for that count, modulo the size.
    pub fn used_entry(&self, index: u16) -> GuestAddress {
        GuestAddress(self.used.0 + 4 + 8 * u64::from(index % self.size))
    }

    /// The device asks for a kick when this available entry is written.
    pub fn avail_event(&self) -> GuestAddress {
        GuestAddress(self.used.0 + 4 + 8 * u64::from(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;

    #[test]
    fn parts_are_aligned_and_do_not_overlap() {
        for size in [1, 2, 256, 1024, 32768] {
            let memory = GuestMemory::new(RingLayout::bytes(size)).unwrap();
            let mut arena = memory.arena();
            let ring = RingLayout::place(size, &mut arena).unwrap();
            assert_eq!(ring.descriptors.0 % 16, 0);
            assert_eq!(ring.available.0 % 2, 0);
            assert_eq!(ring.used.0 % 4, 0);
            assert!(ring.descriptors.0 + 16 * u64::from(size) <= ring.available.0);
            assert!(ring.used_event().0 + 2 <= ring.used.0);
            assert_eq!(ring.avail_event().0, ring.used.0 + 4 + 8 * u64::from(size));
        }
        let memory = GuestMemory::new(1 << 16).unwrap();
        assert!(RingLayout::place(100, &mut memory.arena()).is_err());
    }
}
