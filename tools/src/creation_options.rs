//! The options of `-o` with which new images are made: which there are, and how they are told.

use std::path::Path;

use qcow::engine::Format;

use crate::failure::{Failure, Outcome};
use crate::keyval::{Kind, OptionSpec, OptionValues, print_help};
use crate::output::say;
use crate::program::{self, Persona};

/// Answers `-o help`. The file's own options are told where there is a file.
pub fn help(format: Format, with_file: bool) {
    let specs = format_specs(format);
    if with_file {
        say!("Supported options:");
        let missing = |spec: &&OptionSpec| !specs.iter().any(|known| known.name == spec.name);
        let file: Vec<OptionSpec> = FILE.iter().filter(missing).copied().collect();
        print_help(&[specs, &file]);
        return;
    }
    say!("Supported {format} options:");
    // Preallocation of other images than qcow2 is the file's doing.
    let own: Vec<OptionSpec> = specs
        .iter()
        .filter(|spec| format == Format::Qcow2 || spec.name != "preallocation")
        .copied()
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
pub fn parse(format: Format, lists: &[String]) -> Outcome<OptionValues> {
    OptionValues::parse(lists, &[format_specs(format), FILE])
}

/// Enters the backing file that an image of `format` gets, and that file's format.
///
/// # Errors
/// In QEMU's words: the format has none.
pub fn set_backing(
    values: &mut OptionValues,
    format: Format,
    file: Option<&str>,
    file_format: Option<&str>,
) -> Outcome {
    if format != Format::Qcow2 && (file.is_some() || file_format.is_some()) {
        let what = if file.is_some() { "Backing file" } else { "Backing file format" };
        return Err(Failure::new(format!("{what} not supported for file format '{format}'")));
    }
    if let Some(file) = file {
        values.set_text("backing_file", file);
    }
    if let Some(format) = file_format {
        values.set_text("backing_fmt", format);
    }
    Ok(())
}

/// Says what is going to be made, as `Formatting 'file', fmt=...`.
pub fn announce(path: &Path, format: Format, values: &OptionValues) {
    let mut line = format!("Formatting '{}', fmt={format}", path.display());
    for spec in format_specs(format).iter().chain(FILE) {
        let default = || {
            let defaults: &[_] = match values.text("integrity") {
                Some(_) => &AUTHENTICATED_DEFAULTS,
                None => &QCOW2_DEFAULTS,
            };
            let found = defaults.iter().find(|(name, _)| *name == spec.name);
            found.filter(|_| format == Format::Qcow2).map(|(_, value)| (*value).to_owned())
        };
        if let Some(value) = values.shown(spec.name).or_else(default) {
            line.push_str(&format!(" {}={value}", spec.name));
        }
    }
    say!("{line}");
}

fn format_specs(format: Format) -> &'static [OptionSpec] {
    match format {
        // A stand-in knows what the other program knows.
        Format::Qcow2 if program::persona() != Persona::Qcow => &QCOW2[..QCOW2.len() - OWN_COUNT],
        Format::Qcow2 => QCOW2,
        Format::Raw => RAW,
        Format::Luks => LUKS,
    }
}

/// The options of qcow2, in the order in which `Formatting ...` shows them.
const QCOW2: &[OptionSpec] = &[
    OptionSpec::new(
        "encryption",
        Kind::Bool,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    OptionSpec::new(
        "encrypt.format",
        Kind::Text,
        "Encrypt the image, format choices: 'aes', 'luks'",
    ),
    OptionSpec::new(
        "encrypt.key-secret",
        Kind::Text,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    OptionSpec::new("encrypt.cipher-alg", Kind::Text, "Name of encryption cipher algorithm"),
    OptionSpec::new("encrypt.cipher-mode", Kind::Text, "Name of encryption cipher mode"),
    OptionSpec::new("encrypt.ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    OptionSpec::new("encrypt.ivgen-hash-alg", Kind::Text, "Name of IV generator hash algorithm"),
    OptionSpec::new("encrypt.hash-alg", Kind::Text, "Name of encryption hash algorithm"),
    OptionSpec::new("encrypt.iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    OptionSpec::new("cluster_size", Kind::Size, "qcow2 cluster size"),
    OptionSpec::new("extended_l2", Kind::Bool, "Extended L2 tables"),
    OptionSpec::new(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    OptionSpec::new(
        "compression_type",
        Kind::Text,
        "Compression method used for image cluster compression",
    ),
    OptionSpec::new("size", Kind::Size, "Virtual disk size"),
    OptionSpec::new("compat", Kind::Text, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    OptionSpec::new("backing_file", Kind::Text, "File name of a base image"),
    OptionSpec::new("backing_fmt", Kind::Text, "Image format of the base image"),
    OptionSpec::new("data_file", Kind::Text, "File name of an external data file"),
    OptionSpec::new(
        "data_file_raw",
        Kind::Bool,
        "The external data file must stay valid as a raw image",
    ),
    OptionSpec::new("lazy_refcounts", Kind::Bool, "Postpone refcount updates"),
    OptionSpec::new("refcount_bits", Kind::Number, "Width of a reference count entry in bits"),
    OptionSpec::new(
        "integrity",
        Kind::Text,
        "Authenticate the image, with checksums or a key (allowed values: crc32c, aes-256-gcm)",
    ),
];

/// How many of them, at the end, QEMU does not know.
const OWN_COUNT: usize = 1;

/// The options of raw images.
const RAW: &[OptionSpec] = &[
    OptionSpec::new("size", Kind::Size, "Virtual disk size"),
    OptionSpec::new(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, falloc, full)",
    ),
];

/// The options of files that are LUKS and nothing else.
const LUKS: &[OptionSpec] = &[
    OptionSpec::new("size", Kind::Size, "Virtual disk size"),
    OptionSpec::new(
        "key-secret",
        Kind::Text,
        "ID of the secret that provides the keyslot passphrase",
    ),
    OptionSpec::new("cipher-alg", Kind::Text, "Name of encryption cipher algorithm"),
    OptionSpec::new("cipher-mode", Kind::Text, "Name of encryption cipher mode"),
    OptionSpec::new("ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    OptionSpec::new("ivgen-hash-alg", Kind::Text, "Name of IV generator hash algorithm"),
    OptionSpec::new("hash-alg", Kind::Text, "Name of encryption hash algorithm"),
    OptionSpec::new("iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    OptionSpec::new("detached-header", Kind::Bool, "Create a detached LUKS header"),
    OptionSpec::new(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, falloc, full)",
    ),
];

/// The options of host files.
const FILE: &[OptionSpec] = &[
    OptionSpec::new("nocow", Kind::Bool, "Turn off copy-on-write (valid only on btrfs)"),
    OptionSpec::new(
        "extent_size_hint",
        Kind::Size,
        "Extent size hint for the image file, 0 to disable",
    ),
];

/// What `Formatting ...` shows of options that are not given, of an authenticated image.
const AUTHENTICATED_DEFAULTS: [(&str, &str); 2] =
    [("cluster_size", "16384"), ("compression_type", "zlib")];

/// What `Formatting ...` shows of qcow2 options that are not given.
const QCOW2_DEFAULTS: [(&str, &str); 5] = [
    ("cluster_size", "65536"),
    ("extended_l2", "off"),
    ("compression_type", "zlib"),
    ("lazy_refcounts", "off"),
    ("refcount_bits", "16"),
];
