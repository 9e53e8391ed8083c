//! From the header cluster to a validated [`Header`], in the order in which QEMU checks and with its messages.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::fixed::{Fixed, MAGIC, read_magic_and_version};
use super::{CryptMethod, HEADER_LENGTH_V3, HEADER_LENGTH_V3_MIN, Header, Version};
use crate::addr::{Geometry, HostOffset};
use crate::error::{Error, Result};
use crate::format::bytes::until_nul;
use crate::format::compression::CompressionType;
use crate::format::extension::{Context, Extensions};
use crate::format::feature::{Autoclear, Compatible, Incompatible, unsupported_message};
use crate::format::snapshot::ENTRY_BYTES_MIN;
use crate::format::table::TableClaim;
use crate::limits::{
    BACKING_NAME_BYTES_MAX, CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, EXTENDED_L2_CLUSTER_BITS_MIN,
    L1_BYTES_MAX, REFCOUNT_ORDER_MAX, REFCOUNT_TABLE_BYTES_MAX, SNAPSHOT_COUNT_MAX,
};

/// Where the compression type stands, in headers long enough to have one.
const COMPRESSION_TYPE_AT: usize = 104;

pub(super) fn cluster_bits_of(prefix: &[u8]) -> Result<u32> {
    read_fixed(prefix).map(|fixed| fixed.cluster_bits)
}

/// What the tables that a header names have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tables {
    /// Inside the file, and apart.
    Sound,
    /// Of a size and at an offset that can be told at all.
    Plausible,
}

pub(super) fn parse(cluster0: &[u8], file_len: u64) -> Result<Header> {
    parse_with(cluster0, file_len, Tables::Sound)
}

pub(super) fn parse_with(cluster0: &[u8], file_len: u64, tables: Tables) -> Result<Header> {
    let fixed = checked_fixed(cluster0)?;
    let cluster0 = &cluster0[..1 << fixed.cluster_bits];
    let area = extension_area(&fixed, cluster0)?;
    let incompatible = check_incompatible(&fixed, area)?;
    if fixed.v3.refcount_order > REFCOUNT_ORDER_MAX {
        return Err(Error::unsupported(
            "Reference count entry width too large; may not exceed 64 bits",
        ));
    }
    let crypt_method = parse_crypt_method(fixed.crypt_method)?;
    let geometry = Geometry::new(fixed.cluster_bits, fixed.v3.refcount_order)
        .with_extended_l2(incompatible.contains(Incompatible::EXTENDED_L2));
    match tables {
        Tables::Sound => check_tables(&fixed, geometry, file_len)?,
        Tables::Plausible => check_plausible(&fixed, geometry)?,
    }
    check_size(&fixed, geometry)?;
    let compression = parse_compression(&fixed, cluster0, incompatible)?;
    let autoclear = Autoclear(fixed.v3.autoclear);
    let context = Context { geometry, crypt_method, autoclear, file_len };
    Ok(Header {
        version: fixed.version,
        backing_name: parse_backing_name(&fixed, cluster0)?,
        cluster_bits: fixed.cluster_bits,
        size: fixed.size,
        crypt_method,
        l1_size: fixed.l1_size,
        l1_table_offset: HostOffset::new(fixed.l1_table_offset),
        refcount_table_offset: HostOffset::new(fixed.refcount_table_offset),
        refcount_table_clusters: fixed.refcount_table_clusters,
        snapshot_count: fixed.snapshot_count,
        snapshots_offset: HostOffset::new(fixed.snapshots_offset),
        incompatible,
        compatible: Compatible(fixed.v3.compatible),
        autoclear,
        refcount_order: fixed.v3.refcount_order,
        header_length: fixed.v3.header_length,
        compression,
        unknown_fields: unknown_fields(&fixed, cluster0),
        extensions: Extensions::parse(area, &context)?,
    })
}

/// The version of the image that starts with `prefix`.
pub(super) fn version_of(prefix: &[u8]) -> Result<Version> {
    match read_magic_and_version(prefix) {
        Some((MAGIC, 2)) => Ok(Version::V2),
        Some((MAGIC, 3)) => Ok(Version::V3),
        Some((MAGIC, other)) => {
            Err(Error::unsupported(format!("Unsupported qcow2 version {other}")))
        }
        None if prefix.starts_with(&MAGIC.to_be_bytes()) => Err(too_short()),
        _ => Err(Error::corrupt("Image is not in qcow2 format")),
    }
}

pub(super) fn too_short() -> Error {
    Error::corrupt("qcow2 header too short")
}

/// The fields, once magic, version and cluster size are known to be right.
fn read_fixed(prefix: &[u8]) -> Result<Fixed> {
    let fixed = Fixed::read(version_of(prefix)?, prefix).ok_or_else(too_short)?;
    if !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&fixed.cluster_bits) {
        return Err(Error::unsupported(format!(
            "Unsupported cluster size: 2^{}",
            fixed.cluster_bits
        )));
    }
    Ok(fixed)
}

/// The fields, once it is known that all of `cluster0` is there and where its extensions start.
pub(super) fn checked_fixed(cluster0: &[u8]) -> Result<Fixed> {
    let fixed = read_fixed(cluster0)?;
    let cluster0 = cluster0.get(..1 << fixed.cluster_bits).ok_or_else(too_short)?;
    check_header_length(&fixed, cluster0)?;
    Ok(fixed)
}

fn check_header_length(fixed: &Fixed, cluster0: &[u8]) -> Result<()> {
    if fixed.version == Version::V2 {
        return Ok(());
    }
    let length = fixed.v3.header_length;
    if length < HEADER_LENGTH_V3_MIN {
        return Err(too_short());
    }
    if length as usize > cluster0.len() {
        return Err(Error::corrupt("qcow2 header exceeds cluster size"));
    }
    if !length.is_multiple_of(8) {
        return Err(Error::corrupt(format!("qcow2 header length {length} is not a multiple of 8")));
    }
    Ok(())
}

/// The bytes between the header's fields and the backing file name.
pub(super) fn extension_area<'a>(fixed: &Fixed, cluster0: &'a [u8]) -> Result<&'a [u8]> {
    let start = fixed.v3.header_length as usize;
    let end = match fixed.backing_file_offset {
        0 => cluster0.len(),
        offset => usize::try_from(offset).unwrap_or(usize::MAX),
    };
    cluster0.get(start..end).ok_or_else(|| {
        let offset = fixed.backing_file_offset;
        Error::corrupt(format!("Invalid backing file offset (backing_file_offset is {offset:#x})"))
    })
}

fn check_incompatible(fixed: &Fixed, area: &[u8]) -> Result<Incompatible> {
    let incompatible = Incompatible(fixed.v3.incompatible);
    let unknown = incompatible.unknown();
    if !unknown.is_empty() {
        let names = Extensions::find_feature_names(area);
        return Err(Error::unsupported(unsupported_message(unknown, names.as_ref())));
    }
    if incompatible.contains(Incompatible::EXTENDED_L2)
        && fixed.cluster_bits < EXTENDED_L2_CLUSTER_BITS_MIN
    {
        let subcluster = (1_u32 << fixed.cluster_bits) / 32;
        return Err(Error::unsupported(format!("Unsupported subcluster size: {subcluster}")));
    }
    Ok(incompatible)
}

fn parse_crypt_method(value: u32) -> Result<CryptMethod> {
    match value {
        0 => Ok(CryptMethod::None),
        1 => Ok(CryptMethod::Aes),
        2 => Ok(CryptMethod::Luks),
        _ => Err(Error::unsupported(format!("Unsupported encryption method {value}"))),
    }
}

/// Checks as much of the refcount and L1 tables as a check of the image needs.
fn check_plausible(fixed: &Fixed, geometry: Geometry) -> Result<()> {
    refcount_table(fixed, geometry).check_plausible(geometry)?;
    l1_table(fixed).check_plausible(geometry)
}

fn refcount_table(fixed: &Fixed, geometry: Geometry) -> TableClaim {
    TableClaim {
        name: "Reference count table",
        field: "refcount_table_offset",
        offset: HostOffset::new(fixed.refcount_table_offset),
        len: geometry.bytes(fixed.refcount_table_clusters.into()),
        len_max: REFCOUNT_TABLE_BYTES_MAX,
    }
}

fn l1_table(fixed: &Fixed) -> TableClaim {
    TableClaim {
        name: "Active L1 table",
        field: "l1_table_offset",
        offset: HostOffset::new(fixed.l1_table_offset),
        len: u64::from(fixed.l1_size) * 8,
        len_max: L1_BYTES_MAX,
    }
}

/// Checks where the refcount, snapshot and L1 tables claim to be.
fn check_tables(fixed: &Fixed, geometry: Geometry, file_len: u64) -> Result<()> {
    if fixed.refcount_table_clusters == 0 {
        return Err(Error::corrupt("Image does not contain a reference count table"));
    }
    let refcounts = refcount_table(fixed, geometry);
    // The file's last cluster may be there in part only.
    let file_clusters_len = file_len.saturating_add(geometry.cluster_size() - 1);
    refcounts.check(geometry, file_clusters_len)?;

    let snapshots = TableClaim {
        name: "Snapshot table",
        field: "snapshots_offset",
        offset: HostOffset::new(fixed.snapshots_offset),
        len: u64::from(fixed.snapshot_count) * ENTRY_BYTES_MIN,
        len_max: u64::from(SNAPSHOT_COUNT_MAX) * ENTRY_BYTES_MIN,
    };
    snapshots.check(geometry, file_len)?;

    let l1 = l1_table(fixed);
    l1.check(geometry, file_len)?;
    for (a, b) in [(&l1, &refcounts), (&l1, &snapshots), (&refcounts, &snapshots)] {
        if a.overlaps(b) {
            return Err(Error::corrupt(format!(
                "{} ({} is {:#x}) overlaps the {}",
                a.name,
                a.field,
                a.offset.get(),
                b.name
            )));
        }
    }
    Ok(())
}

/// Checks that the L1 table covers the disk.
fn check_size(fixed: &Fixed, geometry: Geometry) -> Result<()> {
    let needed = geometry.l1_entries_for(fixed.size);
    if needed > i32::MAX as u64 {
        return Err(Error::limit(format!("Image is too big (size is {})", fixed.size)));
    }
    if u64::from(fixed.l1_size) < needed {
        return Err(Error::corrupt(format!(
            "L1 table is too small (l1_size is {}, {needed} needed)",
            fixed.l1_size
        )));
    }
    Ok(())
}

fn parse_compression(
    fixed: &Fixed,
    cluster0: &[u8],
    incompatible: Incompatible,
) -> Result<CompressionType> {
    let stored = match cluster0.get(COMPRESSION_TYPE_AT) {
        Some(&value) if fixed.v3.header_length > HEADER_LENGTH_V3_MIN => value,
        _ => 0,
    };
    let compression = CompressionType::from_disk(stored)
        .ok_or_else(|| Error::unsupported(format!("qcow2: unknown compression type: {stored}")))?;
    let flagged = incompatible.contains(Incompatible::COMPRESSION_TYPE);
    match (compression, flagged) {
        (CompressionType::Deflate, true) => {
            Err(Error::corrupt("qcow2: Compression type incompatible feature bit must not be set"))
        }
        (CompressionType::Zstd, false) => {
            Err(Error::corrupt("qcow2: Compression type incompatible feature bit must be set"))
        }
        _ => Ok(compression),
    }
}

/// The backing file name, which lies in the header cluster and is not terminated; a NUL ends it all the same.
fn parse_backing_name(fixed: &Fixed, cluster0: &[u8]) -> Result<Option<OsString>> {
    if fixed.backing_file_offset == 0 {
        return Ok(None);
    }
    let too_long = || {
        let size = fixed.backing_file_size;
        Error::limit(format!("Backing file name too long (backing_file_size is {size})"))
    };
    if fixed.backing_file_size > BACKING_NAME_BYTES_MAX {
        return Err(too_long());
    }
    // `extension_area` has checked that the offset lies in the cluster.
    let start = fixed.backing_file_offset as usize;
    let name =
        cluster0.get(start..start + fixed.backing_file_size as usize).ok_or_else(too_long)?;
    let name = until_nul(name);
    Ok((!name.is_empty()).then(|| OsStr::from_bytes(name).to_owned()))
}

fn unknown_fields(fixed: &Fixed, cluster0: &[u8]) -> Vec<u8> {
    let end = fixed.v3.header_length as usize;
    cluster0.get(HEADER_LENGTH_V3 as usize..end).unwrap_or_default().to_vec()
}
