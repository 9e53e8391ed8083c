//! The kinds of virtio devices, and what is known of each.

/// Where a disk's configuration says how many queues it has (5.2.4).
const BLOCK_NUM_QUEUES_AT: usize = 34;

/// The number of a kind of virtio device (Virtual I/O Device 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKind(pub u16);

impl DeviceKind {
    /// A disk.
    pub const BLOCK: Self = Self(2);

    /// The most that there may be: modern functions have numbers up to 0x107f.
    pub const MAX: u16 = 0x3f;

    /// Bytes of its configuration.
    pub fn config_len(self) -> usize {
        match self.0 {
            // Network, disk, console, sockets, file system, sound; for others it is empty or not known here.
            1 | 3 | 25 => 12,
            2 => 60,
            19 => 8,
            26 => 40,
            _ => 0,
        }
    }

    /// The configuration as a guest of `queue_count` queues is to see it.
    pub fn shown_config(self, mut config: Vec<u8>, queue_count: u16) -> Vec<u8> {
        if self == Self::BLOCK
            && let Some(field) = config.get_mut(BLOCK_NUM_QUEUES_AT..BLOCK_NUM_QUEUES_AT + 2)
        {
            field.copy_from_slice(&queue_count.to_le_bytes());
        }
        config
    }

    /// What PCI calls it: class, kind, interface.
    pub fn class(self) -> [u8; 3] {
        // Storage, of a kind that no other name fits; or something unknown to PCI.
        if self == Self::BLOCK { [1, 0x80, 0] } else { [0xff, 0, 0] }
    }
}
