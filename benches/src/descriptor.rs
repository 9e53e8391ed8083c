//! Descriptors of a split virtqueue, as they stand in memory.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::GuestAddress;

/// Bytes of one descriptor in a descriptor table.
pub const DESCRIPTOR_LEN: u64 = 16;

/// Another descriptor follows.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The device writes this buffer; otherwise it reads it.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The buffer holds a table of descriptors.
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// One entry of a descriptor table. All fields are free to lie: tests send what no driver would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub addr: GuestAddress,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Table index of the descriptor that follows, with [`NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// A buffer that the device reads.
    pub fn readable(addr: GuestAddress, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    /// A buffer that the device writes.
    pub fn writable(addr: GuestAddress, len: u32) -> Self {
        Self { addr, len, flags: WRITE, next: 0 }
    }

    /// A table of `count` descriptors.
    pub fn indirect(addr: GuestAddress, count: u16) -> Self {
        let len = u32::from(count) * DESCRIPTOR_LEN as u32;
        Self { addr, len, flags: INDIRECT, next: 0 }
    }

    /// The entry as the device reads it.
    pub fn encode(self) -> [u8; DESCRIPTOR_LEN as usize] {
        let mut bytes = [0; DESCRIPTOR_LEN as usize];
        bytes[..8].copy_from_slice(&self.addr.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// Links `descriptors` into one chain, each to the next in the list.
pub fn link(descriptors: &mut [Descriptor]) {
    let last = descriptors.len().saturating_sub(1);
    for (i, descriptor) in descriptors.iter_mut().enumerate() {
        if i < last {
            descriptor.flags |= NEXT;
            descriptor.next = i as u16 + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_encoded_little_endian_in_specification_order() {
        let descriptor =
            Descriptor { addr: GuestAddress(0x0102_0304), len: 5, flags: WRITE, next: 7 };
        assert_eq!(descriptor.encode(), [4, 3, 2, 1, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 7, 0]);
    }

    #[test]
    fn a_linked_chain_ends_at_its_last_descriptor() {
        let mut chain = [Descriptor::readable(GuestAddress(0), 1); 3];
        link(&mut chain);
        assert_eq!(chain.map(|d| (d.flags, d.next)), [(NEXT, 1), (NEXT, 2), (0, 0)]);
    }
}
