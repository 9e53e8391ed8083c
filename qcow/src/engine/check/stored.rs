//! The counts that the image stores: the refcount table, and what its blocks say.

use std::collections::BTreeSet;
use std::ops::Range;

use super::bits::Bits;
use super::loose::LooseRefcountTable;
use super::tables::TableReader;
use super::target::Target;
use super::words;
use crate::addr::{Geometry, HostCluster, HostOffset};
use crate::disk::Disk;
use crate::engine::load::read_bytes;
use crate::error::{Error, Result};
use crate::limits::SECTOR_BYTES;
use crate::meta::refs::read_count;

/// A file does not grow for a refcount block behind its end by more than its own length and this many bytes.
const GROWTH_MAX: u64 = 64 << 20;

/// What the refcount table says about one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Block {
    /// There is none: all its clusters count zero.
    Missing,
    /// It starts at this byte, at a cluster boundary, perhaps behind the end of the file.
    At(u64),
    /// The entry names no place where a block can be.
    Unreadable,
}

/// The refcount table, and for each cluster of the file whether it is counted exactly once.
pub(in crate::engine) struct StoredCounts {
    geometry: Geometry,
    table: Vec<LooseRefcountTable>,
    /// As far as that was read.
    singles: Bits,
    /// The sector of a block that was read last, and where it lies.
    sector: Option<(u64, Vec<u8>)>,
    /// Table entries for whose blocks the file was made longer.
    extended: BTreeSet<u64>,
}

impl StoredCounts {
    /// Reads the table alone.
    pub(in crate::engine) async fn read_table<D: Disk>(target: &Target<'_, D>) -> Result<Self> {
        let (header, geometry) = (&target.header, target.geometry);
        let len = geometry.bytes(header.refcount_table_clusters.into());
        let bytes = target.read(header.refcount_table_offset.get(), len, "refcount table").await?;
        let table = words(&bytes).map(LooseRefcountTable).collect();
        let (singles, extended) = (Bits::new(0), BTreeSet::new());
        Ok(Self { geometry, table, singles, sector: None, extended })
    }

    /// Reads all blocks for which clusters of the file are counted exactly once.
    pub(in crate::engine) async fn read_singles<D: Disk>(
        &mut self,
        target: &Target<'_, D>,
    ) -> Result<()> {
        let geometry = self.geometry;
        // One more than the file has: an unaligned entry can reach into the cluster behind it.
        let clusters = target.clusters() + 1;
        self.singles = Bits::new(clusters);
        let mut reader = TableReader::new(target);
        let blocks = clusters.div_ceil(geometry.refcounts_per_block()).min(self.table.len() as u64);
        let places = (0..blocks).filter_map(|index| Some((index, self.block(index).place()?)));
        let places: Vec<(u64, u64)> = places.collect();
        for batch in places.chunks(TableReader::<D>::batch_for(geometry.cluster_size())) {
            let offsets: Vec<u64> = batch.iter().map(|&(_, at)| at).collect();
            let read = reader.read(&offsets, geometry.cluster_size()).await?;
            for (&(index, _), block) in batch.iter().zip(read) {
                let Some(block) = block else { continue };
                let first = geometry.refcount_block_first(index).get();
                let end = clusters.min(first + geometry.refcounts_per_block());
                self.note_singles(first..end, &block);
            }
        }
        Ok(())
    }

    fn note_singles(&mut self, clusters: Range<u64>, block: &[u8]) {
        let order = self.geometry.refcount_order();
        let first = clusters.start;
        if order == 4 {
            // By far the most usual width.
            let (counts, _) = block.as_chunks::<2>();
            for (cluster, count) in clusters.zip(counts) {
                self.set_single(HostCluster::new(cluster), *count == [0, 1]);
            }
            return;
        }
        for cluster in clusters {
            let count = read_count(block, order, (cluster - first) as usize);
            self.set_single(HostCluster::new(cluster), count == 1);
        }
    }

    /// Makes the file longer where a refcount block lies behind its end, so that it is a block of zeros; not by more than
    /// it has.
    pub(in crate::engine) async fn extend_file<D: Disk>(
        &mut self,
        target: &mut Target<'_, D>,
    ) -> Result<()> {
        let geometry = self.geometry;
        let len_max = target.file_len.saturating_mul(2).saturating_add(GROWTH_MAX);
        for (index, entry) in (0_u64..).zip(self.table.clone()) {
            let Block::At(at) = self.block(index) else { continue };
            if entry.has_reserved_bits() || target.cluster_at(at).get() < target.clusters() {
                continue;
            }
            let end = at.saturating_add(geometry.cluster_size());
            if end > len_max {
                continue;
            }
            let grown = target.disk.set_len(end).await;
            grown.map_err(|e| Error::io("Could not make the file longer", &e))?;
            target.file_len = end;
            self.extended.insert(index);
        }
        Ok(())
    }

    /// Whether the file was made longer for the block behind entry `index`.
    pub(in crate::engine) fn was_extended_for(&self, index: u64) -> bool {
        self.extended.contains(&index)
    }

    /// The entries of the refcount table.
    pub(in crate::engine) fn table(&self) -> &[LooseRefcountTable] {
        &self.table
    }

    /// The block behind entry `index`, which may be past the end of the table.
    pub(in crate::engine) fn block(&self, index: u64) -> Block {
        let entry = usize::try_from(index).ok().and_then(|index| self.table.get(index));
        match entry.map_or(0, |entry| entry.offset()) {
            0 => Block::Missing,
            offset if !self.geometry.is_cluster_aligned(offset) => Block::Unreadable,
            // No file is that long, and no host takes such an offset.
            offset if offset > i64::MAX as u64 => Block::Unreadable,
            offset => Block::At(offset),
        }
    }

    /// Whether the count of `cluster` can be read.
    pub(in crate::engine) fn is_readable(&self, cluster: HostCluster) -> bool {
        self.block(self.geometry.refcount_block_index(cluster)) != Block::Unreadable
    }

    /// Records whether the count of `cluster` is exactly one.
    pub(in crate::engine) fn set_single(&mut self, cluster: HostCluster, single: bool) {
        self.singles.set(cluster.get(), single);
    }

    /// Whether the count of `cluster` is one, as far as that is known without a look; an unreadable count is not.
    pub(in crate::engine) fn is_single(&self, cluster: HostCluster) -> Option<bool> {
        let at = cluster.get();
        (at < self.singles.len()).then(|| self.singles.get(at))
    }

    /// Whether each count of `clusters` is one, or none is, as `single` tells.
    pub(in crate::engine) fn are_single(&self, clusters: &Range<u64>, single: bool) -> bool {
        self.singles.are(clusters, single)
    }

    /// The count of any cluster, in the file or behind it, from the disk; `None` where it cannot be read.
    pub(in crate::engine) async fn get<D: Disk>(
        &mut self,
        target: &Target<'_, D>,
        cluster: HostCluster,
    ) -> Result<Option<u64>> {
        let start = match self.block(self.geometry.refcount_block_index(cluster)) {
            Block::Missing => return Ok(Some(0)),
            Block::Unreadable => return Ok(None),
            Block::At(start) if start >= target.file_len => return Ok(Some(0)),
            Block::At(start) => start,
        };
        let order = self.geometry.refcount_order();
        let per_sector = (SECTOR_BYTES * 8) >> order;
        let index = self.geometry.index_in_refcount_block(cluster);
        let at = start + index / per_sector * SECTOR_BYTES;
        if self.sector.as_ref().is_none_or(|&(known, _)| known != at) {
            let offset = HostOffset::new(at);
            let bytes = read_bytes(target.disk, offset, SECTOR_BYTES, "refcount block").await?;
            self.sector = Some((at, bytes));
        }
        let count =
            |(_, bytes): &(u64, Vec<u8>)| read_count(bytes, order, (index % per_sector) as usize);
        Ok(self.sector.as_ref().map(count))
    }

    /// Forgets what was read, because blocks have been written.
    pub(in crate::engine) fn forget_sector(&mut self) {
        self.sector = None;
    }
}

impl Block {
    /// Where the block starts, if it is anywhere.
    pub(in crate::engine) fn place(&self) -> Option<u64> {
        match self {
            Self::At(offset) => Some(*offset),
            Self::Missing | Self::Unreadable => None,
        }
    }
}
