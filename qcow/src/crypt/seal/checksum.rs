//! CRC-32C (RFC 3720, section 12.1) of bytes that lie in several places.

/// The checksum of `parts`, one behind the other.
pub(in crate::crypt) fn crc32c(parts: &[&[u8]]) -> u32 {
    parts.iter().fold(0, |crc, part| ::crc32c::crc32c_append(crc, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4.
    #[test]
    fn checksums_are_the_published_ones() {
        let counting: Vec<u8> = (0..32).collect();
        let down: Vec<u8> = (0..32).rev().collect();
        let mut command = [0; 48];
        for (at, byte) in
            [(0, 1), (1, 0xc0), (16, 0x14), (22, 4), (27, 0x14), (31, 0x18), (32, 0x28), (40, 2)]
        {
            command[at] = byte;
        }
        let cases: [(&[u8], u32); 5] = [
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&counting, 0x46dd_794e),
            (&down, 0x113f_db5c),
            (&command, 0xd996_3a56),
        ];
        for (bytes, checksum) in cases {
            assert_eq!(crc32c(&[bytes]), checksum);
            for at in 0..=bytes.len() {
                assert_eq!(crc32c(&[&bytes[..at], &bytes[at..]]), checksum, "{at}");
            }
        }
    }
}
