//! The configuration space of virtio-blk: what the device tells the driver about itself.

use crate::device::{Device, RANGE_COUNT_MAX, RANGE_SECTORS_MAX, SECTOR};

/// Bytes that may be read: the fields below and zeros (the vhost-user limit on a configuration space).
const CONFIG_LEN: usize = 256;
/// Where the one field lies that a driver may write: 1 for write-back, 0 for write-through.
const WRITEBACK_AT: usize = 32;

/// Most bytes in one buffer of a request; smaller with very long queues, so that no request exceeds 256 MiB.
const SIZE_MAX: u32 = 1 << 20;
/// Bytes of all buffers of a request that respects the limits.
const REQUEST_BYTES_MAX: u32 = 256 << 20;
/// Host pages and disk blocks: writing less means reading first, somewhere below.
const PHYSICAL_BLOCK: u64 = 4096;

/// The configuration space as it is now.
pub fn read(device: &Device) -> [u8; CONFIG_LEN] {
    let shape = device.shape();
    // Two descriptors of a chain are taken by the header and the status byte.
    let seg_max = u32::from(shape.queue_size) - 2;
    let size_max = SIZE_MAX.min(REQUEST_BYTES_MAX / seg_max) & !(PHYSICAL_BLOCK as u32 - 1);
    let cluster = shape.cluster.unwrap_or(PHYSICAL_BLOCK);
    let cluster_sectors = (cluster / SECTOR) as u32;
    let physical_sectors = (PHYSICAL_BLOCK / SECTOR) as u32;

    let mut space = Space([0; CONFIG_LEN]);
    space.put(0, (shape.bytes / SECTOR).to_le_bytes());
    space.put(8, size_max.to_le_bytes());
    space.put(12, seg_max.to_le_bytes());
    space.put(20, (SECTOR as u32).to_le_bytes());
    // A cluster is no physical block: it is not written as one. It is the best size, and what a discard can free.
    space.put(24, [physical_sectors.ilog2() as u8]);
    space.put(26, (physical_sectors as u16).to_le_bytes());
    space.put(28, cluster_sectors.max(physical_sectors).to_le_bytes());
    space.put(WRITEBACK_AT, [u8::from(device.is_write_back_configured())]);
    space.put(34, shape.queue_count.to_le_bytes());
    if device.offers_discard() {
        space.put(36, RANGE_SECTORS_MAX.to_le_bytes());
        space.put(40, RANGE_COUNT_MAX.to_le_bytes());
        space.put(44, cluster_sectors.to_le_bytes());
    }
    if device.is_writable() {
        space.put(48, RANGE_SECTORS_MAX.to_le_bytes());
        space.put(52, RANGE_COUNT_MAX.to_le_bytes());
        space.put(56, [u8::from(device.offers_discard())]);
    }
    space.0
}

/// Carries out a driver's write of `bytes` at `offset`; whether it was one that a driver may do.
pub fn write(device: &Device, offset: usize, bytes: &[u8]) -> bool {
    let now = read(device);
    let Some(end) = offset.checked_add(bytes.len()).filter(|&end| end <= CONFIG_LEN) else {
        return false;
    };
    let mut new = now;
    new[offset..end].copy_from_slice(bytes);
    let write_back = std::mem::replace(&mut new[WRITEBACK_AT], now[WRITEBACK_AT]);
    if new != now || write_back > 1 {
        return false;
    }
    device.configure_write_back(write_back == 1);
    true
}

struct Space([u8; CONFIG_LEN]);

impl Space {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::device::Shape;

    fn device() -> Device {
        let shape = Shape {
            bytes: 1 << 30,
            cluster: Some(1 << 16),
            writable: true,
            discard: true,
            queue_count: 2,
            queue_size: 1024,
            pin_memory: false,
        };
        Device::new(shape, Path::new("disk"))
    }

    #[test]
    fn a_driver_may_change_the_cache_mode_and_nothing_else() {
        let device = device();
        assert!(write(&device, WRITEBACK_AT, &[0]));
        assert!(!device.is_write_back_configured());
        assert!(!write(&device, WRITEBACK_AT, &[2]));
        assert!(!write(&device, 0, &[1]));
        assert!(!write(&device, CONFIG_LEN, &[0]));
        assert!(!write(&device, usize::MAX, &[0]));
        let mut all = read(&device);
        all[WRITEBACK_AT] = 1;
        assert!(write(&device, 0, &all));
        assert!(device.is_write_back_configured());
    }

    #[test]
    fn the_largest_request_is_bounded() {
        let space = read(&device());
        let field = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| space[at + i]));
        assert!(u64::from(field(8)) * u64::from(field(12)) <= u64::from(REQUEST_BYTES_MAX));
        assert_eq!(field(44), 128);
    }
}
