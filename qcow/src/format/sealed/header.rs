//! The header: what makes an authenticated image a qcow2 image that every other program refuses, and tells why.
//!
//! All of it is one sector, with a checksum at its end. It is written when the image is made, and again for the size that it
//! tells other programs; what counts for us, the size among it, stands in the root.

use crate::crypt::seal::{ImageId, SealKind};
use crate::error::{Error, Result};
use crate::format::bytes::Reader;
use crate::format::compression::CompressionType;
use crate::limits::{SEALED_CLUSTER_BITS_MAX, SEALED_CLUSTER_BITS_MIN, SECTOR_BYTES};

/// Bytes of the header.
pub const HEADER_LEN: usize = SECTOR_BYTES as usize;
/// First bytes of every qcow2 image.
const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
/// Bytes of the fields in front of the extensions.
const FIELDS_LEN: u32 = 104;
/// The incompatible feature that an authenticated image has.
const FEATURE_BIT: u32 = 41;
/// Its name, which other programs show in their refusal.
pub const FEATURE_NAME: &str = "authenticated image ('qcow convert' reads it)";
const FEATURE_NAMES: u32 = 0x6803_f857;
/// Our own extension.
const EXTENSION: u32 = 0x7a1c_95e5;
const EXTENSION_LEN: usize = 24;
const VERSION: u8 = 1;
/// Where the checksum stands.
const CHECKSUM_AT: usize = HEADER_LEN - 4;

/// The header of an authenticated image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedHeader {
    /// Bytes of the disk, as others see it.
    pub size: u64,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// How it is sealed.
    pub kind: SealKind,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// Its identity.
    pub image: ImageId,
}

impl SealedHeader {
    /// Whether an image that starts with `prefix` is an authenticated one, as far as 80 bytes tell.
    pub fn is_at(prefix: &[u8]) -> bool {
        let mut reader = Reader::new(prefix);
        let is_qcow2 = reader.u32() == Some(MAGIC) && reader.u32().is_some_and(|v| v >= 3);
        let mut reader = Reader::new(prefix.get(72..).unwrap_or_default());
        is_qcow2 && reader.u64().is_some_and(|features| features >> FEATURE_BIT & 1 == 1)
    }

    /// The sector of the header.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
        put(&MAGIC.to_be_bytes());
        put(&3_u32.to_be_bytes());
        put(&[0; 12]); // no backing file that others could open
        put(&self.cluster_bits.to_be_bytes());
        put(&self.size.to_be_bytes());
        put(&[0; 40]); // no encryption, tables or snapshots as others know them
        put(&(1_u64 << FEATURE_BIT).to_be_bytes());
        put(&[0; 16]); // no other features
        put(&4_u32.to_be_bytes()); // counts of 16 bits, if there were any
        put(&FIELDS_LEN.to_be_bytes());
        put(&FEATURE_NAMES.to_be_bytes());
        put(&48_u32.to_be_bytes());
        let mut name = [0; 48];
        name[1] = FEATURE_BIT as u8;
        name[2..2 + FEATURE_NAME.len()].copy_from_slice(FEATURE_NAME.as_bytes());
        put(&name);
        put(&EXTENSION.to_be_bytes());
        put(&(EXTENSION_LEN as u32).to_be_bytes());
        put(&[VERSION, self.kind.to_byte(), self.compression.to_disk(), 0, 0, 0, 0, 0]);
        put(&self.image.0);
        put(&[0; 8]); // the end of the extensions
        out.resize(CHECKSUM_AT, 0);
        out.extend_from_slice(&crc32c::crc32c(&out).to_be_bytes());
        out
    }

    /// The header in the first sector of an image.
    ///
    /// # Errors
    /// It is damaged, of a version that is not known, or none of an authenticated image.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if !Self::is_at(bytes) || bytes.len() < HEADER_LEN {
            return Err(Error::corrupt("no header of an authenticated image"));
        }
        let bytes = &bytes[..HEADER_LEN];
        if crc32c::crc32c(&bytes[..CHECKSUM_AT]).to_be_bytes() != bytes[CHECKSUM_AT..] {
            return Err(Error::corrupt("the header of the authenticated image is damaged"));
        }
        let short = || Error::corrupt("the header of the authenticated image is cut short");
        let mut reader = Reader::new(&bytes[20..]);
        let cluster_bits = reader.u32().ok_or_else(short)?;
        let size = reader.u64().ok_or_else(short)?;
        let extension = find_extension(&bytes[FIELDS_LEN as usize..]).ok_or_else(short)?;
        let mut reader = Reader::new(extension);
        let version = reader.u8().ok_or_else(short)?;
        if version != VERSION || extension.len() != EXTENSION_LEN {
            let what = format!("authenticated images of version {version}, not {VERSION}");
            return Err(Error::unsupported(what));
        }
        let kind = reader.u8().and_then(SealKind::from_byte);
        let kind = kind.ok_or_else(|| Error::unsupported("an unknown kind of seals"))?;
        let compression = reader.u8().and_then(CompressionType::from_disk);
        let compression =
            compression.ok_or_else(|| Error::unsupported("an unknown compression"))?;
        reader.take(5).ok_or_else(short)?;
        let image = ImageId(reader.take(16).ok_or_else(short)?.try_into().map_err(|_| short())?);
        if !(SEALED_CLUSTER_BITS_MIN..=SEALED_CLUSTER_BITS_MAX).contains(&cluster_bits) {
            return Err(Error::unsupported(format!("clusters of 2^{cluster_bits} bytes")));
        }
        Ok(Self { size, cluster_bits, kind, compression, image })
    }

    /// Bytes of a cluster.
    pub fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// The data of our extension among those in `area`.
fn find_extension(area: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(area);
    loop {
        let (kind, len) = (reader.u32()?, reader.u32()? as usize);
        let data = reader.take(len)?;
        match kind {
            EXTENSION => return Some(data),
            0 => return None,
            _ => reader.take(len.next_multiple_of(8) - len)?,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::Header;

    fn header() -> SealedHeader {
        SealedHeader {
            size: 12345 << 9,
            cluster_bits: 14,
            kind: SealKind::Aes256Gcm,
            compression: CompressionType::Zstd,
            image: ImageId([7; 16]),
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was() {
        let bytes = header().encode();
        assert_eq!(bytes.len(), HEADER_LEN);
        assert_eq!(SealedHeader::parse(&bytes).unwrap(), header());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = header().encode();
        for bit in 0..HEADER_LEN * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(SealedHeader::parse(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn who_does_not_know_it_says_why() {
        let mut cluster = header().encode();
        cluster.resize(1 << 14, 0);
        let refused = Header::parse(&cluster, 1 << 20).unwrap_err().to_string();
        assert!(refused.contains(FEATURE_NAME), "{refused}");
    }
}
