//! The header's fields as they lie on disk, before anyone has judged them.

use super::{HEADER_LENGTH_V2, HEADER_LENGTH_V3_MIN, Version};
use crate::format::bytes::Reader;

/// The first four bytes of every qcow2 image.
pub(super) const MAGIC: u32 = 0x5146_49fb;

/// The fields both versions have, and those of version 3 if it is that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    pub(super) version: Version,
    pub(super) backing_file_offset: u64,
    pub(super) backing_file_size: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) crypt_method: u32,
    pub(super) l1_size: u32,
    pub(super) l1_table_offset: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
    pub(super) snapshot_count: u32,
    pub(super) snapshots_offset: u64,
    pub(super) v3: FixedV3,
}

/// The fields from byte 72 on. A version 2 image behaves as if it had the default ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct FixedV3 {
    pub(super) incompatible: u64,
    pub(super) compatible: u64,
    pub(super) autoclear: u64,
    pub(super) refcount_order: u32,
    pub(super) header_length: u32,
}

impl Default for FixedV3 {
    fn default() -> Self {
        Self {
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            header_length: HEADER_LENGTH_V2,
        }
    }
}

/// Magic and version: what must be right before any other field means something.
pub(super) fn read_magic_and_version(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut reader = Reader::new(bytes);
    Some((reader.u32()?, reader.u32()?))
}

impl Fixed {
    /// The fields of an image of this version; `None` if `bytes` is too short for them.
    pub(super) fn read(version: Version, bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        r.take(8)?;
        Some(Self {
            version,
            backing_file_offset: r.u64()?,
            backing_file_size: r.u32()?,
            cluster_bits: r.u32()?,
            size: r.u64()?,
            crypt_method: r.u32()?,
            l1_size: r.u32()?,
            l1_table_offset: r.u64()?,
            refcount_table_offset: r.u64()?,
            refcount_table_clusters: r.u32()?,
            snapshot_count: r.u32()?,
            snapshots_offset: r.u64()?,
            v3: match version {
                Version::V2 => FixedV3::default(),
                Version::V3 => FixedV3 {
                    incompatible: r.u64()?,
                    compatible: r.u64()?,
                    autoclear: r.u64()?,
                    refcount_order: r.u32()?,
                    header_length: r.u32()?,
                },
            },
        })
    }

    /// The bytes of the fields: 72 in version 2, 104 in version 3.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LENGTH_V3_MIN as usize);
        out.extend(MAGIC.to_be_bytes());
        out.extend((self.version as u32).to_be_bytes());
        out.extend(self.backing_file_offset.to_be_bytes());
        out.extend(self.backing_file_size.to_be_bytes());
        out.extend(self.cluster_bits.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        out.extend(self.crypt_method.to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend(self.l1_table_offset.to_be_bytes());
        out.extend(self.refcount_table_offset.to_be_bytes());
        out.extend(self.refcount_table_clusters.to_be_bytes());
        out.extend(self.snapshot_count.to_be_bytes());
        out.extend(self.snapshots_offset.to_be_bytes());
        if self.version == Version::V3 {
            out.extend(self.v3.incompatible.to_be_bytes());
            out.extend(self.v3.compatible.to_be_bytes());
            out.extend(self.v3.autoclear.to_be_bytes());
            out.extend(self.v3.refcount_order.to_be_bytes());
            out.extend(self.v3.header_length.to_be_bytes());
        }
        out
    }
}
