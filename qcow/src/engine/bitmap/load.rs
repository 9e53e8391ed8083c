//! Reading bitmaps from an image file.

use super::{Bitmap, Bitmaps, Content};
use crate::addr::Geometry;
use crate::disk::Disk;
use crate::engine::load::{read_bytes, read_words};
use crate::error::{Error, Result};
use crate::format::bitmap::{
    BitmapCluster, BitmapEntry, BitmapFlags, parse_directory, parse_table_entry,
};
use crate::format::header::Header;
use crate::limits::{BITMAP_TABLE_BYTES_READ_MAX, BITMAPS_RECORDING_BYTES_MAX};
use crate::meta::Meta;
use crate::meta::bitmap::measure::bytes_needed;
use crate::meta::bitmap::place::{bitmap_places, directory_place};
use crate::meta::bitmap::{Bits, Stored};

/// The persistent bitmaps that the image in `disk` lists; none where its header does not vouch for them.
///
/// # Errors
/// The directory is broken, or cannot be read.
pub async fn read_directory<D: Disk>(disk: &D, header: &Header) -> Result<Vec<BitmapEntry>> {
    let Some(extension) = header.extensions.bitmaps else { return Ok(Vec::new()) };
    let file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
    // The header has been checked: the directory lies inside the file, and has at most 64 MiB.
    let (at, len) = (extension.directory_offset, extension.directory_size);
    let directory = read_bytes(disk, at, len, "bitmap directory").await?;
    parse_directory(&directory, extension.count, header.geometry(), file_len)
}

/// Reads the bitmaps of an image that is being opened for writing, and notes in `meta` where they lie.
///
/// # Errors
/// A bitmap that claims to be sound is not, two places overlap, or all together are beyond a limit; or the host failed.
pub(in crate::engine) async fn read_bitmaps<D: Disk>(
    disk: &D,
    header: &Header,
    meta: &mut Meta,
) -> Result<Bitmaps> {
    let Some(extension) = header.extensions.bitmaps else { return Ok(Bitmaps::default()) };
    let geometry = header.geometry();
    let entries = read_directory(disk, header).await?;
    check_limits(&entries, header.virtual_size())?;
    let (at, len) = (extension.directory_offset, extension.directory_size);
    meta.add_bitmap_places(geometry, [directory_place(geometry, at, len)])?;
    let mut list = Vec::with_capacity(entries.len());
    for entry in entries {
        let table = read_table(disk, geometry, &entry).await?;
        let places = bitmap_places(geometry, entry.table_offset, &table);
        let added = meta.add_bitmap_places(geometry, places);
        added.map_err(|e| e.context(about(&entry)))?;
        let mut bitmap = Bitmap::from_entry(entry, table);
        if bitmap.enabled && matches!(bitmap.content, Content::InFile) {
            bitmap.load(disk, geometry, header.virtual_size()).await?;
        } else if matches!(bitmap.content, Content::InFile) {
            bitmap.check_table_size(geometry, header.virtual_size())?;
        }
        list.push(bitmap);
    }
    Ok(Bitmaps::new(list))
}

fn about(entry: &BitmapEntry) -> String {
    format!("Could not read bitmap '{}' from image", entry.name.display())
}

fn check_limits(entries: &[BitmapEntry], size: u64) -> Result<()> {
    let tables: u64 = entries.iter().map(|entry| u64::from(entry.table_size) * 8).sum();
    if tables > BITMAP_TABLE_BYTES_READ_MAX {
        let max = BITMAP_TABLE_BYTES_READ_MAX;
        return Err(Error::limit(format!(
            "the tables of its persistent bitmaps take {tables} bytes, of at most {max}"
        )));
    }
    let recording = entries.iter().filter(|entry| entry.flags.contains(BitmapFlags::AUTO));
    check_recording(recording.map(|entry| bytes_needed(size, entry.granularity_bits)).sum())
}

/// Fails where bitmaps of `bytes` bytes are too many to record what is written.
pub(super) fn check_recording(bytes: u64) -> Result<()> {
    if bytes > BITMAPS_RECORDING_BYTES_MAX {
        let max = BITMAPS_RECORDING_BYTES_MAX;
        return Err(Error::limit(format!(
            "its enabled persistent bitmaps may take {bytes} bytes of memory, of at most {max}"
        )));
    }
    Ok(())
}

async fn read_table<D: Disk>(
    disk: &D,
    geometry: Geometry,
    entry: &BitmapEntry,
) -> Result<Vec<BitmapCluster>> {
    let name = entry.name.display();
    let what = format!("bitmap_table table from image for bitmap '{name}'");
    let words = read_words(disk, entry.table_offset, entry.table_size.into(), &what).await?;
    let table: Result<_> =
        words.into_iter().map(|word| parse_table_entry(word, geometry)).collect();
    table.map_err(|e| e.context(format!("Could not read {what}")))
}

impl Bitmap {
    /// Fails unless the table is as long as bits for a disk of `size` bytes take.
    fn check_table_size(&self, geometry: Geometry, size: u64) -> Result<()> {
        let has = self.on_disk.as_ref().map_or(0, |on_disk| on_disk.table.len() as u64);
        let wanted = geometry.clusters_for(bytes_needed(size, self.granularity_bits));
        if has == wanted {
            return Ok(());
        }
        let name = self.name.display();
        Err(Error::corrupt(format!(
            "Bitmap '{name}' doesn't satisfy the constraints: its table has {has} entries, \
             but a disk of {size} bytes takes {wanted}"
        )))
    }

    /// Reads its bits, of a disk of `size` bytes, into memory.
    async fn load<D: Disk>(&mut self, disk: &D, geometry: Geometry, size: u64) -> Result<()> {
        self.check_table_size(geometry, size)?;
        let table = self.on_disk.as_ref().map_or(&[][..], |on_disk| &on_disk.table);
        let bits = read_bits(disk, geometry, size, self.granularity_bits, table).await;
        let name = self.name.display();
        let bits = bits.map_err(|e| e.context(format!("bitmap '{name}'")))?;
        self.content = Content::Loaded(bits);
        Ok(())
    }
}

/// The bits in the clusters of `table`, which is as long as a disk of `size` bytes takes.
pub(super) async fn read_bits<D: Disk>(
    disk: &D,
    geometry: Geometry,
    size: u64,
    granularity_bits: u8,
    table: &[BitmapCluster],
) -> Result<Bits> {
    let mut bits = Bits::new(size, granularity_bits, geometry);
    for (index, cluster) in table.iter().enumerate() {
        let stored = match *cluster {
            BitmapCluster::Zeros => Stored::Zeros,
            BitmapCluster::Ones => Stored::Ones,
            BitmapCluster::Data(cluster) => {
                let at = geometry.host_start(cluster);
                let len = geometry.cluster_size();
                Stored::Bytes(read_bytes(disk, at, len, "bits of a bitmap").await?)
            }
        };
        bits.load(index, &stored);
    }
    Ok(bits)
}

/// The bits of the bitmap that `entry` describes, of an image that is not open for writing.
///
/// # Errors
/// It is not to be used, its table does not fit a disk of `size` bytes, or it cannot be read.
pub(super) async fn read_entry<D: Disk>(
    disk: &D,
    geometry: Geometry,
    size: u64,
    entry: BitmapEntry,
) -> Result<Bits> {
    let table = read_table(disk, geometry, &entry).await?;
    let mut bitmap = Bitmap::from_entry(entry, table);
    bitmap.check_usable()?;
    bitmap.load(disk, geometry, size).await?;
    match bitmap.content {
        Content::Loaded(bits) => Ok(bits),
        _ => unreachable!("it has just been loaded"),
    }
}
