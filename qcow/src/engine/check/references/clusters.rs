//! The references of an L2 table: the clusters and the compressed data of the virtual disk.

use super::super::fault::Fault;
use super::super::loose::{Claim, LooseL2, is_copied};
use super::super::uses::Uses;
use super::super::words;
use super::Collector;
use crate::addr::Geometry;
use crate::disk::Disk;
use crate::format::header::Version;

impl<D: Disk> Collector<'_, '_, '_, D> {
    /// Counts what the entries of one L2 table name.
    pub(super) fn scan_l2(&mut self, bytes: &[u8], uses: Uses) {
        let geometry = self.target.geometry;
        let version2 = self.target.header.version == Version::V2;
        let mut layout = Layout::default();
        for entry in words(bytes).filter(|&entry| entry != 0).map(LooseL2) {
            if entry.has_reserved_bits() {
                self.fault(Fault::L2ReservedBits { entry: entry.0 }, uses.total);
            }
            if version2 && entry.has_zero_flag() {
                self.fault(Fault::ZeroFlagInVersion2 { entry: entry.0 }, uses.total);
            }
            match entry.claim(geometry) {
                Claim::Nothing => {}
                Claim::Compressed { offset, len } => {
                    if is_copied(entry.0) {
                        self.fault(Fault::CompressedCopied { offset }, uses.total);
                    }
                    layout.add_compressed();
                    self.count_region(offset, len, uses.total);
                }
                Claim::Cluster { offset, zero } => {
                    self.check_alignment(offset, zero, uses);
                    layout.add_cluster(offset, geometry);
                    if self.target.header.has_external_data() {
                        continue;
                    }
                    self.count_region(offset, geometry.cluster_size(), uses.total);
                }
            }
        }
        let summary = &mut self.tally.summary;
        summary.allocated_clusters += layout.allocated * uses.active;
        summary.compressed_clusters += layout.compressed * uses.active;
        summary.fragmented_clusters += layout.fragmented * uses.active;
    }

    fn check_alignment(&mut self, offset: u64, zero: bool, uses: Uses) {
        if self.target.geometry.is_cluster_aligned(offset) {
            return;
        }
        let fault = if zero {
            Fault::PreallocatedUnaligned { offset }
        } else {
            Fault::DataUnaligned { offset }
        };
        self.fault(fault, uses.total);
    }
}

/// How the clusters of one L2 table lie in the file.
#[derive(Default)]
struct Layout {
    allocated: u64,
    compressed: u64,
    fragmented: u64,
    /// Where the last cluster ends.
    next: Option<u64>,
}

impl Layout {
    fn add_cluster(&mut self, offset: u64, geometry: Geometry) {
        self.allocated += 1;
        self.fragmented += u64::from(self.next.is_some_and(|next| next != offset));
        self.next = Some(offset + geometry.cluster_size());
    }

    /// Compressed clusters share sectors, so each of them costs a read of its own.
    fn add_compressed(&mut self) {
        self.allocated += 1;
        self.compressed += 1;
        self.fragmented += 1;
    }
}
