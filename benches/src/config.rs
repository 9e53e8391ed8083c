//! The configuration space of a virtio-blk device.

use serde::Serialize;

/// Bytes of `struct virtio_blk_config` up to and with the write-zeroes fields.
pub const CONFIG_LEN: usize = 60;

/// Bytes of a virtio-blk sector, whatever the logical block size is.
pub const SECTOR: u64 = 512;

/// The device's limits, as it states them. Which of them mean something depends on the negotiated
/// features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BlkConfig {
    /// Size of the disk in sectors of 512 bytes.
    pub capacity: u64,
    /// Largest buffer of one descriptor in bytes; 0: no limit.
    pub size_max: u32,
    /// Most data descriptors in one request; 0: no limit.
    pub seg_max: u32,
    /// Logical block size in bytes.
    pub blk_size: u32,
    /// 1: the device's cache is write-back.
    pub writeback: u8,
    /// Queues of the device.
    pub num_queues: u16,
    /// Most sectors in one discard segment.
    pub max_discard_sectors: u32,
    /// Most segments in one discard.
    pub max_discard_seg: u32,
    /// Alignment in sectors below which a discard may do nothing.
    pub discard_sector_alignment: u32,
    /// Most sectors in one write-zeroes segment.
    pub max_write_zeroes_sectors: u32,
    /// Most segments in one write-zeroes.
    pub max_write_zeroes_seg: u32,
    /// 1: write-zeroes with the unmap flag may free space.
    pub write_zeroes_may_unmap: u8,
}

impl BlkConfig {
    /// Takes the fields out of the configuration space.
    pub fn parse(bytes: &[u8; CONFIG_LEN]) -> Self {
        Self {
            capacity: u64::from_le_bytes(field(bytes, 0)),
            size_max: u32::from_le_bytes(field(bytes, 8)),
            seg_max: u32::from_le_bytes(field(bytes, 12)),
            blk_size: u32::from_le_bytes(field(bytes, 20)),
            writeback: bytes[32],
            num_queues: u16::from_le_bytes(field(bytes, 34)),
            max_discard_sectors: u32::from_le_bytes(field(bytes, 36)),
            max_discard_seg: u32::from_le_bytes(field(bytes, 40)),
            discard_sector_alignment: u32::from_le_bytes(field(bytes, 44)),
            max_write_zeroes_sectors: u32::from_le_bytes(field(bytes, 48)),
            max_write_zeroes_seg: u32::from_le_bytes(field(bytes, 52)),
            write_zeroes_may_unmap: bytes[56],
        }
    }

    /// Size of the disk in bytes.
    pub fn bytes(&self) -> u64 {
        self.capacity.saturating_mul(SECTOR)
    }
}

fn field<const N: usize>(bytes: &[u8; CONFIG_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        let bytes: [u8; CONFIG_LEN] = std::array::from_fn(|i| i as u8);
        let config = BlkConfig::parse(&bytes);
        assert_eq!(config.capacity, 0x0706_0504_0302_0100);
        assert_eq!(config.blk_size, 0x1716_1514);
        assert_eq!((config.writeback, config.num_queues), (32, 0x2322));
        assert_eq!(config.max_write_zeroes_seg, 0x3736_3534);
        assert_eq!(config.write_zeroes_may_unmap, 56);
    }
}
