//! Header extensions: typed records between the header's fields and the backing file name.
//!
//! Each record is a type, a length, and data padded to 8 bytes. Types this engine does not know are kept as they are.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use super::bytes::{Reader, pad_to};
use super::crypt::CryptMethod;
use super::feature::{Autoclear, FeatureNames};
use super::mark::{MARK_TYPE, Mark};
use super::table::TableClaim;
use crate::addr::{Geometry, HostOffset};
use crate::error::{Error, Result};
use crate::limits::{
    BACKING_FORMAT_BYTES_MAX, BITMAP_COUNT_MAX, BITMAP_DIRECTORY_BYTES_MAX,
    HEADER_EXTENSION_COUNT_MAX,
};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
const ENCRYPTION_HEADER: u32 = 0x0537_be77;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
/// A record of our own that only takes up room: see `header/replace.rs`. It is not kept.
const FILLER: u32 = 0x7a1c_95e4;
/// Bytes of a record in front of its data: type and length.
const RECORD_HEADER_BYTES: usize = 8;

/// All extensions of one header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Format of the backing file, at most [`BACKING_FORMAT_BYTES_MAX`] bytes, such as `qcow2` or `raw`.
    pub backing_format: Option<String>,
    /// Name of the external data file.
    pub data_file: Option<OsString>,
    /// Where the LUKS header lies; there if and only if the encryption method is LUKS.
    pub encryption_header: Option<EncryptionHeader>,
    /// Names of the feature bits, for programs that do not know them.
    pub feature_names: Option<FeatureNames>,
    /// Where the persistent bitmaps are listed. `None` also where the autoclear bit says that they are out of date.
    pub bitmaps: Option<BitmapsExtension>,
    /// Whether the image was closed cleanly; an extension of our own.
    pub mark: Option<Mark>,
    /// Extensions of other types, in the order of the file: type and data.
    pub unknown: Vec<(u32, Vec<u8>)>,
}

/// Where the LUKS header lies in the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncryptionHeader {
    /// First byte, at a cluster boundary.
    pub offset: HostOffset,
    /// Length in bytes.
    pub length: u64,
}

/// The directory of persistent bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Bitmaps in the directory, 1 to [`BITMAP_COUNT_MAX`].
    pub count: u32,
    /// Bytes of the directory, at most [`BITMAP_DIRECTORY_BYTES_MAX`].
    pub directory_size: u64,
    /// First byte of the directory, at a cluster boundary.
    pub directory_offset: HostOffset,
}

/// What the extensions are checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    pub(super) geometry: Geometry,
    pub(super) crypt_method: CryptMethod,
    pub(super) autoclear: Autoclear,
    pub(super) file_len: u64,
}

impl Extensions {
    /// The extensions in `area`, the bytes behind the header's fields up to the backing file name.
    pub(super) fn parse(area: &[u8], context: &Context) -> Result<Self> {
        let mut found = Self::default();
        for (count, record) in records(area).enumerate() {
            if count == HEADER_EXTENSION_COUNT_MAX {
                return Err(Error::limit(format!(
                    "more than {HEADER_EXTENSION_COUNT_MAX} header extensions"
                )));
            }
            let (kind, data) = record?;
            found.add(kind, data, context)?;
        }
        if context.crypt_method == CryptMethod::Luks && found.encryption_header.is_none() {
            return Err(Error::corrupt("Missing CRYPTO header for crypt method 2"));
        }
        Ok(found)
    }

    /// The feature name table in `area`, whatever else is wrong there.
    pub(super) fn find_feature_names(area: &[u8]) -> Option<FeatureNames> {
        records(area)
            .take(HEADER_EXTENSION_COUNT_MAX)
            .map_while(Result::ok)
            .find(|&(kind, _)| kind == FEATURE_NAMES)
            .map(|(_, data)| FeatureNames::from_bytes(data))
    }

    /// The records with their end marker, in the order in which QEMU writes them.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        if let Some(format) = &self.backing_format {
            check_backing_format(format.len())?;
            put(&mut out, BACKING_FORMAT, format.as_bytes())?;
        }
        if let Some(name) = &self.data_file {
            put(&mut out, DATA_FILE, name.as_bytes())?;
        }
        if let Some(header) = &self.encryption_header {
            put(&mut out, ENCRYPTION_HEADER, &header.encode())?;
        }
        if let Some(names) = &self.feature_names {
            put(&mut out, FEATURE_NAMES, names.as_bytes())?;
        }
        if let Some(bitmaps) = &self.bitmaps {
            put(&mut out, BITMAPS, &bitmaps.encode())?;
        }
        if let Some(mark) = &self.mark {
            put(&mut out, MARK_TYPE, mark.as_bytes())?;
        }
        for (kind, data) in &self.unknown {
            put(&mut out, *kind, data)?;
        }
        put(&mut out, END, &[])?;
        Ok(out)
    }

    fn add(&mut self, kind: u32, data: &[u8], context: &Context) -> Result<()> {
        match kind {
            BACKING_FORMAT => {
                // As QEMU: the last one counts.
                self.backing_format = Some(parse_backing_format(data)?);
                Ok(())
            }
            DATA_FILE => {
                let name = OsStr::from_bytes(data).to_owned();
                set_once(&mut self.data_file, "external data file name", name)
            }
            ENCRYPTION_HEADER => {
                let header = EncryptionHeader::parse(data, context)?;
                set_once(&mut self.encryption_header, "CRYPTO header", header)
            }
            FEATURE_NAMES => {
                let names = FeatureNames::from_bytes(data);
                set_once(&mut self.feature_names, "feature name table", names)
            }
            // Without the bit the bitmaps are out of date, and their description may be too.
            BITMAPS if !context.autoclear.contains(Autoclear::BITMAPS) => Ok(()),
            BITMAPS => {
                set_once(&mut self.bitmaps, "bitmaps", BitmapsExtension::parse(data, context)?)
            }
            // A second one is nobody's business, and no reason to refuse the image.
            MARK_TYPE if self.mark.is_none() => {
                self.mark = Some(Mark::from_bytes(data));
                Ok(())
            }
            FILLER => Ok(()),
            _ => {
                self.unknown.push((kind, data.to_vec()));
                Ok(())
            }
        }
    }
}

impl EncryptionHeader {
    fn parse(data: &[u8], context: &Context) -> Result<Self> {
        if context.crypt_method != CryptMethod::Luks {
            return Err(Error::corrupt(
                "CRYPTO header extension only expected with LUKS encryption method",
            ));
        }
        let wrong_size = || {
            Error::corrupt(format!(
                "CRYPTO header extension size {}, but expected size 16",
                data.len()
            ))
        };
        let mut reader = Reader::new(data);
        let (offset, length) = reader.u64().zip(reader.u64()).ok_or_else(wrong_size)?;
        if reader.remaining() != 0 {
            return Err(wrong_size());
        }
        let header = Self { offset: HostOffset::new(offset), length };
        if !context.geometry.is_cluster_aligned(offset) {
            return Err(Error::corrupt(format!(
                "Encryption header offset '{offset}' is not a multiple of cluster size '{}'",
                context.geometry.cluster_size()
            )));
        }
        if !context.geometry.is_addressable(header.offset, length) {
            return Err(Error::corrupt(format!(
                "Encryption header offset '{offset}' and its length {length} are out of range"
            )));
        }
        Ok(header)
    }

    fn encode(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.offset.get().to_be_bytes());
        out[8..].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

impl BitmapsExtension {
    fn parse(data: &[u8], context: &Context) -> Result<Self> {
        let corrupt = |what: String| Error::corrupt(format!("bitmaps_ext: {what}"));
        let (parsed, reserved) = Self::read(data)
            .ok_or_else(|| corrupt(format!("Invalid extension length {}", data.len())))?;
        if reserved != 0 {
            return Err(corrupt("Reserved field is not zero".into()));
        }
        if parsed.count > BITMAP_COUNT_MAX {
            return Err(Error::limit(format!(
                "bitmaps_ext: image has {} bitmaps, exceeding the supported maximum of \
                 {BITMAP_COUNT_MAX}",
                parsed.count
            )));
        }
        if parsed.count == 0 {
            return Err(Error::corrupt("found bitmaps extension with zero bitmaps"));
        }
        let directory = TableClaim {
            name: "bitmaps_ext: bitmap directory",
            field: "directory offset",
            offset: parsed.directory_offset,
            len: parsed.directory_size,
            len_max: BITMAP_DIRECTORY_BYTES_MAX,
        };
        directory.check(context.geometry, context.file_len)?;
        Ok(parsed)
    }

    /// The fields and the reserved one, if `data` has just the right length.
    fn read(data: &[u8]) -> Option<(Self, u32)> {
        let mut reader = Reader::new(data);
        let (count, reserved) = (reader.u32()?, reader.u32()?);
        let (directory_size, offset) = (reader.u64()?, reader.u64()?);
        let directory_offset = HostOffset::new(offset);
        let whole = reader.remaining() == 0;
        whole.then_some((Self { count, directory_size, directory_offset }, reserved))
    }

    pub(super) fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..4].copy_from_slice(&self.count.to_be_bytes());
        out[8..16].copy_from_slice(&self.directory_size.to_be_bytes());
        out[16..].copy_from_slice(&self.directory_offset.get().to_be_bytes());
        out
    }
}

/// Where things lie in an extension area, counted from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// Records in front of the end marker.
    pub(super) count: usize,
    /// The data of the close mark.
    pub(super) mark: Option<usize>,
    /// The data of the bitmaps extension.
    pub(super) bitmaps: Option<usize>,
    /// What fillers have for data, which nobody looks at.
    pub(super) fillers: Vec<Range<usize>>,
    /// The end marker; `None` where the records fill the area.
    pub(super) end: Option<usize>,
}

/// Finds the places in `area`.
pub(super) fn find_places(area: &[u8]) -> Result<Places> {
    let mut places = Places::default();
    let mut reader = Reader::new(area);
    while reader.remaining() > 0 {
        let at = area.len() - reader.remaining();
        let (kind, _) = next_record(&mut reader).ok_or_else(too_large)?;
        if kind == END {
            places.end = Some(at);
            break;
        }
        places.count += 1;
        if kind == FILLER {
            places.fillers.push(at + RECORD_HEADER_BYTES..area.len() - reader.remaining());
        }
        let place = match kind {
            MARK_TYPE => &mut places.mark,
            BITMAPS => &mut places.bitmaps,
            _ => continue,
        };
        place.get_or_insert(at + RECORD_HEADER_BYTES);
    }
    Ok(places)
}

/// A record with an end marker behind it: what stands in the place of an end marker to append the record.
pub(super) fn encode_last(kind: u32, data: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    put(&mut out, kind, data)?;
    put(&mut out, END, &[])?;
    Ok(out)
}

/// A record that means nothing, of `len` bytes in all: a multiple of 8, and at least 8.
pub(super) fn encode_filler(len: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    put(&mut out, FILLER, &vec![0; len - RECORD_HEADER_BYTES])?;
    Ok(out)
}

/// Type and data of each record, up to the end marker or the end of the area. Nothing follows an error.
fn records(area: &[u8]) -> impl Iterator<Item = Result<(u32, &[u8])>> {
    let mut reader = Reader::new(area);
    let mut done = false;
    std::iter::from_fn(move || {
        if done || reader.remaining() == 0 {
            return None;
        }
        let record = next_record(&mut reader);
        done = !matches!(record, Some((kind, _)) if kind != END);
        match record {
            Some((END, _)) => None,
            Some(record) => Some(Ok(record)),
            None => Some(Err(too_large())),
        }
    })
}

fn too_large() -> Error {
    Error::corrupt("Header extension too large")
}

fn next_record<'a>(reader: &mut Reader<'a>) -> Option<(u32, &'a [u8])> {
    let (kind, len) = (reader.u32()?, reader.u32()?);
    if kind == END {
        return Some((END, &[]));
    }
    let len = usize::try_from(len).ok()?;
    let data = reader.take(len)?;
    // The padding of the last record may be cut off by the backing file name.
    let padding = len.next_multiple_of(8) - len;
    reader.take(padding.min(reader.remaining()))?;
    Some((kind, data))
}

fn parse_backing_format(data: &[u8]) -> Result<String> {
    check_backing_format(data.len())?;
    String::from_utf8(data.to_vec())
        .map_err(|_| Error::corrupt("header extension: the backing format is not text"))
}

fn check_backing_format(len: usize) -> Result<()> {
    if len > BACKING_FORMAT_BYTES_MAX {
        return Err(Error::limit(format!(
            "ERROR: ext_backing_format: len={len} too large (>={})",
            BACKING_FORMAT_BYTES_MAX + 1
        )));
    }
    Ok(())
}

/// Two records of one type contradict each other, and which one other programs believe is anyone's guess.
fn set_once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<()> {
    if slot.is_some() {
        return Err(Error::corrupt(format!("duplicate header extension: {name}")));
    }
    *slot = Some(value);
    Ok(())
}

fn put(out: &mut Vec<u8>, kind: u32, data: &[u8]) -> Result<()> {
    let len = u32::try_from(data.len())
        .map_err(|_| Error::limit(format!("Header extension {kind:#x} is too large to write")))?;
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
    pad_to(out, 8);
    Ok(())
}
