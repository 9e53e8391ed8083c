//! Packing compressed clusters: back to back, several to a cluster of the file, each counted by one in every cluster that
//! it touches.
//!
//! ```text
//! host clusters   |  5                 |  6                 |
//! compressed      | aaaaa bbbbbb ccccc | cc ddd [tail ->    |      counts: 5: a b c   6: c d
//! ```
//!
//! The tail is where the next one goes. It is given up when its cluster cannot be counted higher, when the cluster after it
//! is taken, and when its cluster is about to be freed: what is in its last reference must not get another one while its
//! hole is punched, and what is free belongs to the allocator.

use super::map::{Place, Slot};
use super::plan::{Held, left_in_slice};
use super::span::Span;
use super::{Asked, Claim, Meta};
use crate::addr::{ClusterCount, Geometry, GuestCluster, HostCluster, HostOffset, L1Index};
use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::{CompressedExtent, Mapping};
use crate::seeded_bugs::Bug;

/// Where the next compressed cluster goes.
#[derive(Debug, Default)]
pub struct Packer {
    /// The first free byte behind what was packed last, and its cluster. Never the start of a cluster.
    tail: Option<(HostOffset, HostCluster)>,
}

impl Packer {
    /// Packs nothing more into any of these clusters.
    pub fn leave(&mut self, first: HostCluster, count: ClusterCount) {
        self.tail = self.tail.filter(|(_, cluster)| !(first..first.plus(count)).contains(cluster));
    }
}

/// What came of asking for room for compressed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedClaim {
    /// They go here, and are counted.
    Room(CompressedExtent),
    /// The next clusters have no refcount block yet: the one at this index of the table has to be made first.
    MissingBlock(u64),
}

/// The next step of a compressed write.
#[derive(Clone, Copy, Debug)]
pub enum PackStep {
    /// The L2 table behind this entry is missing or shared: make one, then ask again.
    Table(L1Index),
    /// Somebody is changing the first cluster: wait, then ask again.
    Busy,
    /// The first cluster has a place in the file already.
    Taken,
    /// These clusters have none. They are held now, and have to be released.
    Held(Held),
}

impl Meta {
    /// What to do about a compressed write to `count` clusters from `first` on, or to the first of them.
    pub fn plan_packed(
        &mut self,
        geometry: Geometry,
        first: GuestCluster,
        count: ClusterCount,
    ) -> Asked<Result<PackStep>> {
        if self.free_clusters(geometry, first, 1) == 0 {
            return Ok(Ok(PackStep::Busy));
        }
        let slot = match self.own_place(first) {
            Ok(Place::OwnTable(slot)) => slot,
            Ok(Place::NoTable | Place::SharedTable(_)) => {
                return Ok(Ok(PackStep::Table(geometry.l1_index(first))));
            }
            Err(e) => return Ok(Err(e)),
        };
        let count = count.min(left_in_slice(geometry, slot));
        let reach = self.free_clusters(geometry, first, count);
        let mut without = 0;
        while without < reach {
            let next = Slot { index: slot.index + without as usize, ..slot };
            match self.map.mapping(next)? {
                Ok(mapping) if has_no_place(mapping) => without += 1,
                Err(e) if without == 0 => return Ok(Err(e)),
                _ => break,
            }
        }
        Ok(Ok(match without {
            0 => PackStep::Taken,
            count => {
                let span = Span::of_clusters(geometry, first, count);
                PackStep::Held(self.hold(Held { first, count, slot, reserved: None, span }))
            }
        }))
    }

    /// Finds room for `len` bytes, less than a cluster, and counts it.
    pub fn claim_packed(&mut self, geometry: Geometry, len: u64) -> Asked<Result<PackedClaim>> {
        let tail = self.open_tail(geometry)?;
        if let Some((offset, cluster)) = tail
            && geometry.in_host_cluster(offset) + len <= geometry.cluster_size()
        {
            if !Bug::PackedNotCounted.is_seeded() {
                self.count_once_more(cluster)?;
            }
            return Ok(Ok(PackedClaim::Room(self.pack(geometry, offset, len))));
        }
        // Looked at before it is claimed: what an entry cannot name must not be taken.
        let next = match self.alloc.find_run(&mut self.refs, 1)? {
            Ok(Claim::Run(run)) => run.first,
            Ok(Claim::MissingBlock(index)) => return Ok(Ok(PackedClaim::MissingBlock(index))),
            Err(e) => return Ok(Err(e)),
        };
        let behind = tail.filter(|(_, cluster)| cluster.checked_add(1) == Some(next));
        let offset = behind.map_or(geometry.host_start(next), |(offset, _)| offset);
        if !(CompressedExtent { offset, len }).is_addressable(geometry) {
            let what = "the image file cannot grow any more for compressed clusters";
            return Ok(Err(Error::new(ErrorKind::NoSpace, what)));
        }
        if let Err(e) = self.claim(1)? {
            return Ok(Err(e));
        }
        if let Some((_, cluster)) = behind
            && !Bug::PackedCountedInPart.is_seeded()
        {
            self.count_once_more(cluster)?;
        }
        Ok(Ok(PackedClaim::Room(self.pack(geometry, offset, len))))
    }

    /// The tail, if its cluster can be counted once more; its count is in memory then.
    fn open_tail(&mut self, geometry: Geometry) -> Asked<Option<(HostOffset, HostCluster)>> {
        let Some(tail) = self.packer.tail else { return Ok(None) };
        let count = self.refs.get(tail.1)?.unwrap_or(0);
        let open = count < geometry.refcount_max();
        Ok(Some(tail).filter(|_| open))
    }

    fn count_once_more(&mut self, cluster: HostCluster) -> Asked<()> {
        let count = self.refs.get(cluster)?.unwrap_or(0);
        self.refs.set(cluster, count + 1)?;
        self.note_changed(cluster, 1);
        Ok(())
    }

    /// Moves the tail behind `len` bytes at `offset`, which are counted.
    fn pack(&mut self, geometry: Geometry, offset: HostOffset, len: u64) -> CompressedExtent {
        let end = offset.plus(len);
        let inside = geometry.in_host_cluster(end) > 0;
        if !Bug::PackedTwice.is_seeded() || self.packer.tail.is_none() {
            self.packer.tail = inside.then_some((end, geometry.host_cluster(end)));
        }
        CompressedExtent { offset, len }
    }

    /// Maps a held cluster to the compressed bytes at `extent`, which have been written.
    ///
    /// # Errors
    /// Data cannot lie there; then nothing has been changed.
    pub fn link_packed(
        &mut self,
        geometry: Geometry,
        slot: Slot,
        extent: CompressedExtent,
    ) -> Result<()> {
        let (first, count) = geometry.host_span(extent.offset, extent.len);
        self.check_target(geometry, first, count)?;
        self.relink(geometry, slot, Mapping::Compressed(extent), false);
        // How often others name its clusters, a record could not tell.
        self.leave_out_of_redo();
        Ok(())
    }
}

/// Whether a cluster that is mapped so takes no space in the file.
fn has_no_place(mapping: Mapping) -> bool {
    mapping.host().is_none() && !matches!(mapping, Mapping::Compressed(_))
}
