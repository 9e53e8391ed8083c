//! Where everything of a new image lies, and what its tables say.

use super::options::{CreateOptions, NewEncryption, Preallocation};
use crate::addr::{Geometry, GuestCluster, HostCluster, HostOffset, L1Index, L2Index, sector_ceil};
use crate::error::{Error, Result};
use crate::format::compression::CompressionType;
use crate::format::entry::{L1Entry, Mapping, Owned, RefcountTableEntry};
use crate::format::extension::{EncryptionHeader, Extensions};
use crate::format::feature::{Autoclear, Compatible, FeatureNames, Incompatible};
use crate::format::header::{CryptMethod, HEADER_LENGTH_V2, HEADER_LENGTH_V3, Header, Version};
use crate::format::mark::{Mark, MarkState};
use crate::limits::{L1_BYTES_MAX, REFCOUNT_TABLE_BYTES_MAX};
use crate::meta::refs::set_count;

/// Where everything of a new image lies. The parts follow each other without gaps.
#[derive(Debug)]
pub(super) struct Layout {
    pub geometry: Geometry,
    size: u64,
    refcount_table_clusters: u64,
    pub block_count: u64,
    /// Bytes of the LUKS header with its key material.
    encryption_len: u64,
    l1_entries: u64,
    /// Tables and data that are laid out in advance.
    pub l2_count: u64,
    pub data_count: u64,
    /// Data lies in a file of its own, each cluster where the guest has it.
    external_data: bool,
    /// Whether data is encrypted, so that no place of it reads as zeros by itself.
    encrypted: bool,
}

impl Layout {
    pub fn plan(options: &CreateOptions) -> Result<Self> {
        let geometry = Geometry::new(options.cluster_bits, options.refcount_order)
            .with_extended_l2(options.extended_l2);
        let too_large =
            || Error::limit("The image size is too large (try using a larger cluster size)");
        let size = sector_ceil(options.size).ok_or_else(too_large)?;
        let l1_entries = geometry.l1_entries_for(size);
        if l1_entries * 8 > L1_BYTES_MAX {
            return Err(too_large());
        }
        let (l2_count, data_count) = match options.effective_preallocation() {
            Preallocation::Off => (0, 0),
            _ => (l1_entries, geometry.clusters_for(size)),
        };
        let mut layout = Self {
            geometry,
            size,
            refcount_table_clusters: 1,
            block_count: 1,
            encryption_len: options.encryption.as_ref().map_or(0, NewEncryption::header_len),
            l1_entries,
            l2_count,
            data_count,
            external_data: options.data_file.is_some(),
            encrypted: options.encryption.is_some(),
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

    /// Bytes of virtual disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn refcount_table(&self) -> HostCluster {
        HostCluster::new(1)
    }

    pub fn block(&self, index: u64) -> HostCluster {
        self.refcount_table().plus(self.refcount_table_clusters + index)
    }

    /// The LUKS header, if there is one.
    pub fn encryption(&self) -> Option<EncryptionHeader> {
        let offset = self.geometry.host_start(self.block(self.block_count));
        let length = self.encryption_len;
        (length > 0).then_some(EncryptionHeader { offset, length })
    }

    pub fn l1(&self) -> HostCluster {
        self.block(self.block_count).plus(self.geometry.clusters_for(self.encryption_len))
    }

    pub fn l2(&self, index: u64) -> HostCluster {
        self.l1().plus(self.geometry.clusters_for(self.l1_entries * 8) + index)
    }

    pub fn data(&self, index: u64) -> HostCluster {
        match self.external_data {
            true => HostCluster::new(index),
            false => self.l2(self.l2_count).plus(index),
        }
    }

    /// The first cluster behind everything.
    fn end(&self) -> HostCluster {
        let data_count = if self.external_data { 0 } else { self.data_count };
        self.l2(self.l2_count).plus(data_count)
    }

    pub fn refcount_table_bytes(&self) -> Vec<u8> {
        let entry = |i| RefcountTableEntry::to_block(self.geometry, self.block(i)).0.to_be_bytes();
        let mut bytes: Vec<u8> = (0..self.block_count).flat_map(entry).collect();
        bytes.resize(self.geometry.bytes(self.refcount_table_clusters) as usize, 0);
        bytes
    }

    pub fn block_bytes(&self, index: u64) -> Vec<u8> {
        let first = self.geometry.refcount_block_first(index);
        let used = self.end().get() - first.get();
        let mut bytes = vec![0; self.geometry.cluster_size() as usize];
        for i in 0..used.min(self.geometry.refcounts_per_block()) {
            set_count(&mut bytes, self.geometry.refcount_order(), i as usize, 1);
        }
        bytes
    }

    pub fn l1_bytes(&self) -> Vec<u8> {
        let entry = |i| match i < self.l2_count {
            true => L1Entry::to_table(self.geometry, self.l2(i), true),
            false => L1Entry::EMPTY,
        };
        (0..self.l1_entries).flat_map(|i| entry(i).0.to_be_bytes()).collect()
    }

    pub fn l2_bytes(&self, index: u64) -> Vec<u8> {
        let entry = |i: u64| {
            let l1 = L1Index(index as usize);
            let guest: GuestCluster = self.geometry.guest_cluster_at(l1, L2Index(i as usize));
            let mapping = if guest.get() < self.data_count {
                let place = Owned { cluster: self.data(guest.get()), copied: true };
                match Mapping::preallocated(self.geometry, place) {
                    Mapping::Data(place) if self.encrypted => {
                        Mapping::Zero { preallocated: Some(place) }
                    }
                    mapping => mapping,
                }
            } else {
                Mapping::Unallocated
            };
            mapping.encode(self.geometry)
        };
        (0..self.geometry.l2_entries()).flat_map(entry).collect()
    }

    /// The header; with a close mark, unless none is wanted or there is no room for one.
    pub fn header(&self, options: &CreateOptions) -> Header {
        let mut header = self.unmarked_header(options);
        if !options.marked {
            return header;
        }
        header.extensions.mark = Some(Mark::new(MarkState::Clean));
        if header.encode().is_err() {
            header.extensions.mark = None;
        }
        header
    }

    fn unmarked_header(&self, options: &CreateOptions) -> Header {
        let v3 = options.version == Version::V3;
        let (name, format) = options.backing.clone().unzip();
        Header {
            version: options.version,
            backing_name: name,
            cluster_bits: options.cluster_bits,
            size: self.size,
            crypt_method: match &options.encryption {
                None => CryptMethod::None,
                Some(NewEncryption::Aes(_)) => CryptMethod::Aes,
                Some(NewEncryption::Luks(..)) => CryptMethod::Luks,
            },
            l1_size: self.l1_entries as u32,
            // As QEMU: a table without entries lies nowhere.
            l1_table_offset: match self.l1_entries {
                0 => HostOffset::new(0),
                _ => self.geometry.host_start(self.l1()),
            },
            refcount_table_offset: self.geometry.host_start(self.refcount_table()),
            refcount_table_clusters: self.refcount_table_clusters as u32,
            snapshot_count: 0,
            snapshots_offset: HostOffset::new(0),
            incompatible: incompatible(options),
            compatible: match options.lazy_refcounts {
                true => Compatible::LAZY_REFCOUNTS,
                false => Compatible(0),
            },
            autoclear: match options.data_is_raw() {
                true => Autoclear::RAW_EXTERNAL_DATA,
                false => Autoclear(0),
            },
            refcount_order: options.refcount_order,
            header_length: if v3 { HEADER_LENGTH_V3 } else { HEADER_LENGTH_V2 },
            compression: options.compression,
            unknown_fields: Vec::new(),
            extensions: Extensions {
                backing_format: format.flatten(),
                encryption_header: self.encryption(),
                data_file: options.data_file.as_ref().map(|file| file.name.clone()),
                feature_names: FeatureNames::for_new_image(options.cluster_bits).filter(|_| v3),
                ..Extensions::default()
            },
        }
    }
}

fn incompatible(options: &CreateOptions) -> Incompatible {
    let features = [
        (options.compression != CompressionType::Deflate, Incompatible::COMPRESSION_TYPE),
        (options.extended_l2, Incompatible::EXTENDED_L2),
        (options.data_file.is_some(), Incompatible::EXTERNAL_DATA),
    ];
    let used = features.into_iter().filter(|(used, _)| *used);
    used.fold(Incompatible(0), |all, (_, feature)| all.with(feature))
}
