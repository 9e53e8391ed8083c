//! How large a qcow2 image gets, as QEMU reckons: with all tables that a full disk needs, whatever it holds.

use qcow::format::bitmap::BitmapEntry;
use qcow::limits::{
    CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, EXTENDED_L2_CLUSTER_BITS_MIN, L1_BYTES_MAX,
};

use super::{Measure, Source};
use crate::encryption;
use crate::failure::{Failure, Outcome};
use crate::keyval::OptionValues;

/// Bytes of an entry of the L1, refcount and bitmap tables.
const ENTRY_LEN: u64 = 8;
/// Bytes of a bitmap's directory entry in front of its name.
const BITMAP_ENTRY_LEN: u64 = 24;

/// The image that is going to be made.
#[derive(Debug)]
pub(super) struct Target {
    /// Bytes.
    cluster: u64,
    version3: bool,
    refcount_bits: u64,
    extended_l2: bool,
    /// All data is laid out in advance.
    preallocated: bool,
    /// It stands on another image, which may differ from the source everywhere.
    backed: bool,
    /// Bytes of the LUKS header with its key material.
    encryption_header: u64,
}

impl Target {
    /// What the options say.
    ///
    /// # Errors
    /// In QEMU's words.
    pub(super) fn parse(values: &OptionValues) -> Outcome<Self> {
        // As QEMU: only LUKS takes room, and nothing else about encryption is looked at.
        let encryption_header = match values.text("encrypt.format") {
            Some("luks") => encryption::plan_luks(values, "encrypt.")?.0.payload_offset(),
            _ => 0,
        };
        let extended_l2 = values.is_on("extended_l2");
        let cluster = values.number("cluster_size").unwrap_or(65536);
        let bits = cluster.checked_ilog2().filter(|_| cluster.is_power_of_two());
        let bits = bits.filter(|bits| (CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(bits));
        let Some(bits) = bits else {
            return Err(Failure::new("Cluster size must be a power of two between 512 and 2048k"));
        };
        if extended_l2 && bits < EXTENDED_L2_CLUSTER_BITS_MIN {
            return Err(Failure::new(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ));
        }
        let version3 = match values.text("compat") {
            None | Some("1.1") => true,
            Some("0.10") => false,
            Some(other) => {
                return Err(Failure::new(format!("Invalid compatibility level: '{other}'")));
            }
        };
        let refcount_bits = values.number("refcount_bits").unwrap_or(16);
        if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
            return Err(Failure::new(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        if !version3 && refcount_bits != 16 {
            return Err(Failure::new(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            ));
        }
        let preallocated = match values.text("preallocation") {
            None | Some("off" | "metadata") => false,
            Some("falloc" | "full") => true,
            Some(other) => {
                return Err(Failure::new(format!("invalid parameter value: {other}")));
            }
        };
        let backed = values.text("backing_file").is_some();
        Ok(Self {
            cluster,
            version3,
            refcount_bits,
            extended_l2,
            preallocated,
            backed,
            encryption_header,
        })
    }

    /// Measures the image for `source`, or for an empty disk of `size` bytes.
    pub(super) fn measure(&self, size: u64, source: Option<&Source>) -> Outcome<Measure> {
        let size = self.check_size(size)?;
        let (size, mut stored) = match source {
            None => (size, 0),
            Some(source) => {
                let size = source.image.virtual_size().next_multiple_of(self.cluster);
                (size, if self.backed { size } else { source.stored(self.cluster)? })
            }
        };
        if self.preallocated {
            stored = size;
        }
        let encryption_header = self.encryption_header.next_multiple_of(self.cluster);
        let fully_allocated = size + self.metadata(size) + encryption_header;
        let bitmaps = source.and_then(|source| source.bitmaps.as_deref());
        let disk = source.map_or(0, |source| source.image.virtual_size());
        let bitmaps = bitmaps.filter(|_| self.version3).map(|all| self.bitmaps(all, disk));
        Ok(Measure { required: fully_allocated - size + stored, fully_allocated, bitmaps })
    }

    /// `size` in whole clusters, if the L1 table can be as long as that takes.
    fn check_size(&self, size: u64) -> Outcome<u64> {
        let size = size.checked_next_multiple_of(self.cluster);
        let fits = |&size: &u64| self.l2_tables(size) * ENTRY_LEN <= L1_BYTES_MAX;
        size.filter(fits).ok_or_else(|| {
            Failure::new("The image size is too large (try using a larger cluster size)")
        })
    }

    /// L2 tables for a disk of `size` bytes, whole clusters.
    fn l2_tables(&self, size: u64) -> u64 {
        let entry = if self.extended_l2 { 2 * ENTRY_LEN } else { ENTRY_LEN };
        (size / self.cluster).div_ceil(self.cluster / entry)
    }

    /// Bytes of everything but data, of a full disk of `size` bytes, whole clusters.
    fn metadata(&self, size: u64) -> u64 {
        let l2 = self.l2_tables(size);
        let l1 = l2.div_ceil(self.cluster / ENTRY_LEN);
        let header = 1;
        let counted = header + l1 + l2 + size / self.cluster;
        (header + l1 + l2 + self.refcount_clusters(counted)) * self.cluster
    }

    /// Clusters of the refcount table and its blocks, which count `clusters` and themselves.
    fn refcount_clusters(&self, clusters: u64) -> u64 {
        let per_block = self.cluster * 8 / self.refcount_bits;
        let (mut table, mut blocks) = (0, 0);
        loop {
            let before = table + blocks;
            blocks = (clusters + before).div_ceil(per_block);
            table = blocks.div_ceil(self.cluster / ENTRY_LEN);
            if table + blocks == before {
                return before;
            }
        }
    }

    /// Bytes of bitmaps of a disk of `size` bytes, as if all their bits were stored.
    fn bitmaps(&self, bitmaps: &[BitmapEntry], size: u64) -> u64 {
        let mut directory = 0_u64;
        let mut total = 0;
        for bitmap in bitmaps {
            let bits = size.div_ceil(1 << bitmap.granularity_bits);
            let clusters = bits.div_ceil(8).div_ceil(self.cluster);
            total += clusters * self.cluster;
            total += (clusters * ENTRY_LEN).next_multiple_of(self.cluster);
            directory += (BITMAP_ENTRY_LEN + bitmap.name.len() as u64).next_multiple_of(8);
        }
        total + directory.next_multiple_of(self.cluster)
    }
}
