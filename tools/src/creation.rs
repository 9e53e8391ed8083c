//! Making new images: the options of `-o`, and writing what they ask for.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use qcow::addr::{HostOffset, sector_ceil};
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::disk::{Disk, Payload};
use qcow::engine::{self, CreateOptions, Format, Preallocation};
use qcow::format::compression::CompressionType;
use qcow::format::header::Version;
use qcow::{Error, ErrorKind};

use crate::failure::{Failure, Outcome};
use crate::image;
use crate::keyval::{Kind, OptionSpec, OptionValues, print_help};
use crate::output::say;
use crate::partial::PartialFile;

/// Zeros that one write of a full preallocation carries.
const ZERO_WRITE_LEN: u64 = 4 << 20;

const fn option(name: &'static str, kind: Kind, help: &'static str) -> OptionSpec {
    OptionSpec { name, kind, help }
}

/// The options of qcow2, in the order in which `Formatting ...` shows them.
const QCOW2: &[OptionSpec] = &[
    option(
        "encryption",
        Kind::Bool,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    option("encrypt.format", Kind::Text, "Encrypt the image, format choices: 'aes', 'luks'"),
    option(
        "encrypt.key-secret",
        Kind::Text,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    option("encrypt.cipher-alg", Kind::Text, "Name of encryption cipher algorithm"),
    option("encrypt.cipher-mode", Kind::Text, "Name of encryption cipher mode"),
    option("encrypt.ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    option("encrypt.ivgen-hash-alg", Kind::Text, "Name of IV generator hash algorithm"),
    option("encrypt.hash-alg", Kind::Text, "Name of encryption hash algorithm"),
    option("encrypt.iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    option("cluster_size", Kind::Size, "qcow2 cluster size"),
    option("extended_l2", Kind::Bool, "Extended L2 tables"),
    option(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    option("compression_type", Kind::Text, "Compression method used for image cluster compression"),
    option("size", Kind::Size, "Virtual disk size"),
    option("compat", Kind::Text, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    option("backing_file", Kind::Text, "File name of a base image"),
    option("backing_fmt", Kind::Text, "Image format of the base image"),
    option("data_file", Kind::Text, "File name of an external data file"),
    option("data_file_raw", Kind::Bool, "The external data file must stay valid as a raw image"),
    option("lazy_refcounts", Kind::Bool, "Postpone refcount updates"),
    option("refcount_bits", Kind::Number, "Width of a reference count entry in bits"),
];

/// The options of raw images.
const RAW: &[OptionSpec] = &[
    option("size", Kind::Size, "Virtual disk size"),
    option("preallocation", Kind::Text, "Preallocation mode (allowed values: off, falloc, full)"),
];

/// The options of host files.
const FILE: &[OptionSpec] = &[
    option("nocow", Kind::Bool, "Turn off copy-on-write (valid only on btrfs)"),
    option("extent_size_hint", Kind::Size, "Extent size hint for the image file, 0 to disable"),
];

/// What `Formatting ...` shows of qcow2 options that are not given.
const QCOW2_DEFAULTS: [(&str, &str); 5] = [
    ("cluster_size", "65536"),
    ("extended_l2", "off"),
    ("compression_type", "zlib"),
    ("lazy_refcounts", "off"),
    ("refcount_bits", "16"),
];

/// Answers `-o help`. The file's own options are told where there is a file.
pub fn help(format: Format, with_file: bool) {
    let specs = format_specs(format);
    if with_file {
        say!("Supported options:");
        let missing = |spec: &&OptionSpec| !specs.iter().any(|known| known.name == spec.name);
        let file: Vec<OptionSpec> =
            FILE.iter().filter(missing).map(|s| option(s.name, s.kind, s.help)).collect();
        print_help(&[specs, &file]);
        return;
    }
    say!("Supported {format} options:");
    // Preallocation of raw images is the file's doing.
    let own: Vec<OptionSpec> = specs
        .iter()
        .filter(|spec| format == Format::Qcow2 || spec.name != "preallocation")
        .map(|s| option(s.name, s.kind, s.help))
        .collect();
    print_help(&[&own]);
    say!("");
    say!("The protocol level may support further options.");
    say!("Specify the target filename to include those options.");
}

/// Reads the lists given with `-o`.
///
/// # Errors
/// In QEMU's words, without the file's name.
pub fn parse_options(format: Format, lists: &[String]) -> Outcome<OptionValues> {
    OptionValues::parse(lists, &[format_specs(format), FILE])
}

fn format_specs(format: Format) -> &'static [OptionSpec] {
    match format {
        Format::Qcow2 => QCOW2,
        Format::Raw => RAW,
    }
}

/// Says what is going to be made, as `Formatting 'file', fmt=...`.
pub fn announce(path: &Path, format: Format, values: &OptionValues) {
    let mut line = format!("Formatting '{}', fmt={format}", path.display());
    for spec in format_specs(format).iter().chain(FILE) {
        let default = || {
            let found = QCOW2_DEFAULTS.iter().find(|(name, _)| *name == spec.name);
            found.filter(|_| format == Format::Qcow2).map(|(_, value)| (*value).to_owned())
        };
        if let Some(value) = values.shown(spec.name).or_else(default) {
            line.push_str(&format!(" {}={value}", spec.name));
        }
    }
    say!("{line}");
}

/// A new image that is yet to be written.
#[derive(Debug)]
pub enum Creation {
    /// A qcow2 image.
    Qcow2(CreateOptions),
    /// A raw image of so many bytes.
    Raw(u64, Preallocation),
}

impl Creation {
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
        }
    }

    /// Writes the image to `path`, over whatever was there. The file is removed again unless the caller keeps it.
    ///
    /// # Errors
    /// In QEMU's words, without the file's name; then no file is left behind.
    pub fn write(&self, path: &Path) -> Outcome<PartialFile> {
        let disk = create_file(path)?;
        let partial = PartialFile::watch(path)?;
        match self {
            Self::Qcow2(options) => {
                block_on(engine::create(&disk, options)).map_err(|e| told(Format::Qcow2, &e))?;
            }
            Self::Raw(size, preallocation) => {
                block_on(write_raw(&disk, *size, *preallocation))
                    .map_err(|e| told(Format::Raw, &e))?;
            }
        }
        Ok(partial)
    }
}

fn create_file(path: &Path) -> Outcome<UringDisk> {
    // A device is there already, and has a length of its own.
    let is_device = path.metadata().is_ok_and(|m| m.file_type().is_block_device());
    let access = if is_device { Access::ReadWrite } else { Access::Create };
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

async fn write_raw(disk: &UringDisk, size: u64, preallocation: Preallocation) -> qcow::Result<()> {
    let start = HostOffset::new(0);
    let resized = |e| Error::io("Could not resize file", &e);
    let preallocated = |e| Error::io("Could not preallocate data for the new file", &e);
    let has_own_length = disk.len().map_err(|e| Error::io("find the length", &e))? > 0;
    if has_own_length {
        return Ok(());
    }
    disk.set_len(size).await.map_err(resized)?;
    match preallocation {
        _ if size == 0 => Ok(()),
        Preallocation::Off | Preallocation::Metadata => Ok(()),
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
    let cluster_bits = power_of_two(values.number("cluster_size"), 16, 9..=21)
        .ok_or_else(|| Failure::new("Cluster size must be a power of two between 512 and 2048k"))?;
    let backing = values.text("backing_file").filter(|name| !name.is_empty());
    if backing.is_some() && preallocation != Preallocation::Off {
        return Err(Failure::new(
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
        ));
    }
    let refcount_order =
        power_of_two(values.number("refcount_bits"), 4, 0..=6).ok_or_else(|| {
            Failure::new("Refcount width must be a power of two and may not exceed 64 bits")
        })?;
    let format = values.text("backing_fmt").map(str::to_owned);
    let options = CreateOptions {
        size,
        version,
        cluster_bits,
        refcount_order,
        lazy_refcounts: values.is_on("lazy_refcounts"),
        compression,
        preallocation,
        backing: backing.map(|name| (OsString::from(name), format)),
    };
    Ok(options)
}

fn parse_preallocation(values: &OptionValues) -> Outcome<Preallocation> {
    match values.text("preallocation") {
        None | Some("off") => Ok(Preallocation::Off),
        Some("metadata") => Ok(Preallocation::Metadata),
        Some("falloc") => Ok(Preallocation::Falloc),
        Some("full") => Ok(Preallocation::Full),
        Some(other) => Err(not_accepted("preallocation", other)),
    }
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
        "extended_l2" | "encryption" | "data_file_raw" | "nocow" => values.is_on(name),
        "extent_size_hint" => values.number(name).is_some_and(|hint| hint > 0),
        name => name.starts_with("encrypt.") || name == "data_file",
    };
    match values.names().find(|name| asked(name)) {
        Some(name) => Err(Failure::new(format!("option '{name}' is not supported yet"))),
        None => Ok(()),
    }
}

fn not_accepted(name: &str, value: &str) -> Failure {
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
    !path.metadata().is_ok_and(|m| m.file_type().is_block_device())
}

/// The path of a backing file that a new image at `path` is to name `name`.
pub fn backing_path(path: &Path, name: &str) -> Outcome<std::path::PathBuf> {
    qcow::gate::resolve_name(path, OsStr::new(name)).map_err(|e| Failure::new(e.message()))
}
