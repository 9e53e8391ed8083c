//! From a [`Header`] to the bytes of the header area, laid out as QEMU lays it out.

use std::os::unix::ffi::OsStrExt;

use super::fixed::{Fixed, FixedV3};
use super::parse::{too_short, version_of};
use super::{
    CryptMethod, HEADER_LENGTH_V2, HEADER_LENGTH_V3, HEADER_LENGTH_V3_MIN, Header, Version,
};
use crate::error::{Error, Result};
use crate::format::bytes::pad_to;
use crate::format::compression::CompressionType;
use crate::format::extension::encode_filler;
use crate::limits::{BACKING_NAME_BYTES_MAX, SECTOR_BYTES};

pub(super) fn encode(header: &Header) -> Result<Vec<u8>> {
    encode_at(header, None, None)
}

/// As [`encode`], with a filler up to the records, which start at `records_at`, and the backing file name at `name_at`.
/// Both lie behind what comes before them.
pub(super) fn encode_at(
    header: &Header,
    records_at: Option<usize>,
    name_at: Option<usize>,
) -> Result<Vec<u8>> {
    check_expressible(header)?;
    let mut extensions = match records_at {
        Some(at) => encode_filler(at - header.header_length as usize)?,
        None => Vec::new(),
    };
    extensions.extend(header.extensions.encode()?);
    let name = header.backing_name.as_ref().map(|name| name.as_bytes());
    let fields_len = header.header_length as usize;

    let mut fixed = fixed_fields(header);
    if let Some(name) = name {
        let name_at = name_at.unwrap_or(fields_len + extensions.len());
        extensions.resize(name_at - fields_len, 0);
        fixed.backing_file_offset = name_at as u64;
        fixed.backing_file_size = backing_name_size(name)?;
    }
    let mut out = fixed.write();
    if header.header_length >= HEADER_LENGTH_V3 {
        out.push(header.compression.to_disk());
        pad_to(&mut out, 8);
        out.extend_from_slice(&header.unknown_fields);
    }
    out.extend_from_slice(&extensions);
    out.extend_from_slice(name.unwrap_or_default());

    let cluster_size = header.geometry().cluster_size();
    if out.len() as u64 > cluster_size {
        return Err(Error::limit(format!(
            "the header with its extensions and the backing file name needs {} bytes, \
             more than a cluster of {cluster_size} bytes",
            out.len()
        )));
    }
    pad_to(&mut out, SECTOR_BYTES as usize);
    Ok(out)
}

pub(super) fn patch_first_sector(header: &Header, first_sector: &mut [u8]) -> Result<()> {
    let version = version_of(first_sector)?;
    let on_disk = Fixed::read(version, first_sector).ok_or_else(too_short)?;
    if version != header.version || on_disk.v3.header_length != header.header_length {
        return Err(Error::corrupt(format!(
            "the header on disk (version {}, {} bytes) is not the one that was opened",
            version as u32, on_disk.v3.header_length
        )));
    }
    let fixed = Fixed {
        backing_file_offset: on_disk.backing_file_offset,
        backing_file_size: on_disk.backing_file_size,
        ..fixed_fields(header)
    };
    let bytes = fixed.write();
    first_sector.get_mut(..bytes.len()).ok_or_else(too_short)?.copy_from_slice(&bytes);
    Ok(())
}

/// The fields but for the place of the backing file name.
fn fixed_fields(header: &Header) -> Fixed {
    Fixed {
        version: header.version,
        backing_file_offset: 0,
        backing_file_size: 0,
        cluster_bits: header.cluster_bits,
        size: header.size,
        crypt_method: match header.crypt_method {
            CryptMethod::None => 0,
            CryptMethod::Aes => 1,
            CryptMethod::Luks => 2,
        },
        l1_size: header.l1_size,
        l1_table_offset: header.l1_table_offset.get(),
        refcount_table_offset: header.refcount_table_offset.get(),
        refcount_table_clusters: header.refcount_table_clusters,
        snapshot_count: header.snapshot_count,
        snapshots_offset: header.snapshots_offset.get(),
        v3: FixedV3 {
            incompatible: header.incompatible.0,
            compatible: header.compatible.0,
            autoclear: header.autoclear.0,
            refcount_order: header.refcount_order,
            header_length: header.header_length,
        },
    }
}

/// Refuses a header whose version or length has no room for what it says: better than to lose it silently.
fn check_expressible(header: &Header) -> Result<()> {
    let length = header.header_length as usize;
    let length_fits = match header.version {
        Version::V2 => length == HEADER_LENGTH_V2 as usize && header.unknown_fields.is_empty(),
        Version::V3 if length == HEADER_LENGTH_V3_MIN as usize => header.unknown_fields.is_empty(),
        Version::V3 => {
            length.is_multiple_of(8)
                && length == HEADER_LENGTH_V3 as usize + header.unknown_fields.len()
        }
    };
    if !length_fits {
        return Err(Error::invalid(format!(
            "header_length {length} does not agree with the version and {} bytes of unknown fields",
            header.unknown_fields.len()
        )));
    }
    let has_features = !header.incompatible.is_empty()
        || !header.compatible.is_empty()
        || !header.autoclear.is_empty()
        || header.refcount_order != 4;
    if header.version == Version::V2 && has_features {
        return Err(Error::invalid(
            "version 2 (compat=0.10) has no feature bits and only 16-bit refcounts; use version 3",
        ));
    }
    if header.compression != CompressionType::Deflate && header.header_length < HEADER_LENGTH_V3 {
        return Err(Error::invalid("this header is too short for a compression type"));
    }
    Ok(())
}

fn backing_name_size(name: &[u8]) -> Result<u32> {
    if name.is_empty() || name.contains(&0) {
        return Err(Error::invalid("a backing file name is neither empty nor holds a NUL byte"));
    }
    u32::try_from(name.len()).ok().filter(|&len| len <= BACKING_NAME_BYTES_MAX).ok_or_else(|| {
        Error::invalid(format!(
            "Backing file name too long ({} bytes, at most {BACKING_NAME_BYTES_MAX})",
            name.len()
        ))
    })
}
