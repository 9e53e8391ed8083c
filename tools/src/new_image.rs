//! Making new images: what their options ask for, and writing it.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use qcow::addr::{HostOffset, sector_ceil};
use qcow::crypt::Passphrase;
use qcow::crypt::luks::NewLuks;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::disk::{Disk, Payload};
use qcow::engine::{self, CreateOptions, DataFileOptions, Format, Preallocation};
use qcow::foreign::raw::NewPart;
use qcow::format::compression::CompressionType;
use qcow::format::header::Version;
use qcow::limits::SECTOR_BYTES;
use qcow::{Error, ErrorKind, foreign};

use crate::encryption;
use crate::failure::{Failure, Outcome};
use crate::image;
use crate::integrity;
use crate::keyval::OptionValues;
use crate::partial::PartialFile;
use crate::program;

/// Zeros that one write of a full preallocation carries.
const ZERO_WRITE_LEN: u64 = 4 << 20;

/// Bytes at the start of a raw image that are stored from the beginning.
const FIRST_BLOCK_LEN: u64 = 4096;

/// Preallocation modes and their names.
const PREALLOCATIONS: [(Preallocation, &str); 4] = [
    (Preallocation::Off, "off"),
    (Preallocation::Metadata, "metadata"),
    (Preallocation::Falloc, "falloc"),
    (Preallocation::Full, "full"),
];

/// A new image that is yet to be written.
#[derive(Debug)]
pub enum NewImage {
    /// A qcow2 image.
    Qcow2(CreateOptions),
    /// A raw image of so many bytes.
    Raw(u64, Preallocation),
    /// A LUKS file.
    Luks(NewLuksFile),
}

/// A LUKS file that is yet to be written.
#[derive(Debug)]
pub struct NewLuksFile {
    /// Bytes of its disk.
    size: u64,
    luks: NewLuks,
    key: Arc<Passphrase>,
    space: NewPart,
}

impl NewImage {
    /// What `values`, which name a size, ask for.
    ///
    /// # Errors
    /// In QEMU's words, without the file's name: options contradict each other, are out of range, or are not served yet.
    pub fn plan(format: Format, values: &OptionValues) -> Outcome<Self> {
        refuse_unserved(values)?;
        let size = values.number("size").unwrap_or(0);
        match format {
            Format::Qcow2 => plan_qcow2(size, values).map(Self::Qcow2),
            Format::Raw => {
                let preallocation = parse_preallocation(values)?;
                if preallocation == Preallocation::Metadata {
                    return Err(Failure::new("Unsupported preallocation mode: metadata"));
                }
                let too_large = || too_large(Format::Raw);
                let size = sector_ceil(size).ok_or_else(too_large)?;
                i64::try_from(size).map_err(|_| too_large())?;
                Ok(Self::Raw(size, preallocation))
            }
            Format::Luks => plan_luks(size, values).map(Self::Luks),
        }
    }

    /// Writes the image to `path`, over whatever was there. The file is removed again unless the caller keeps it.
    ///
    /// # Errors
    /// In QEMU's words, without the file's name; then no file is left behind.
    pub fn write(&self, path: &Path) -> Outcome<PartialFile> {
        let disk = create_file(path)?;
        let mut partial = PartialFile::watch(path)?;
        match self {
            Self::Qcow2(options @ CreateOptions { data_file: Some(data), .. }) => {
                let data_path = data_path(path, &data.name)?;
                let data = create_file(&data_path)?;
                partial = partial.with(PartialFile::watch(&data_path)?);
                let created = block_on(engine::create_with_data(&disk, &data, options));
                created.map_err(|e| told(Format::Qcow2, &e))?;
            }
            Self::Qcow2(options) => {
                block_on(engine::create(&disk, options)).map_err(|e| told(Format::Qcow2, &e))?;
            }
            Self::Raw(size, preallocation) if is_device(path) => {
                write_raw_device(&disk, *size, *preallocation)?;
            }
            Self::Raw(size, preallocation) => {
                block_on(write_raw(&disk, *size, *preallocation))
                    .map_err(|e| told(Format::Raw, &e))?;
            }
            Self::Luks(new) => {
                if is_device(path) {
                    return Err(Failure::new("a device cannot be made a LUKS file yet"));
                }
                let created =
                    foreign::luks::create(&disk, &new.luks, &new.key, new.size, new.space);
                block_on(created).map_err(|e| told(Format::Luks, &e))?;
            }
        }
        Ok(partial)
    }
}

fn create_file(path: &Path) -> Outcome<UringDisk> {
    // A device is there already, and has a length of its own.
    let access = if is_device(path) { Access::ReadWrite } else { Access::Create };
    UringDisk::open(path, access, CacheMode::PageCache).map_err(|error| {
        let message = match error.kind() {
            ErrorKind::Locked => image::lock_message(path, error.message()),
            _ => error.message().replacen(
                "Could not open: ",
                &format!("Could not create '{}': ", path.display()),
                1,
            ),
        };
        Failure::new(message)
    })
}

/// Makes an empty raw image of a file.
async fn write_raw(disk: &UringDisk, size: u64, preallocation: Preallocation) -> qcow::Result<()> {
    let start = HostOffset::new(0);
    let resized = |e| Error::io("Could not resize file", &e);
    let preallocated = |e| Error::io("Could not preallocate data for the new file", &e);
    disk.set_len(size).await.map_err(resized)?;
    match preallocation {
        _ if size == 0 => Ok(()),
        // Stored, so that the alignment that direct I/O takes can be found out by reading it, as QEMU does.
        Preallocation::Off | Preallocation::Metadata => {
            let len = if size < FIRST_BLOCK_LEN { SECTOR_BYTES.min(size) } else { FIRST_BLOCK_LEN };
            // Nothing is lost where this fails: it reads as zeros all the same.
            let _ = disk.write(start, &Payload::zeros(len)).await;
            Ok(())
        }
        Preallocation::Falloc => disk.allocate(start, size).await.map_err(preallocated),
        Preallocation::Full => {
            let mut at = 0;
            while at < size {
                let zeros = Payload::zeros(ZERO_WRITE_LEN.min(size - at));
                disk.write(start.plus(at), &zeros).await.map_err(preallocated)?;
                at += zeros.len();
            }
            disk.sync().await.map_err(|e| Error::io("Could not flush the new file", &e))
        }
    }
}

/// Makes a raw image of `size` bytes of a device, which must be large enough.
fn write_raw_device(disk: &UringDisk, size: u64, preallocation: Preallocation) -> Outcome {
    let told = |what: &str, e| Failure::new(Error::io(what, &e).message());
    if preallocation != Preallocation::Off {
        let mode = preallocation_name(preallocation);
        return Err(Failure::new(format!("Unsupported preallocation mode '{mode}'")));
    }
    let len = disk.len().map_err(|e| told("Could not find the device's length", e))?;
    if size > len {
        return Err(Failure::new("Cannot grow device files"));
    }
    // What the device held before must not be taken for the new image's format.
    let first_sector = Payload::zeros(SECTOR_BYTES.min(len));
    block_on(disk.write(HostOffset::new(0), &first_sector))
        .map_err(|e| told("Could not clear the new image's first sector", e))
}

fn plan_qcow2(size: u64, values: &OptionValues) -> Outcome<CreateOptions> {
    let version = match values.text("compat") {
        None | Some("1.1" | "v3") => Version::V3,
        Some("0.10" | "v2") => Version::V2,
        Some(other) => return Err(not_accepted("version", other)),
    };
    let compression = match values.text("compression_type") {
        None | Some("zlib") => CompressionType::Deflate,
        Some("zstd") => CompressionType::Zstd,
        Some(other) => return Err(not_accepted("compression-type", other)),
    };
    let preallocation = parse_preallocation(values)?;
    let integrity = integrity::plan(values)?;
    let default_bits = if integrity.is_some() { integrity::CLUSTER_BITS } else { 16 };
    let cluster_bits = power_of_two(values.number("cluster_size"), default_bits, 9..=21)
        .ok_or_else(|| Failure::new("Cluster size must be a power of two between 512 and 2048k"))?;
    let backing = values.text("backing_file").filter(|name| !name.is_empty());
    let extended_l2 = values.is_on("extended_l2");
    if backing.is_some() && preallocation != Preallocation::Off && !extended_l2 {
        return Err(Failure::new(
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
        ));
    }
    if values.text("backing_fmt").is_some() && values.text("backing_file").is_none() {
        return Err(Failure::new("Backing format cannot be used without backing file"));
    }
    let refcount_order =
        power_of_two(values.number("refcount_bits"), 4, 0..=6).ok_or_else(|| {
            Failure::new("Refcount width must be a power of two and may not exceed 64 bits")
        })?;
    let format = values.text("backing_fmt").map(str::to_owned);
    if let Some(format) = format.as_deref().filter(|format| !image::is_known_driver(format)) {
        return Err(not_accepted("backing-fmt", format));
    }
    let data_file = values.text("data_file");
    let raw = values.is_on("data_file_raw");
    let encryption = match &integrity {
        Some(_) => None,
        None => encryption::plan(values)?,
    };
    let options = CreateOptions {
        size,
        version,
        cluster_bits,
        refcount_order,
        extended_l2,
        lazy_refcounts: values.is_on("lazy_refcounts"),
        compression,
        preallocation,
        backing: backing.map(|name| (OsString::from(name), format)),
        data_file: data_file.map(|name| DataFileOptions { name: OsString::from(name), raw }),
        encryption,
        integrity,
        marked: program::adds_marks(),
    };
    if raw && options.data_file.is_none() {
        options.check_tables().map_err(|e| told(Format::Qcow2, &e))?;
        return Err(Failure::new("data-file-raw requires data-file"));
    }
    Ok(options)
}

fn plan_luks(size: u64, values: &OptionValues) -> Outcome<NewLuksFile> {
    let name = values.text("preallocation").unwrap_or("off");
    let unknown = || Failure::new(format!("invalid parameter value: {name}"));
    let space = match preallocation_called(name).ok_or_else(unknown)? {
        // As QEMU: there is no metadata that could be laid out.
        Preallocation::Off | Preallocation::Metadata => NewPart::Hole,
        Preallocation::Falloc => NewPart::Reserved,
        Preallocation::Full => NewPart::Zeros,
    };
    let (luks, key) = encryption::plan_luks(values, "")?;
    let end = luks.payload_offset().checked_add(size);
    if end.is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(too_large(Format::Luks));
    }
    Ok(NewLuksFile { size, luks, key, space })
}

fn parse_preallocation(values: &OptionValues) -> Outcome<Preallocation> {
    let Some(name) = values.text("preallocation") else { return Ok(Preallocation::Off) };
    preallocation_called(name).ok_or_else(|| not_accepted("preallocation", name))
}

/// The preallocation mode of that name.
pub fn preallocation_called(name: &str) -> Option<Preallocation> {
    PREALLOCATIONS.iter().find(|(_, known)| *known == name).map(|(mode, _)| *mode)
}

fn preallocation_name(mode: Preallocation) -> &'static str {
    PREALLOCATIONS.iter().find(|(known, _)| *known == mode).map_or("", |(_, name)| name)
}

/// log2 of `value`, if it is a power of two whose log2 lies in `range`.
fn power_of_two(
    value: Option<u64>,
    default: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Option<u32> {
    let Some(value) = value else { return Some(default) };
    let bits = value.checked_ilog2()?;
    (value.is_power_of_two() && range.contains(&bits)).then_some(bits)
}

/// Refuses features that are not served yet, by name.
fn refuse_unserved(values: &OptionValues) -> Outcome {
    let asked = |name: &str| match name {
        "nocow" | "detached-header" => values.is_on(name),
        "extent_size_hint" => values.number(name).is_some_and(|hint| hint > 0),
        _ => false,
    };
    match values.names().find(|name| asked(name)) {
        Some(name) => Err(Failure::new(format!("option '{name}' is not supported yet"))),
        None => Ok(()),
    }
}

/// The failure that the option `name` cannot be set to `value`.
pub fn not_accepted(name: &str, value: &str) -> Failure {
    Failure::new(format!("Parameter '{name}' does not accept value '{value}'"))
}

fn too_large(format: Format) -> Failure {
    let hint = if format == Format::Qcow2 { " (try using a larger cluster size)" } else { "" };
    Failure::new(format!("The image size is too large for file format '{format}'{hint}"))
}

fn told(format: Format, error: &Error) -> Failure {
    let file_too_large = error.errno() == Some(nix::libc::EFBIG);
    if error.kind() == ErrorKind::Limit || file_too_large {
        return too_large(format);
    }
    Failure::new(error.message())
}

/// Whether a freshly made `path` reads as zeros: a device keeps what it held.
pub fn starts_zeroed(path: &Path) -> bool {
    !is_device(path)
}

/// Whether `path` is a block device.
pub fn is_device(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.file_type().is_block_device())
}

/// The path of the external data file that a new image at `path` is to name `name`.
fn data_path(path: &Path, name: &OsStr) -> Outcome<std::path::PathBuf> {
    qcow::gate::resolve_data_name(path, name).map_err(|e| Failure::new(e.message()))
}

/// The path of a backing file that a new image at `path` is to name `name`.
pub fn backing_path(path: &Path, name: &str) -> Outcome<std::path::PathBuf> {
    qcow::gate::resolve_name(path, OsStr::new(name)).map_err(|e| Failure::new(e.message()))
}
