//! How an image is to be opened, and what a new one is to be like.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::unpack::Unpackers;
use crate::addr::Geometry;
use crate::crypt::Passphrase;
use crate::crypt::luks::NewLuks;
use crate::crypt::sealed_slots::SlotCost;
use crate::error::{Error, Result};
use crate::format::compression::CompressionType;
use crate::format::header::Version;
use crate::limits;
use crate::meta::snapshot::SnapshotChoice;

/// An image format that the engine reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// The disk's bytes and nothing else.
    Raw,
    /// A LUKS header of version 1, and the disk's bytes encrypted behind it.
    Luks,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Luks => "luks",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "qcow2" => Ok(Self::Qcow2),
            "raw" => Ok(Self::Raw),
            "luks" => Ok(Self::Luks),
            other => Err(format!("Unknown driver '{other}'")),
        }
    }
}

/// What happens to the space of discarded clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Discards do nothing.
    Ignore,
    /// Their clusters become free, and the host gets the space back.
    Unmap,
}

/// What happens to writes of nothing but zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are written like everything else.
    Off,
    /// They become zero clusters that keep their space.
    On,
    /// They become zero clusters, and their space is given back.
    Unmap,
}

/// Which image lies below another one.
#[derive(Clone, Debug, Default)]
pub enum Below {
    /// The one that the image above names.
    #[default]
    AsNamed,
    /// None, whatever the image above names.
    Nothing,
    /// The one in this file, or else the one that the image above names, in this format; an image that the user names needs no
    /// gate's leave.
    Like(Option<PathBuf>, Option<Format>),
}

/// How an image is to be opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// For writing too.
    pub writable: bool,
    /// The format of the top image; found out from its first bytes where it is not given.
    pub format: Option<Format>,
    /// Open the backing files too. Without them, what they hold reads as zeros.
    pub backing: bool,
    /// What the user says about the images below the top one, in their order; nothing about those beyond the end.
    pub below: Vec<Below>,
    /// Bytes of L2 tables to keep in memory, per image of the chain; taken as tables are read. Where nothing is said, those
    /// of the whole disk, or of [`limits::L2_CACHE_CLUSTERS_DEFAULT`] clusters of it.
    pub l2_cache_bytes: Option<u64>,
    /// Who unpacks compressed clusters.
    pub unpackers: Unpackers,
    /// What a discard does.
    pub discard: Discard,
    /// What a write of zeros does.
    pub detect_zeroes: DetectZeroes,
    /// Show the disk as it was at this internal snapshot of the top image, with the size it had then. For reading only.
    pub snapshot: Option<SnapshotChoice>,
    /// With a snapshot: the disk goes on up to the end of the VM state that was saved with it, which lies from
    /// [`Image::vm_state_start`](super::Image::vm_state_start) on.
    pub vm_state: bool,
    /// The external data file of the top image, in place of the one that the image names.
    pub data_file: Option<PathBuf>,
    /// The keys of the images of the chain, the top one's first; nothing about those beyond the end. An open image keeps
    /// none of them.
    pub keys: Vec<Option<Arc<Passphrase>>>,
    /// Open encrypted images without a key, too: for what does without their data, which can then be neither read nor
    /// written.
    pub without_keys: bool,
    /// Open images with the legacy encryption, AES-CBC, which is weak by design: for tools that make others of them.
    pub legacy_aes: bool,
    /// Whether flushes reach the disk. Without, a power cut loses everything (`cache=unsafe`).
    pub flushes: bool,
    /// Give the image a close mark at its first change if it has none.
    pub adds_mark: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            writable: false,
            format: None,
            backing: true,
            below: Vec::new(),
            l2_cache_bytes: None,
            unpackers: Unpackers::default(),
            discard: Discard::Unmap,
            detect_zeroes: DetectZeroes::Off,
            snapshot: None,
            vm_state: false,
            data_file: None,
            keys: Vec::new(),
            without_keys: false,
            legacy_aes: false,
            flushes: true,
            adds_mark: true,
        }
    }
}

impl OpenOptions {
    /// Most bytes of L2 tables to keep in memory of an image of this geometry.
    pub(super) fn l2_cache_bytes_in(&self, geometry: Geometry) -> u64 {
        let default = limits::L2_CACHE_CLUSTERS_DEFAULT * geometry.l2_entry_bytes();
        self.l2_cache_bytes.unwrap_or(default)
    }
}

/// What is laid out in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing: the image grows as it is written.
    Off,
    /// All tables, and room in the file for all data, which the host does not store yet.
    Metadata,
    /// All tables, and space on the host for all data.
    Falloc,
    /// All tables, and zeros written for all data.
    Full,
}

/// What a new image is to be like.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Bytes of virtual disk; rounded up to whole sectors.
    pub size: u64,
    /// Version of the format.
    pub version: Version,
    /// log2 of the cluster size in bytes, 9 to 21.
    pub cluster_bits: u32,
    /// log2 of the refcount width in bits, 0 to 6.
    pub refcount_order: u32,
    /// Let each cluster have 32 subclusters, which are allocated one by one.
    pub extended_l2: bool,
    /// Let QEMU postpone refcount updates.
    pub lazy_refcounts: bool,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// What is laid out in advance.
    pub preallocation: Preallocation,
    /// The backing file's name as the image is to record it, and its format.
    pub backing: Option<(OsString, Option<String>)>,
    /// The external data file, if guest data is to lie in a file of its own.
    pub data_file: Option<DataFileOptions>,
    /// How the disk is encrypted, if it is.
    pub encryption: Option<NewEncryption>,
    /// How it is authenticated, if it is.
    pub integrity: Option<NewIntegrity>,
    /// Give it a close mark.
    pub marked: bool,
}

/// How a new authenticated image is sealed.
#[derive(Clone, Debug)]
pub enum NewIntegrity {
    /// With checksums, CRC-32C: against accidents.
    Crc32c,
    /// With AES-256-GCM and a random key, unlocked by this passphrase, a guess of which costs that.
    Aes256Gcm(Arc<Passphrase>, SlotCost),
}

/// How the disk of a new image is encrypted.
#[derive(Clone, Debug)]
pub enum NewEncryption {
    /// With LUKS, unlocked by this passphrase.
    Luks(NewLuks, Arc<Passphrase>),
    /// In the legacy way, AES-CBC, which is weak by design, with this password.
    Aes(Arc<Passphrase>),
}

/// The external data file of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFileOptions {
    /// Its name as the image is to record it.
    pub name: OsString,
    /// Whether it always equals the disk, so that it can be read as a raw image.
    pub raw: bool,
}

impl Default for CreateOptions {
    /// What `qemu-img create` makes: version 3, 64 KiB clusters, 16-bit refcounts.
    fn default() -> Self {
        Self {
            size: 0,
            version: Version::V3,
            cluster_bits: 16,
            refcount_order: 4,
            extended_l2: false,
            lazy_refcounts: false,
            compression: CompressionType::Deflate,
            preallocation: Preallocation::Off,
            backing: None,
            data_file: None,
            encryption: None,
            integrity: None,
            marked: true,
        }
    }
}

impl CreateOptions {
    /// Whether the data file is to equal the disk at all times.
    pub(super) fn data_is_raw(&self) -> bool {
        self.data_file.as_ref().is_some_and(|file| file.raw)
    }

    /// What is laid out in advance. Who reads a raw data file past the tables finds zeros where nothing was written, so
    /// the tables have to name that from the start.
    pub(super) fn effective_preallocation(&self) -> Preallocation {
        match self.preallocation {
            Preallocation::Off if self.data_is_raw() => Preallocation::Metadata,
            other => other,
        }
    }

    /// Fails where the options contradict each other or the format.
    pub(super) fn check(&self) -> Result<()> {
        self.check_tables()?;
        self.check_features()
    }

    /// Fails where what is said of clusters, entries and counts contradicts itself or the format.
    ///
    /// # Errors
    /// What is wrong, in QEMU's words and order.
    pub fn check_tables(&self) -> Result<()> {
        if self.extended_l2 && self.version < Version::V3 {
            return Err(Error::invalid(
                "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ));
        }
        let bits = limits::CLUSTER_BITS_MIN..=limits::CLUSTER_BITS_MAX;
        if !bits.contains(&self.cluster_bits) {
            return Err(Error::invalid(
                "Cluster size must be a power of two between 512 and 2048k",
            ));
        }
        if self.extended_l2 && self.cluster_bits < limits::EXTENDED_L2_CLUSTER_BITS_MIN {
            return Err(Error::invalid(format!(
                "Extended L2 entries are only supported with cluster sizes of at least {} bytes",
                1 << limits::EXTENDED_L2_CLUSTER_BITS_MIN
            )));
        }
        if self.backing.is_some() && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return Err(Error::invalid(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ));
        }
        if self.version == Version::V2 && self.lazy_refcounts {
            return Err(Error::invalid(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ));
        }
        if self.refcount_order > limits::REFCOUNT_ORDER_MAX {
            return Err(Error::invalid(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        if self.version == Version::V2 && self.refcount_order != 4 {
            return Err(Error::invalid(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
            ));
        }
        Ok(())
    }

    fn check_features(&self) -> Result<()> {
        self.check_encryption()?;
        if self.integrity.is_some() {
            self.check_integrity()?;
        }
        if self.data_is_raw() && self.backing.is_some() {
            return Err(Error::invalid(
                "Backing file and data-file-raw cannot be used at the same time",
            ));
        }
        if self.version == Version::V3 {
            return Ok(());
        }
        if self.data_file.is_some() {
            return Err(Error::invalid(
                "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ));
        }
        if self.compression != CompressionType::Deflate {
            return Err(Error::invalid(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ));
        }
        Ok(())
    }
}

impl NewEncryption {
    /// Bytes of the header that keeps the key, with all key material.
    pub fn header_len(&self) -> u64 {
        match self {
            Self::Luks(new, _) => new.payload_offset(),
            Self::Aes(_) => 0,
        }
    }
}

impl CreateOptions {
    /// Fails where an authenticated image cannot be what else is asked for.
    fn check_integrity(&self) -> Result<()> {
        let bits = limits::SEALED_CLUSTER_BITS_MIN..=limits::SEALED_CLUSTER_BITS_MAX;
        if !bits.contains(&self.cluster_bits) {
            return Err(Error::invalid(format!(
                "the clusters of an authenticated image have {} to {} bytes",
                1 << bits.start(),
                1 << bits.end()
            )));
        }
        let others = [
            (self.version == Version::V2, "compat=0.10"),
            (self.extended_l2, "extended_l2=on"),
            (self.lazy_refcounts, "lazy_refcounts=on"),
            (self.preallocation != Preallocation::Off, "preallocation"),
            (self.data_file.is_some(), "data_file"),
            (self.encryption.is_some(), "encrypt.format"),
        ];
        match others.iter().find(|(is_asked, _)| *is_asked) {
            Some((_, option)) => {
                Err(Error::invalid(format!("integrity does not go with {option}")))
            }
            None => Ok(()),
        }
    }

    /// Fails where the encryption contradicts the rest.
    fn check_encryption(&self) -> Result<()> {
        let Some(encryption) = &self.encryption else { return Ok(()) };
        if let NewEncryption::Luks(new, _) = encryption {
            new.check()?;
        }
        if self.data_is_raw() {
            let what = "an encrypted disk is no raw data file (data_file_raw)";
            return Err(Error::invalid(what));
        }
        if self.preallocation != Preallocation::Off && self.version < Version::V3 {
            // Preallocated clusters of an encrypted disk have to be zero clusters.
            return Err(Error::invalid(
                "Encryption and preallocation are only supported together with compatibility level 1.1 and above (use version=v3 or greater)",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_l2_cache_reaches_as_far_whatever_an_entry_takes() {
        let reach = |geometry: Geometry| {
            let bytes = OpenOptions::default().l2_cache_bytes_in(geometry);
            let slices = bytes / geometry.slice_bytes();
            geometry.bytes(slices * geometry.l2_entries_per_slice())
        };
        for bits in limits::CLUSTER_BITS_MIN..=limits::CLUSTER_BITS_MAX {
            let extended = bits >= limits::EXTENDED_L2_CLUSTER_BITS_MIN;
            for extended in [false, extended] {
                let geometry = Geometry::new(bits, 4).with_extended_l2(extended);
                assert_eq!(reach(geometry), limits::L2_CACHE_CLUSTERS_DEFAULT << bits);
            }
        }
        let options = OpenOptions { l2_cache_bytes: Some(4096), ..OpenOptions::default() };
        assert_eq!(options.l2_cache_bytes_in(Geometry::new(16, 4)), 4096, "what is said counts");
    }
}
