//! The regions of guest memory that the frontend shares, mapped into this process.
#![expect(unsafe_code, reason = "the address of a byte is calculated from that of its mapping")]

use std::fs::File;
use std::sync::Arc;

use vm_memory::{FileOffset, MmapRegion};

/// Most regions of one guest: what other vhost-user backends take, too.
pub const REGION_COUNT_MAX: usize = 509;

/// Where a region lies, as the frontend tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionPlace {
    /// Guest physical address of its first byte.
    pub guest: u64,
    /// Address of its first byte in the frontend, which names rings that way.
    pub user: u64,
    /// Bytes.
    pub len: u64,
}

/// A region that cannot be part of the memory.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    #[error("the memory region at guest address {:#x} is empty or wraps around", .0.guest)]
    Bounds(RegionPlace),
    #[error("the memory region at guest address {:#x} overlaps another", .0.guest)]
    Overlap(RegionPlace),
    #[error("the memory region at guest address {:#x} reaches past the end of its file", .0.guest)]
    PastEnd(RegionPlace),
    #[error("there is no memory region at guest address {:#x} like the one to remove", .0.guest)]
    Unknown(RegionPlace),
    #[error("more than {REGION_COUNT_MAX} memory regions")]
    TooMany,
    #[error("the memory region at guest address {:#x} cannot be mapped: {source}", place.guest)]
    Map { place: RegionPlace, source: vm_memory::mmap::MmapRegionError },
}

/// All memory of a guest at one time. Changed memory is a new table; the old one lives until its last user is gone.
#[derive(Debug, Default)]
pub struct MemoryTable {
    /// By guest address; none overlap.
    regions: Vec<Arc<Region>>,
}

#[derive(Debug)]
struct Region {
    place: RegionPlace,
    mapping: MmapRegion,
}

/// Host memory by address: the first byte and the length.
pub(super) type Piece = (*mut u8, usize);

impl MemoryTable {
    /// This table and one region more, which starts at `file_offset` of `file`.
    pub fn with(
        &self,
        place: RegionPlace,
        file: File,
        file_offset: u64,
    ) -> Result<Self, RegionError> {
        let region = Arc::new(Region::map(place, file, file_offset)?);
        let at = self.regions.partition_point(|r| r.place.guest < place.guest);
        let clash = |other: Option<&Arc<Region>>| other.is_some_and(|r| r.overlaps(place));
        if clash(self.regions.get(at)) || clash(at.checked_sub(1).and_then(|i| self.regions.get(i)))
        {
            return Err(RegionError::Overlap(place));
        }
        if self.regions.len() == REGION_COUNT_MAX {
            return Err(RegionError::TooMany);
        }
        let mut regions = self.regions.clone();
        regions.insert(at, region);
        Ok(Self { regions })
    }

    /// This table without one of its regions.
    pub fn without(&self, place: RegionPlace) -> Result<Self, RegionError> {
        let mut regions = self.regions.clone();
        let at =
            regions.iter().position(|r| r.place == place).ok_or(RegionError::Unknown(place))?;
        regions.remove(at);
        Ok(Self { regions })
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The guest addresses of all regions, and their lengths in bytes.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, u64)> {
        self.regions.iter().map(|region| (region.place.guest, region.place.len))
    }

    /// The memory at `guest` as far as it lies in one region, at most `len` bytes.
    pub(super) fn piece(&self, guest: u64, len: u64) -> Option<Piece> {
        let after = self.regions.partition_point(|r| r.place.guest <= guest);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let offset = guest - region.place.guest;
        let left = region.place.len.checked_sub(offset).filter(|&left| left > 0)?;
        Some((region.address(offset), left.min(len) as usize))
    }

    /// Where the `len` bytes at `user`, an address in the frontend, lie in this process; `None` where they do not lie in
    /// one region.
    pub(super) fn host_address(&self, user: u64, len: u64) -> Option<*mut u8> {
        let inside = |r: &&Arc<Region>| {
            user.checked_sub(r.place.user)
                .is_some_and(|at| at < r.place.len && len <= r.place.len - at)
        };
        let region = self.regions.iter().find(inside)?;
        Some(region.address(user - region.place.user))
    }
}

impl Region {
    fn map(place: RegionPlace, file: File, file_offset: u64) -> Result<Self, RegionError> {
        let RegionPlace { guest, user, len } = place;
        let wraps = guest.checked_add(len).is_none() || user.checked_add(len).is_none();
        if len == 0 || wraps || isize::try_from(len).is_err() {
            return Err(RegionError::Bounds(place));
        }
        // Touching a page past the end of a file would end this process.
        let file_len = file.metadata().map_or(0, |m| if m.is_file() { m.len() } else { u64::MAX });
        if file_offset.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(RegionError::PastEnd(place));
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, file_offset), len as usize)
            .map_err(|source| RegionError::Map { place, source })?;
        Ok(Self { place, mapping })
    }

    fn overlaps(&self, other: RegionPlace) -> bool {
        self.place.guest < other.guest + other.len
            && other.guest < self.place.guest + self.place.len
    }

    /// Host address of the byte `offset` of this region, which is less than its length.
    fn address(&self, offset: u64) -> *mut u8 {
        assert!(offset < self.place.len);
        // SAFETY: needed for address arithmetic inside the mapping, which is as long as the region.
        unsafe { self.mapping.as_ptr().add(offset as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::{PAGE, file, place};

    #[test]
    fn regions_that_lie_are_refused() {
        let table = MemoryTable::default().with(place(1, 900, 2), file(2), 0).unwrap();
        let refused = |place, file, at| table.with(place, file, at).unwrap_err();
        assert!(matches!(refused(place(2, 0, 1), file(1), 0), RegionError::Overlap(_)));
        assert!(matches!(refused(place(0, 0, 2), file(2), 0), RegionError::Overlap(_)));
        assert!(matches!(refused(place(9, 0, 2), file(1), 0), RegionError::PastEnd(_)));
        assert!(matches!(refused(place(9, 0, 1), file(1), PAGE), RegionError::PastEnd(_)));
        assert!(matches!(refused(place(9, 0, 0), file(1), 0), RegionError::Bounds(_)));
        let wrapped = RegionPlace { guest: u64::MAX - 100, user: 0, len: PAGE };
        assert!(matches!(refused(wrapped, file(1), 0), RegionError::Bounds(_)));
        assert!(matches!(table.without(place(9, 0, 1)), Err(RegionError::Unknown(_))));
        assert!(table.without(place(1, 900, 2)).unwrap().is_empty());
    }
}
