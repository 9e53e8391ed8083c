//! The references of the persistent bitmaps: their directory, their tables, their clusters of bits.

use super::super::fault::Fault;
use super::super::tables::TableReader;
use super::super::uses::{Used, Uses, disjoint};
use super::super::words;
use super::Collector;
use crate::disk::Disk;
use crate::engine::load::read_bytes;
use crate::error::Result;
use crate::format::bitmap::{BitmapCluster, parse_directory, parse_table_entry};

impl<D: Disk> Collector<'_, '_, '_, D> {
    /// Follows the bitmaps, if the image vouches for them.
    pub(super) async fn walk_bitmaps(&mut self) -> Result<()> {
        let Some(bitmaps) = self.target.header.extensions.bitmaps else { return Ok(()) };
        let (at, len) = (bitmaps.directory_offset, bitmaps.directory_size);
        self.count_region(at.get(), len, 1);
        let directory = read_bytes(self.target.disk, at, len, "bitmap directory").await?;
        let (geometry, file_len) = (self.target.geometry, self.target.file_len);
        let entries = match parse_directory(&directory, bitmaps.count, geometry, file_len) {
            Ok(entries) => entries,
            Err(error) => {
                self.fault(Fault::BitmapDirectory { reason: error.message().to_owned() }, 1);
                return Ok(());
            }
        };
        let table = |start: u64, entries: u32| (start..start + u64::from(entries) * 8, Uses::OTHER);
        let tables = entries.iter().map(|e| table(e.table_offset.get(), e.table_size));
        let tables: Vec<Used> = tables.collect();
        self.count_regions(&tables);
        for (range, uses) in disjoint(&tables) {
            for piece in TableReader::<D>::pieces(range) {
                if let Some(bytes) = self.reader.read_piece(&piece).await? {
                    self.scan_bitmap_table(&bytes, uses);
                }
            }
        }
        Ok(())
    }

    fn scan_bitmap_table(&mut self, bytes: &[u8], uses: Uses) {
        let geometry = self.target.geometry;
        for entry in words(bytes) {
            match parse_table_entry(entry, geometry) {
                Ok(BitmapCluster::Data(cluster)) => {
                    let start = geometry.host_start(cluster).get();
                    self.count_region(start, geometry.cluster_size(), uses.total);
                }
                Ok(BitmapCluster::Zeros | BitmapCluster::Ones) => {}
                Err(error) => {
                    let reason = error.message().to_owned();
                    self.fault(Fault::BitmapTableEntry { reason }, uses.total);
                }
            }
        }
    }
}
