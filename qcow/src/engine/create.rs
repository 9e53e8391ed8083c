//! Making a new, empty qcow2 image.
//!
//! ```text
//! cluster 0      header, extensions, backing file name
//! then           refcount table | refcount blocks | L1 table
//! preallocated   L2 tables | data, in guest order
//! ```

use std::ffi::OsString;

use crate::addr::{Geometry, GuestCluster, HostCluster, HostOffset, L1Index, L2Index, sector_ceil};
use crate::disk::{Buffer, Disk, Payload};
use crate::error::{Error, Result};
use crate::format::compression::CompressionType;
use crate::format::entry::{L1Entry, L2Entry, Mapping, Owned, RefcountTableEntry};
use crate::format::extension::Extensions;
use crate::format::feature::{Autoclear, Compatible, FeatureNames, Incompatible};
use crate::format::header::{CryptMethod, HEADER_LENGTH_V2, HEADER_LENGTH_V3, Header, Version};
use crate::limits::{self, L1_BYTES_MAX, REFCOUNT_TABLE_BYTES_MAX};
use crate::meta::refs::set_count;

/// Zeros that one write carries.
const ZERO_WRITE_LEN: u64 = 4 << 20;

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
    /// Let QEMU postpone refcount updates.
    pub lazy_refcounts: bool,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// What is laid out in advance.
    pub preallocation: Preallocation,
    /// The backing file's name as the image is to record it, and its format.
    pub backing: Option<(OsString, Option<String>)>,
}

impl Default for CreateOptions {
    /// What `qemu-img create` makes: version 3, 64 KiB clusters, 16-bit refcounts.
    fn default() -> Self {
        Self {
            size: 0,
            version: Version::V3,
            cluster_bits: 16,
            refcount_order: 4,
            lazy_refcounts: false,
            compression: CompressionType::Deflate,
            preallocation: Preallocation::Off,
            backing: None,
        }
    }
}

/// Makes `disk`, which is empty, a qcow2 image.
///
/// # Errors
/// The options contradict each other or exceed a limit, or the host failed.
pub async fn create<D: Disk>(disk: &D, options: &CreateOptions) -> Result<()> {
    options.check()?;
    let layout = Layout::plan(options)?;
    let geometry = layout.geometry;
    write(disk, geometry.host_start(layout.refcount_table()), &layout.refcount_table_bytes())
        .await?;
    for index in 0..layout.block_count {
        let at = geometry.host_start(layout.block(index));
        write(disk, at, &layout.block_bytes(index)).await?;
    }
    write(disk, geometry.host_start(layout.l1()), &layout.l1_bytes()).await?;
    layout.preallocate(disk, options.preallocation).await?;
    // The header last: until then nobody can take it for a whole image.
    disk.sync().await.map_err(|e| Error::io("flush the new image", &e))?;
    write(disk, HostOffset::new(0), &layout.header(options).encode()?).await?;
    disk.sync().await.map_err(|e| Error::io("flush the new image", &e))
}

impl CreateOptions {
    fn check(&self) -> Result<()> {
        let bits = limits::CLUSTER_BITS_MIN..=limits::CLUSTER_BITS_MAX;
        if !bits.contains(&self.cluster_bits) {
            return Err(Error::invalid(
                "Cluster size must be a power of two between 512 and 2048k",
            ));
        }
        if self.refcount_order > limits::REFCOUNT_ORDER_MAX {
            return Err(Error::invalid(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        if self.version == Version::V3 {
            return Ok(());
        }
        if self.refcount_order != 4 {
            return Err(Error::invalid(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
            ));
        }
        if self.lazy_refcounts {
            return Err(Error::invalid(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
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

/// Where everything of a new image lies. The parts follow each other without gaps.
#[derive(Debug)]
struct Layout {
    geometry: Geometry,
    size: u64,
    refcount_table_clusters: u64,
    block_count: u64,
    l1_entries: u64,
    /// Tables and data that are laid out in advance.
    l2_count: u64,
    data_count: u64,
}

impl Layout {
    fn plan(options: &CreateOptions) -> Result<Self> {
        let geometry = Geometry::new(options.cluster_bits, options.refcount_order);
        let too_large =
            || Error::limit("The image size is too large (try using a larger cluster size)");
        let size = sector_ceil(options.size).ok_or_else(too_large)?;
        let l1_entries = geometry.l1_entries_for(size);
        if l1_entries * 8 > L1_BYTES_MAX {
            return Err(too_large());
        }
        let (l2_count, data_count) = match options.preallocation {
            Preallocation::Off => (0, 0),
            _ => (l1_entries, geometry.clusters_for(size)),
        };
        let mut layout = Self {
            geometry,
            size,
            refcount_table_clusters: 1,
            block_count: 1,
            l1_entries,
            l2_count,
            data_count,
        };
        layout.settle_counts();
        if geometry.bytes(layout.refcount_table_clusters) > REFCOUNT_TABLE_BYTES_MAX {
            return Err(too_large());
        }
        Ok(layout)
    }

    /// Finds how many refcount blocks count everything, themselves included.
    fn settle_counts(&mut self) {
        loop {
            let blocks = self.end().get().div_ceil(self.geometry.refcounts_per_block());
            let clusters = self.geometry.clusters_for(blocks * 8);
            if (blocks, clusters) == (self.block_count, self.refcount_table_clusters) {
                return;
            }
            (self.block_count, self.refcount_table_clusters) = (blocks, clusters);
        }
    }

    fn refcount_table(&self) -> HostCluster {
        HostCluster::new(1)
    }

    fn block(&self, index: u64) -> HostCluster {
        self.refcount_table().plus(self.refcount_table_clusters + index)
    }

    fn l1(&self) -> HostCluster {
        self.block(self.block_count)
    }

    fn l2(&self, index: u64) -> HostCluster {
        self.l1().plus(self.geometry.clusters_for(self.l1_entries * 8) + index)
    }

    fn data(&self, index: u64) -> HostCluster {
        self.l2(self.l2_count).plus(index)
    }

    /// The first cluster behind everything.
    fn end(&self) -> HostCluster {
        self.data(self.data_count)
    }

    fn refcount_table_bytes(&self) -> Vec<u8> {
        let entry = |i| RefcountTableEntry::to_block(self.geometry, self.block(i)).0.to_be_bytes();
        let mut bytes: Vec<u8> = (0..self.block_count).flat_map(entry).collect();
        bytes.resize(self.geometry.bytes(self.refcount_table_clusters) as usize, 0);
        bytes
    }

    fn block_bytes(&self, index: u64) -> Vec<u8> {
        let first = self.geometry.refcount_block_first(index);
        let used = self.end().get() - first.get();
        let mut bytes = vec![0; self.geometry.cluster_size() as usize];
        for i in 0..used.min(self.geometry.refcounts_per_block()) {
            set_count(&mut bytes, self.geometry.refcount_order(), i as usize, 1);
        }
        bytes
    }

    fn l1_bytes(&self) -> Vec<u8> {
        let entry = |i| match i < self.l2_count {
            true => L1Entry::to_table(self.geometry, self.l2(i), true),
            false => L1Entry::EMPTY,
        };
        (0..self.l1_entries).flat_map(|i| entry(i).0.to_be_bytes()).collect()
    }

    fn l2_bytes(&self, index: u64) -> Vec<u8> {
        let entry = |i: u64| {
            let l1 = L1Index(index as usize);
            let guest: GuestCluster = self.geometry.guest_cluster_at(l1, L2Index(i as usize));
            let mapping = if guest.get() < self.data_count {
                Mapping::Data(Owned { cluster: self.data(guest.get()), copied: true })
            } else {
                Mapping::Unallocated
            };
            L2Entry::from_mapping(self.geometry, mapping).0.to_be_bytes()
        };
        (0..self.geometry.l2_entries()).flat_map(entry).collect()
    }

    async fn preallocate<D: Disk>(&self, disk: &D, how: Preallocation) -> Result<()> {
        for index in 0..self.l2_count {
            write(disk, self.geometry.host_start(self.l2(index)), &self.l2_bytes(index)).await?;
        }
        let start = self.geometry.host_start(self.data(0));
        let len = self.geometry.bytes(self.data_count);
        let done = match how {
            _ if len == 0 => return Ok(()),
            Preallocation::Off => return Ok(()),
            Preallocation::Metadata => disk.set_len(start.get() + len).await,
            Preallocation::Falloc => disk.allocate(start, len).await,
            Preallocation::Full => write_zeros(disk, start, len).await,
        };
        done.map_err(|e| Error::io("Could not preallocate data", &e))
    }

    fn header(&self, options: &CreateOptions) -> Header {
        let v3 = options.version == Version::V3;
        let (name, format) = options.backing.clone().unzip();
        let zstd = options.compression != CompressionType::Deflate;
        Header {
            version: options.version,
            backing_name: name,
            cluster_bits: options.cluster_bits,
            size: self.size,
            crypt_method: CryptMethod::None,
            l1_size: self.l1_entries as u32,
            l1_table_offset: self.geometry.host_start(self.l1()),
            refcount_table_offset: self.geometry.host_start(self.refcount_table()),
            refcount_table_clusters: self.refcount_table_clusters as u32,
            snapshot_count: 0,
            snapshots_offset: HostOffset::new(0),
            incompatible: if zstd { Incompatible::COMPRESSION_TYPE } else { Incompatible(0) },
            compatible: match options.lazy_refcounts {
                true => Compatible::LAZY_REFCOUNTS,
                false => Compatible(0),
            },
            autoclear: Autoclear(0),
            refcount_order: options.refcount_order,
            header_length: if v3 { HEADER_LENGTH_V3 } else { HEADER_LENGTH_V2 },
            compression: options.compression,
            unknown_fields: Vec::new(),
            extensions: Extensions {
                backing_format: format.flatten(),
                feature_names: FeatureNames::for_new_image(options.cluster_bits).filter(|_| v3),
                ..Extensions::default()
            },
        }
    }
}

async fn write<D: Disk>(disk: &D, at: HostOffset, bytes: &[u8]) -> Result<()> {
    let written = disk.write(at, &Buffer::from_bytes(bytes).payload()).await;
    written.map_err(|e| Error::io(format!("write at {at}"), &e))
}

/// Writes zeros as bytes, so that the host has to store them.
async fn write_zeros<D: Disk>(disk: &D, at: HostOffset, len: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(ZERO_WRITE_LEN);
        disk.write(at.plus(done), &Payload::zeros(piece)).await?;
        done += piece;
    }
    Ok(())
}
