//! `qcow amend`: what of an image's options can be changed after it was made.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use qcow::disk::uring::block_on;
use qcow::engine::check::change_refcount_width;
use qcow::engine::info::ImageInfo;
use qcow::engine::{Format, MapExtent, Preallocation, Resize, SnapshotChoice};
use qcow::format::feature::{Compatible, Incompatible};
use qcow::format::header::{CryptMethod, Header, Version};
use qcow::limits::SECTOR_BYTES;

use crate::arguments::{CacheArgs, ImageArgs, TellingArgs};
use crate::failure::{Failure, Outcome};
use crate::image::{self, HostImage, Opening};
use crate::key_slots::{self, SlotChange};
use crate::keyval::{self, Kind, OptionSpec, OptionValues, print_help};
use crate::output::say;
use crate::progress::Progress;

/// Change options of an image
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    telling: TellingArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Allow what overwrites a passphrase of an encrypted image, or takes the last one away
    #[arg(long)]
    force: bool,
    /// What to change, as name=value,name=value (a comma in a value is doubled); '-o help' lists the options
    #[arg(short, long, value_name = "OPTIONS", value_parser = keyval::list)]
    options: Vec<String>,
    /// The image
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// The options that can be changed.
const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new("backing_file", Kind::Text, "File name of a base image"),
    OptionSpec::new("backing_fmt", Kind::Text, "Image format of the base image"),
    OptionSpec::new("compat", Kind::Text, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    OptionSpec::new("data_file", Kind::Text, "File name of an external data file"),
    OptionSpec::new(
        "data_file_raw",
        Kind::Bool,
        "The external data file must stay valid as a raw image",
    ),
    OptionSpec::new("encrypt.iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    OptionSpec::new(
        "encrypt.keyslot",
        Kind::Number,
        "Select a single keyslot to modify explicitly",
    ),
    OptionSpec::new(
        "encrypt.new-secret",
        Kind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    OptionSpec::new(
        "encrypt.old-secret",
        Kind::Text,
        "Select all keyslots that match this password",
    ),
    OptionSpec::new(
        "encrypt.state",
        Kind::Text,
        "Select new state of affected keyslots (active/inactive)",
    ),
    OptionSpec::new("lazy_refcounts", Kind::Bool, "Postpone refcount updates"),
    OptionSpec::new("refcount_bits", Kind::Number, "Width of a reference count entry in bits"),
    OptionSpec::new("size", Kind::Size, "Virtual disk size"),
];

/// The options of LUKS files that can be changed.
const LUKS_OPTIONS: &[OptionSpec] = &[
    OptionSpec::new("iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    OptionSpec::new("keyslot", Kind::Number, "Select a single keyslot to modify explicitly"),
    OptionSpec::new(
        "new-secret",
        Kind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    OptionSpec::new("old-secret", Kind::Text, "Select all keyslots that match this password"),
    OptionSpec::new("state", Kind::Text, "Select new state of affected keyslots (active/inactive)"),
];

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    if args.options.is_empty() {
        return Err(Failure::usage("amend", "Must specify options (-o)"));
    }
    let help = keyval::asks_for_help(&args.options);
    if help && let Some(format) = args.image.format() {
        return match image::parse_new_format(format) {
            Ok(format) => tell_options(format),
            Err(_) if image::is_known_driver(format) => Err(not_amendable(format)),
            Err(unknown) => Err(unknown),
        };
    }
    let [path] = args.files.as_slice() else {
        return Err(Failure::new("Expecting one image file name"));
    };
    let cache = args.cache.cache()?;
    let opening = Opening { writable: true, cache, ..args.image.opening() };
    let image = opening.open_to_write(path)?;
    let format = image.format();
    let is_authenticated = image.is_authenticated();
    if help {
        drop(image);
        return tell_options(format);
    }
    let specs = specs(format)?;
    let values = parse(format, specs, &args.options)?;
    let mut progress = Progress::new(args.telling.shows_progress(), 1);
    close(&image, Ok(()))?;
    drop(image);
    let amendment = Amendment { path, opening, values: &values, force: args.force };
    match format {
        Format::Luks => amendment.change_key_slots("")?,
        Format::Qcow2 if is_authenticated => amendment.change_authenticated()?,
        _ => amendment.carry_out()?,
    }
    progress.finish();
    Ok(())
}

fn tell_options(format: Format) -> Outcome {
    let specs = specs(format)?;
    say!("Amend options for '{format}':");
    print_help(&[specs]);
    Ok(())
}

/// What can be changed of images of `format`.
fn specs(format: Format) -> Outcome<&'static [OptionSpec]> {
    match format {
        Format::Qcow2 => Ok(OPTIONS),
        Format::Luks => Ok(LUKS_OPTIONS),
        Format::Raw => Err(not_amendable(format)),
    }
}

fn not_amendable(format: impl Display) -> Failure {
    Failure::new(format!("Format driver '{format}' does not support option amendment"))
}

/// Reads the lists; an option of a new image is told from one that there is not.
fn parse(format: Format, specs: &[OptionSpec], lists: &[String]) -> Outcome<OptionValues> {
    OptionValues::parse(lists, &[specs]).map_err(|failure| {
        match crate::creation_options::parse(format, lists) {
            Ok(_) => {
                Failure::new(format!("{failure}\nThis option is only supported for image creation"))
            }
            Err(_) => failure,
        }
    })
}

struct Amendment<'a> {
    path: &'a Path,
    opening: Opening<'a>,
    values: &'a OptionValues,
    force: bool,
}

impl Amendment<'_> {
    /// In QEMU's order: an upgrade first, as what follows may need it, and a downgrade last.
    fn carry_out(&self) -> Outcome {
        let version = self.version()?;
        let header = self.header()?;
        self.check(&header)?;
        let bits =
            self.values.number("refcount_bits").unwrap_or(header.geometry().refcount_bits().into());
        let order =
            (1..=64).contains(&bits).then(|| bits.ilog2()).filter(|_| bits.is_power_of_two());
        let order = order.ok_or_else(|| {
            Failure::new("Refcount width must be a power of two and may not exceed 64 bits")
        })?;
        if version == Some(Version::V3) && header.version == Version::V2 {
            self.change(|image| block_on(image.upgrade()))?;
        }
        if self.is_about_encryption() {
            self.change_key_slots(key_slots::PREFIX)?;
        }
        if order != header.refcount_order {
            if version.unwrap_or(header.version) == Version::V2 && order != 4 {
                return Err(Failure::new(
                    "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or \
                     greater)",
                ));
            }
            let disk = self.opening.open_file(self.path)?;
            block_on(change_refcount_width(&disk, self.path, order))
                .map_err(|e| Failure::new(e.message()))?;
        }
        self.change_features(&header, version.unwrap_or(header.version))?;
        if version == Some(Version::V2) && header.version == Version::V3 {
            self.downgrade(&header)?;
        }
        Ok(())
    }

    /// Of an authenticated image: passphrases, and the size.
    fn change_authenticated(&self) -> Outcome {
        let other = self.values.names().find(|name| {
            let is_known = *name == "size" || name.starts_with(key_slots::PREFIX);
            !is_known
        });
        if let Some(other) = other {
            let what = format!("the option '{other}' of an authenticated image cannot be changed");
            return Err(Failure::new(what));
        }
        if self.is_about_encryption() {
            self.change_key_slots(key_slots::PREFIX)?;
        }
        self.change_size()
    }

    fn version(&self) -> Outcome<Option<Version>> {
        match self.values.text("compat") {
            None => Ok(None),
            Some("0.10" | "v2") => Ok(Some(Version::V2)),
            Some("1.1" | "v3") => Ok(Some(Version::V3)),
            Some(other) => Err(Failure::new(format!("Unknown compatibility level {other}"))),
        }
    }

    fn check(&self, header: &Header) -> Outcome {
        let refused = match header.crypt_method {
            CryptMethod::None => "Can't amend encryption options - encryption not present",
            CryptMethod::Aes => "Only LUKS encryption options can be amended",
            CryptMethod::Luks => "",
        };
        if self.is_about_encryption() && !refused.is_empty() {
            return Err(Failure::new(refused));
        }
        if self.values.text("data_file").is_some() && !header.has_external_data() {
            let what = "data-file can only be set for images that use an external data file";
            return Err(Failure::new(what));
        }
        if self.values.is_on("data_file_raw") && !header.has_raw_external_data() {
            return Err(Failure::new("data-file-raw cannot be set on existing images"));
        }
        Ok(())
    }

    fn is_about_encryption(&self) -> bool {
        self.values.names().any(|name| name.starts_with(key_slots::PREFIX))
    }

    fn change_key_slots(&self, prefix: &str) -> Outcome {
        let change = SlotChange::parse(self.values, prefix, self.force)?;
        let passphrase = self.opening.key(self.path)?.ok_or_else(|| {
            // An image that needs a key would not have been opened.
            Failure::new(format!("Parameter '{prefix}key-secret' is required for cipher"))
        })?;
        let image = self.opening.open(self.path)?;
        let changed = match image.is_authenticated() {
            true => change.carry_out_sealed(&image, &passphrase),
            false => change.carry_out(&image, &passphrase),
        };
        close(&image, changed)
    }

    /// What is neither version nor width.
    fn change_features(&self, header: &Header, version: Version) -> Outcome {
        if header.has_raw_external_data() && self.is_turned_off("data_file_raw") {
            self.change(|image| block_on(image.forget_raw_data_file()))?;
        }
        let named = |name| self.values.text(name);
        if let Some(name) = named("data_file") {
            let name = (!name.is_empty()).then(|| OsString::from(name));
            self.change(|image| block_on(image.name_data_file(name)))?;
        }
        if named("backing_file").is_some() || named("backing_fmt").is_some() {
            let now = header.backing_name.as_ref().and_then(|name| name.to_str());
            let format = header.extensions.backing_format.as_deref();
            if named("backing_file") != now || named("backing_fmt") != format {
                return Err(Failure::new(
                    "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.",
                ));
            }
        }
        let lazy = header.compatible.contains(Compatible::LAZY_REFCOUNTS);
        let wanted = match self.values.text("lazy_refcounts") {
            Some(_) => self.values.is_on("lazy_refcounts"),
            None => lazy,
        };
        if wanted != lazy {
            if wanted && version == Version::V2 {
                return Err(Failure::new(
                    "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
                ));
            }
            self.change(|image| block_on(image.set_lazy_refcounts(wanted)))?;
        }
        self.change_size()
    }

    fn change_size(&self) -> Outcome {
        match self.values.number("size").filter(|&size| size > 0) {
            None => Ok(()),
            Some(size) if !size.is_multiple_of(SECTOR_BYTES) => {
                Err(Failure::new("The new size must be a multiple of 512"))
            }
            Some(size) => self.change(|image| {
                let how = Resize { shrink: true, preallocation: Preallocation::Off };
                block_on(async {
                    image.resize_as(size, &how).await?;
                    image.trim().await
                })
            }),
        }
    }

    fn is_turned_off(&self, name: &str) -> bool {
        self.values.text(name).is_some() && !self.values.is_on(name)
    }

    fn downgrade(&self, header: &Header) -> Outcome {
        // First what the engine refuses, and what takes no look at all clusters.
        self.change(|image| block_on(image.check_downgradable()))?;
        let zstd = header.incompatible.contains(Incompatible::COMPRESSION_TYPE);
        let reading = Opening { writable: false, backing: false, ..self.opening };
        let snapshots = block_on(reading.open(self.path)?.snapshots())?;
        for snapshot in snapshots {
            let choice = SnapshotChoice::IdAndName(snapshot.id.clone(), snapshot.name.clone());
            let image = Opening { snapshot: Some(&choice), ..reading }.open(self.path)?;
            if has_any(&image, |extent| extent.present && extent.zero && !extent.data)? {
                let what =
                    "cannot expand the zero clusters of internal snapshots yet: delete them first";
                return Err(Failure::new(what));
            }
            check_compression(&image, zstd)?;
        }
        check_compression(&reading.open(self.path)?, zstd)?;
        self.change(|image| block_on(image.downgrade()))
    }

    /// Opens the image, changes it, and closes it.
    fn change(&self, change: impl FnOnce(&HostImage) -> qcow::Result<()>) -> Outcome {
        let image = self.opening.open(self.path)?;
        let changed = change(&image).map_err(|e| Failure::new(e.message()));
        close(&image, changed)
    }

    fn header(&self) -> Outcome<Header> {
        let disk = Opening { writable: false, ..self.opening }.open_file(self.path)?;
        let told = block_on(ImageInfo::read(&disk, self.path, Some(Format::Qcow2)));
        let header = told.map_err(|e| Failure::new(e.message()))?.header;
        header.ok_or_else(|| not_amendable(Format::Raw))
    }
}

/// Compressed clusters of version 2 are deflate.
fn check_compression(image: &HostImage, zstd: bool) -> Outcome {
    if zstd && has_any(image, |extent| extent.compressed)? {
        let what =
            "Cannot downgrade an image with zstd compression type and existing compressed clusters";
        return Err(Failure::new(what));
    }
    Ok(())
}

fn has_any(image: &HostImage, is_meant: impl Fn(&MapExtent) -> bool) -> Outcome<bool> {
    let (mut at, size) = (0, image.virtual_size());
    while at < size {
        let extent = block_on(image.map(at, size - at)).map_err(|e| Failure::new(e.message()))?;
        if is_meant(&extent) {
            return Ok(true);
        }
        at += extent.len;
    }
    Ok(false)
}

fn close(image: &HostImage, changed: Outcome) -> Outcome {
    let closed = block_on(image.close());
    changed?;
    closed.map_err(|e| Failure::new(e.message()))
}
