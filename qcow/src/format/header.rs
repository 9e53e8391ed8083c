//! The image header: what it says, validated.
//!
//! [`Header::parse`] takes the header cluster and refuses whatever the engine could not serve safely, so that the rest
//! of the engine never sees an offset or a size that has not been checked.

mod append;
mod bitmaps;
mod encode;
mod fixed;
mod parse;
mod replace;
#[cfg(test)]
mod tests;

use std::ffi::OsString;

pub use append::HeaderStep;
pub use replace::Replacement;

use super::compression::CompressionType;
pub use super::crypt::CryptMethod;
use super::extension::{BitmapsExtension, Extensions, find_places};
use super::feature::{Autoclear, Compatible, Incompatible};
use crate::addr::{Geometry, HostOffset, sector_floor};
use crate::error::Result;

/// Bytes of the fields of a version 2 header.
pub const HEADER_LENGTH_V2: u32 = 72;
/// Bytes of the header that QEMU writes for new version 3 images: 104 bytes of fields, the compression type, padding.
pub const HEADER_LENGTH_V3: u32 = 112;
/// The shortest version 3 header, as old programs wrote it: without the compression type.
const HEADER_LENGTH_V3_MIN: u32 = 104;

/// Version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `compat=0.10`: no feature bits, no zero flag, 16-bit refcounts.
    V2 = 2,
    /// `compat=1.1`.
    V3 = 3,
}

/// A validated image header with its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the format.
    pub version: Version,
    /// The backing file as the image names it, at most 1023 bytes and never empty. Untrusted.
    pub backing_name: Option<OsString>,
    /// log2 of the cluster size in bytes, 9 to 21.
    pub cluster_bits: u32,
    /// The disk's size in bytes as stored, perhaps not a multiple of 512; see [`Header::virtual_size`].
    pub size: u64,
    /// How guest data is encrypted.
    pub crypt_method: CryptMethod,
    /// Entries of the active L1 table: enough for `size`, and at most 32 MiB of them.
    pub l1_size: u32,
    /// Where the active L1 table starts: at a cluster boundary, and inside the file with all its entries.
    pub l1_table_offset: HostOffset,
    /// Where the refcount table starts: at a cluster boundary, and inside the file.
    pub refcount_table_offset: HostOffset,
    /// Clusters of the refcount table: at least one, and at most 8 MiB.
    pub refcount_table_clusters: u32,
    /// Internal snapshots, at most 65536.
    pub snapshot_count: u32,
    /// Where the snapshot table starts: at a cluster boundary, and inside the file unless there are no snapshots.
    pub snapshots_offset: HostOffset,
    /// Features without which the image cannot be read; only known bits. Empty in version 2.
    pub incompatible: Incompatible,
    /// Features that may be ignored, unknown bits included. Empty in version 2.
    pub compatible: Compatible,
    /// Features that a writer must know or clear, unknown bits included. Empty in version 2.
    pub autoclear: Autoclear,
    /// log2 of the refcount width in bits, 0 to 6. 4 in version 2.
    pub refcount_order: u32,
    /// Bytes of the header's fields: 72 in version 2; in version 3 a multiple of 8, at least 104. New images:
    /// [`HEADER_LENGTH_V2`] or [`HEADER_LENGTH_V3`].
    pub header_length: u32,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// The header's bytes from 112 to `header_length`, which belong to features this engine does not know.
    pub unknown_fields: Vec<u8>,
    /// What follows the header's fields.
    pub extensions: Extensions,
}

impl Header {
    /// log2 of the cluster size of the image that starts with `prefix`, its first 512 bytes (or all of a shorter
    /// file): how much [`Header::parse`] wants.
    ///
    /// # Errors
    /// Not a qcow2 image, an unsupported version or cluster size, or a file too short to hold a header.
    pub fn cluster_bits_of(prefix: &[u8]) -> Result<u32> {
        parse::cluster_bits_of(prefix)
    }

    /// The header in `cluster0`, the image's first cluster (zero-padded where the file is shorter), of a file of
    /// `file_len` bytes.
    ///
    /// # Errors
    /// Names the field that is wrong, unsupported or beyond a limit.
    pub fn parse(cluster0: &[u8], file_len: u64) -> Result<Self> {
        parse::parse(cluster0, file_len)
    }

    /// As [`Header::parse`] for an image that may be damaged: the refcount, L1 and snapshot tables may be anywhere, even
    /// behind the end of the file, and there may be no refcount table at all.
    ///
    /// # Errors
    /// As [`Header::parse`], but for the places of tables.
    pub fn parse_damaged(cluster0: &[u8], file_len: u64) -> Result<Self> {
        parse::parse_with(cluster0, file_len, parse::Tables::Plausible)
    }

    /// The header area: fields, extensions and backing file name, padded with zeros to a multiple of 512 bytes.
    ///
    /// # Errors
    /// The area does not fit a cluster, or the header says what its version cannot express.
    pub fn encode(&self) -> Result<Vec<u8>> {
        encode::encode(self)
    }

    /// Writes the fields that change during an image's life (sizes, tables, snapshots, features) into
    /// `first_sector`, the raw first bytes of the image as they are on disk, and leaves all other bytes alone.
    ///
    /// # Errors
    /// `first_sector` is too short or is not the start of an image of this version.
    pub fn patch_first_sector(&self, first_sector: &mut [u8]) -> Result<()> {
        encode::patch_first_sector(self, first_sector)
    }

    /// How to append the extension `kind` with `data` to the image whose whole first cluster is `cluster0`, as on disk,
    /// without a moment in which the header is neither the old nor the new one. `None` where there is no room.
    ///
    /// # Errors
    /// `cluster0` is not the start of a sound image.
    pub fn plan_append(cluster0: &[u8], kind: u32, data: &[u8]) -> Result<Option<Vec<HeaderStep>>> {
        append::plan(cluster0, kind, data)
    }

    /// How to make `self` the header of the image whose whole first cluster is `cluster0`, as on disk, and whose file has
    /// `file_len` bytes: after a cut off write it has the old header or this one. Names of features and the close mark are
    /// left out where there is no room for them.
    ///
    /// # Errors
    /// `cluster0` is not the start of a sound image (`Corrupt`), this header contradicts itself (`Invalid`), or it does
    /// not fit the cluster, or not beside the old one (`Limit`).
    pub fn plan_replacement(&self, cluster0: &[u8], file_len: u64) -> Result<Replacement> {
        replace::plan(cluster0, self, file_len)
    }

    /// The one sector to be written, where and with what, to make the bitmaps extension say `to` in the image whose whole
    /// first cluster is `cluster0`. `None` where it has no such extension, or where one sector is not enough.
    ///
    /// # Errors
    /// `cluster0` is not the start of a sound image.
    pub fn plan_bitmaps(
        cluster0: &[u8],
        to: &BitmapsExtension,
    ) -> Result<Option<(HostOffset, Vec<u8>)>> {
        bitmaps::plan(cluster0, to)
    }

    /// Where the data of the close mark lies in the image whose whole first cluster is `cluster0`.
    ///
    /// # Errors
    /// `cluster0` is not the start of a sound image.
    pub fn find_mark(cluster0: &[u8]) -> Result<Option<HostOffset>> {
        let fixed = parse::checked_fixed(cluster0)?;
        let places = find_places(parse::extension_area(&fixed, cluster0)?)?;
        let start = u64::from(fixed.v3.header_length);
        Ok(places.mark.map(|at| HostOffset::new(start + at as u64)))
    }

    /// Cluster size, refcount width and kind of L2 entries.
    pub fn geometry(&self) -> Geometry {
        Geometry::new(self.cluster_bits, self.refcount_order)
            .with_extended_l2(self.incompatible.contains(Incompatible::EXTENDED_L2))
    }

    /// The disk's size in bytes as the guest sees it: whole sectors of 512 bytes.
    pub fn virtual_size(&self) -> u64 {
        sector_floor(self.size)
    }

    /// Whether guest data lies in a file of its own.
    pub fn has_external_data(&self) -> bool {
        self.incompatible.contains(Incompatible::EXTERNAL_DATA)
    }

    /// Whether the external data file always equals the disk.
    pub fn has_raw_external_data(&self) -> bool {
        self.has_external_data() && self.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA)
    }
}
