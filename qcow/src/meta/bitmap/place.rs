//! Which clusters of the file belong to bitmaps, and their exchange for others.

use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::error::Result;
use crate::format::bitmap::BitmapCluster;
use crate::meta::Meta;
use crate::meta::regions::Kind;

/// Consecutive clusters that belong to bitmaps.
pub type Place = (Kind, HostCluster, ClusterCount);

/// Where the directory lies.
pub fn directory_place(geometry: Geometry, offset: HostOffset, len: u64) -> Place {
    let (first, count) = geometry.host_span(offset, len);
    (Kind::BitmapDirectory, first, count)
}

/// Where a table lies, and the clusters of bits that it names.
pub fn bitmap_places(
    geometry: Geometry,
    offset: HostOffset,
    table: &[BitmapCluster],
) -> impl Iterator<Item = Place> {
    let (first, count) = geometry.host_span(offset, table.len() as u64 * 8);
    let data = table.iter().filter_map(|cluster| match *cluster {
        BitmapCluster::Data(cluster) => Some((Kind::BitmapData, cluster, 1)),
        BitmapCluster::Zeros | BitmapCluster::Ones => None,
    });
    std::iter::once((Kind::BitmapTable, first, count)).chain(data)
}

impl Meta {
    /// Notes that bitmaps lie in `places`, of an image that is being opened.
    ///
    /// # Errors
    /// A place lies past the end of the file, or holds something else, too.
    pub fn add_bitmap_places(
        &mut self,
        geometry: Geometry,
        places: impl IntoIterator<Item = Place>,
    ) -> Result<()> {
        for (kind, first, count) in places {
            self.check_inside(geometry, kind, first.plus(count - 1))?;
            self.regions_mut().add(kind, first, count)?;
        }
        Ok(())
    }

    /// Goes on with the bitmaps in `new`, to which the header points already, instead of those in `old`, which go on
    /// their way to being free.
    ///
    /// # Errors
    /// A new place is not counted, or holds something else.
    pub fn switch_bitmaps(
        &mut self,
        geometry: Geometry,
        new: &[Place],
        old: &[Place],
    ) -> Result<()> {
        for &(kind, first, count) in new {
            self.check_target(geometry, first, count)?;
            self.note_changed(first, count);
            self.regions_mut().add(kind, first, count)?;
        }
        for &(kind, first, count) in old {
            self.regions_mut().remove(first, count);
            if kind != Kind::BitmapData {
                self.note_table_gone();
            }
            self.unlink(first, count, false);
        }
        Ok(())
    }
}
