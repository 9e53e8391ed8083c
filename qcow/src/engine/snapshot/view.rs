//! The disk as it is now, or as it was at a snapshot: its size, and its L1 table.

use crate::addr::{Geometry, HostOffset, sector_floor};
use crate::disk::Disk;
use crate::engine::load::read_words;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::Header;
use crate::format::snapshot::SnapshotEntry;
use crate::limits::L1_BYTES_MAX;
use crate::meta::snapshot::SnapshotChoice;

/// How every message begins that says why a snapshot cannot be shown.
pub const NOT_LOADED: &str = "Failed to load snapshot";

/// Which state of the disk an open image shows.
#[derive(Debug)]
pub(in crate::engine) struct DiskThen {
    pub l1_offset: HostOffset,
    l1_entries: u64,
    /// Bytes.
    pub virtual_size: u64,
}

/// Byte behind a disk of `disk_size` bytes where the VM state of its snapshots starts: what the next L1 entry covers.
pub(in crate::engine) fn vm_state_start(geometry: Geometry, disk_size: u64) -> u64 {
    let covered = geometry.bytes(geometry.l2_entries());
    geometry.l1_entries_for(disk_size).saturating_mul(covered)
}

impl DiskThen {
    /// The state that the header names.
    pub fn now(header: &Header) -> Self {
        Self {
            l1_offset: header.l1_table_offset,
            l1_entries: header.l1_size.into(),
            virtual_size: header.virtual_size(),
        }
    }

    /// The state at the snapshot that `choice` means, with the VM state behind the disk if that is wanted.
    ///
    /// # Errors
    /// There is none, or what it says of its disk cannot be. Messages begin with [`NOT_LOADED`].
    pub fn of(
        choice: &SnapshotChoice,
        vm_state: bool,
        snapshots: &[SnapshotEntry],
        geometry: Geometry,
        file_len: u64,
    ) -> Result<Self> {
        let found = Self::find(choice, vm_state, snapshots, geometry, file_len);
        found.map_err(|e| e.context(NOT_LOADED))
    }

    fn find(
        choice: &SnapshotChoice,
        vm_state: bool,
        snapshots: &[SnapshotEntry],
        geometry: Geometry,
        file_len: u64,
    ) -> Result<Self> {
        let found = choice.find(snapshots).map(|index| &snapshots[index]);
        let snapshot =
            found.ok_or_else(|| Error::new(ErrorKind::NotFound, "Can't find snapshot"))?;
        snapshot.check_l1(geometry, file_len)?;
        let virtual_size = match vm_state {
            false => sector_floor(snapshot.disk_size),
            true => {
                vm_state_start(geometry, snapshot.disk_size).saturating_add(snapshot.vm_state_size)
            }
        };
        if geometry.l1_entries_for(virtual_size) > L1_BYTES_MAX / 8 {
            let name = snapshot.name.display();
            let what = format!("snapshot '{name}': its disk of {virtual_size} bytes is too large");
            return Err(Error::limit(what));
        }
        let (l1_offset, l1_entries) = (snapshot.l1_table_offset, snapshot.l1_size.into());
        Ok(Self { l1_offset, l1_entries, virtual_size })
    }

    /// The entries of the L1 table: those that lie there, and empty ones for what of the disk they do not reach.
    pub async fn read_l1<D: Disk>(&self, disk: &D, geometry: Geometry) -> Result<Vec<u64>> {
        let mut words = read_words(disk, self.l1_offset, self.l1_entries, "L1 table").await?;
        let needed = geometry.l1_entries_for(self.virtual_size);
        words.resize(self.l1_entries.max(needed) as usize, 0);
        Ok(words)
    }
}
