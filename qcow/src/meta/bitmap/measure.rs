//! How much space bitmaps take, in memory and in an image file.

use crate::format::bitmap::{BitmapEntry, directory_len};

/// Bits for a disk of `size` bytes, at `1 << granularity_bits` bytes for each.
pub(super) const fn bits_needed(size: u64, granularity_bits: u8) -> u64 {
    size.div_ceil(1 << granularity_bits)
}

/// Bytes of those bits.
pub const fn bytes_needed(size: u64, granularity_bits: u8) -> u64 {
    bits_needed(size, granularity_bits).div_ceil(8)
}

/// Bytes that copies of `entries` may take in a new image with clusters of `cluster_size` bytes and a disk of `size` bytes:
/// the directory, the tables, and all bits as if they had to be written out.
pub fn bytes_measured(entries: &[BitmapEntry], size: u64, cluster_size: u64) -> u64 {
    let whole = |len: u64| len.next_multiple_of(cluster_size);
    let directory: u64 = entries.iter().map(|e| directory_len(e.name.len(), 0)).sum();
    let bitmaps = entries.iter().map(|entry| {
        let bits = whole(bytes_needed(size, entry.granularity_bits));
        bits + whole(bits / cluster_size * 8)
    });
    bitmaps.sum::<u64>() + whole(directory)
}
