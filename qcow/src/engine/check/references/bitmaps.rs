//! The references of the persistent bitmaps: their directory, their tables, their clusters of bits.

use super::super::fault::Fault;
use super::super::tables::TableReader;
use super::super::uses::{Used, Uses, disjoint};
use super::super::words;
use super::Collector;
use crate::disk::Disk;
use crate::error::Result;
use crate::format::bitmap::{
    BitmapCluster, BitmapEntry, BitmapFlags, parse_directory, parse_table_entry,
};

impl<D: Disk> Collector<'_, '_, '_, D> {
    /// Follows the bitmaps, if the image vouches for them; says whether they can be followed.
    pub(super) async fn walk_bitmaps(&mut self) -> Result<bool> {
        let Some(bitmaps) = self.target.header.extensions.bitmaps else { return Ok(true) };
        let (at, len) = (bitmaps.directory_offset.get(), bitmaps.directory_size);
        self.count_region(at, len, 1);
        let directory = self.target.read(at, len, "bitmap directory").await?;
        // Where the tables lie is looked at as they are counted.
        let entries = parse_directory(&directory, bitmaps.count, self.target.geometry, u64::MAX);
        let broken = |entry: &&BitmapEntry| !self.fits_disk(entry);
        let entries = entries.map_err(|error| error.message().to_owned()).and_then(|entries| {
            match entries.iter().find(broken) {
                Some(entry) => {
                    Err(format!("bitmap '{}' does not fit the disk", entry.name.display()))
                }
                None => Ok(entries),
            }
        });
        match entries {
            Ok(entries) => self.walk_tables(&entries).await,
            Err(reason) => Ok(self.refuse(Fault::BitmapDirectory { reason })),
        }
    }

    fn refuse(&mut self, fault: Fault) -> bool {
        self.fault(fault, 1);
        false
    }

    /// Whether the table has as many entries as the disk needs; those of bitmaps that were never saved may not.
    fn fits_disk(&self, entry: &BitmapEntry) -> bool {
        let geometry = self.target.geometry;
        let bits = self.target.header.virtual_size().div_ceil(1 << entry.granularity_bits);
        let clusters = geometry.clusters_for(bits.div_ceil(64) * 8);
        let is_saved = !entry.flags.contains(BitmapFlags::IN_USE);
        entry.extra.is_empty() && (!is_saved || clusters == u64::from(entry.table_size))
    }

    async fn walk_tables(&mut self, entries: &[BitmapEntry]) -> Result<bool> {
        let table = |e: &BitmapEntry| {
            let start = e.table_offset.get();
            (start..start + u64::from(e.table_size) * 8, Uses::OTHER)
        };
        let tables: Vec<Used> = entries.iter().map(table).collect();
        self.count_regions(&tables);
        for (range, uses) in disjoint(&tables) {
            for piece in TableReader::<D>::pieces(range) {
                if let Some(bytes) = self.reader.read_piece(&piece).await?
                    && !self.scan_table(&bytes, uses)
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn scan_table(&mut self, bytes: &[u8], uses: Uses) -> bool {
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
                    return self.refuse(Fault::BitmapTableEntry { reason });
                }
            }
        }
        true
    }
}
