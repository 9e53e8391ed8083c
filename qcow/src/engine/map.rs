//! Telling which parts of the disk hold what, and where.

use super::Image;
use super::layer::Layer;
use super::read::Content;
use crate::addr::HostOffset;
use crate::disk::Disk;
use crate::error::Result;

/// A stretch of the virtual disk that is all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapExtent {
    /// Bytes.
    pub len: u64,
    /// The image that has it, counted from the top; the last one of the chain where none has.
    pub depth: usize,
    /// Whether any image of the chain has something here.
    pub present: bool,
    /// Whether it reads as zeros, as far as mappings and holes tell.
    pub zero: bool,
    /// Whether there is a place for its bytes.
    pub data: bool,
    /// Whether those bytes are compressed.
    pub compressed: bool,
    /// Where the bytes are in that image's file, if they are there as they are; or where they have their place.
    pub offset: Option<u64>,
    /// Where the bytes are in that image's file, compressed or not. What lies at the same place of two states of one disk,
    /// and there at the same offset of the disk, is the same.
    pub stored_at: Option<u64>,
}

impl MapExtent {
    /// Whether `next`, which follows right behind, can be told as one with this.
    pub fn continues_into(&self, next: &Self) -> bool {
        let place = |e: &Self| (e.depth, e.present, e.zero, e.data, e.compressed);
        place(self) == place(next) && self.offset.map(|o| o + self.len) == next.offset
    }
}

impl<D: Disk> Image<D> {
    /// What the disk holds from `at` on, for at most `len` bytes. May block for a moment where the chain ends in a raw
    /// file, or where data may be a hole of the file: for tools.
    ///
    /// # Errors
    /// The range does not lie inside the disk, or a table is damaged or cannot be read.
    pub async fn map(&self, at: u64, len: u64) -> Result<MapExtent> {
        let _inside = self.enter();
        let source = self.resolve(0, at, len.min(self.virtual_size().saturating_sub(at))).await?;
        let extent = MapExtent {
            len: source.len,
            depth: source.depth,
            present: true,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
            stored_at: None,
        };
        Ok(match source.content {
            Content::Nothing { host } => {
                let offset = host.map(HostOffset::get);
                MapExtent { present: false, zero: true, offset, ..extent }
            }
            Content::Zeros { host } => {
                MapExtent { zero: true, offset: host.map(HostOffset::get), ..extent }
            }
            Content::Compressed { extent: packed, .. } => {
                let stored_at = Some(packed.offset.get());
                MapExtent { data: true, compressed: true, stored_at, ..extent }
            }
            Content::Sealed { compressed } => MapExtent { data: true, compressed, ..extent },
            Content::Bytes(host) => {
                let offset = Some(host.get());
                let extent = MapExtent { offset, stored_at: offset, ..extent };
                match &self.layers_from(source.depth)[0] {
                    Layer::Sealed(_) => unreachable!("what is sealed does not lie there as it is"),
                    // No place of the file has the disk's bytes, and a hole decrypts to anything but zeros.
                    Layer::Qcow2(qcow2) if qcow2.is_encrypted() => {
                        MapExtent { data: true, offset: None, ..extent }
                    }
                    Layer::Luks(_) => MapExtent { data: true, offset: None, ..extent },
                    Layer::Qcow2(qcow2) => {
                        let stored = qcow2.stored_extent(host, extent.len).await?;
                        MapExtent { len: stored.len, data: true, zero: !stored.data, ..extent }
                    }
                    Layer::Raw(raw) => {
                        let file = raw.extent_at(at)?;
                        let len = extent.len.min(file.len.max(1));
                        MapExtent { len, data: file.data, zero: !file.data, ..extent }
                    }
                }
            }
        })
    }
}
