//! `--checksum`: the CRC-32C of a disk, read back.

use qcow::disk::Buffer;

use crate::failure::Outcome;
use crate::image::HostImage;

use super::reading;

/// Bytes that are read at a time.
const CHUNK_LEN: u64 = 2 << 20;

/// The CRC-32C of all of the disk. What reads as zeros without being stored is not read.
pub async fn of_disk(image: &HostImage) -> Outcome<u32> {
    let buffer = Buffer::zeroed(CHUNK_LEN as usize).payload();
    let size = image.virtual_size();
    let (mut crc, mut at) = (0, 0);
    while at < size {
        let extent = image.map(at, size - at).await.map_err(|e| reading(at, &e))?;
        if extent.zero {
            crc = append_zeros(crc, extent.len);
            at += extent.len;
            continue;
        }
        let bytes = buffer.slice(0, extent.len.min(CHUNK_LEN));
        image.read(at, &bytes).await.map_err(|e| reading(at, &e))?;
        crc = crc32c::crc32c_append(crc, &bytes.to_vec());
        at += bytes.len();
    }
    Ok(crc)
}

/// The checksum of what has the checksum `crc`, with `len` zeros behind it.
fn append_zeros(crc: u32, len: u64) -> u32 {
    let (mut crc, mut left) = (crc, usize::try_from(len).unwrap_or(usize::MAX));
    // The checksum of `count` zeros, for powers of two.
    let (mut zeros, mut count) = (crc32c::crc32c(&[0]), 1_usize);
    while left > 0 {
        if left & 1 == 1 {
            crc = crc32c::crc32c_combine(crc, zeros, count);
        }
        left >>= 1;
        if left > 0 {
            zeros = crc32c::crc32c_combine(zeros, zeros, count);
            count *= 2;
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_that_are_not_read_count_as_those_that_are() {
        for len in [0, 1, 2, 3, 511, 4096, 65_537, 3_000_000] {
            let zeros = vec![0; len];
            for crc in [0, 0xdead_beef] {
                assert_eq!(
                    append_zeros(crc, len as u64),
                    crc32c::crc32c_append(crc, &zeros),
                    "{len} zeros behind {crc:x}"
                );
            }
        }
    }
}
