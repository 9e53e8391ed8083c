//! Deciding what a change of guest clusters takes: nothing, a wait, a table, or new clusters.

use super::map::{DataPlace, Place, Slot};
use super::{Asked, Meta};
use crate::addr::{Geometry, GuestCluster, GuestOffset, HostCluster, HostOffset, L1Index};
use crate::error::Result;
use crate::format::entry::{Mapping, Owned};
use crate::seeded_bugs::Bug;

/// The next step of a write.
#[derive(Clone, Copy, Debug)]
pub enum WriteStep {
    /// The first `len` bytes go straight to `host`: these clusters are this image's own.
    InPlace {
        /// Where the first byte goes.
        host: HostOffset,
        /// How many bytes.
        len: u64,
        /// The clusters whose mapping must not change meanwhile, where that matters; they have to be released.
        written: Option<Written>,
    },
    /// The L2 table behind this entry is missing or shared: make one, then ask again.
    Table(L1Index),
    /// Somebody is changing the first cluster: wait, then ask again.
    Busy,
    /// These clusters need new places. They are held now, and have to be released.
    Allocate(Held),
}

/// Clusters being written in place whose mapping stays what it is until they are released.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// The first cluster.
    pub first: GuestCluster,
    /// How many.
    pub count: u64,
}

/// The next step of giving back the space of clusters that are not mapped any more.
#[derive(Clone, Copy, Debug)]
pub enum PunchStep {
    /// Nobody uses these clusters. They are held now, and have to be released.
    Held(Held),
    /// The first `count` clusters are in use again, or about to be.
    Skip {
        /// How many clusters.
        count: u64,
    },
}

/// The next step of a change that replaces mappings: zeroing or discarding whole clusters.
#[derive(Clone, Copy, Debug)]
pub enum ChangeStep {
    /// The first `count` clusters have no L2 table.
    NoTable {
        /// How many clusters.
        count: u64,
    },
    /// The L2 table behind this entry is shared with a snapshot: copy it, then ask again.
    Table(L1Index),
    /// Somebody is changing the first cluster: wait, then ask again.
    Busy,
    /// These clusters are held now, and have to be released.
    Held(Held),
}

/// Guest clusters in one slice of an L2 table that nobody else may change until they are released.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// The first cluster.
    pub first: GuestCluster,
    /// How many.
    pub count: u64,
    /// The first cluster's entry.
    pub slot: Slot,
    /// The clusters are mapped as zeros with space in reserve from here on, to be used instead of new clusters.
    pub reserved: Option<HostCluster>,
}

impl Held {
    /// The entry of the cluster `index` places after the first.
    pub fn slot(&self, index: u64) -> Slot {
        Slot { index: self.slot.index + index as usize, ..self.slot }
    }
}

impl Meta {
    /// What to do about a write of `len` bytes at `at`, or about the first part of it.
    pub fn plan_write(
        &mut self,
        geometry: Geometry,
        at: GuestOffset,
        len: u64,
    ) -> Asked<Result<WriteStep>> {
        let cluster = geometry.guest_cluster(at);
        let inside = geometry.in_guest_cluster(at);
        if self.busy.writable_prefix(cluster, 1) == 0 {
            return Ok(Ok(WriteStep::Busy));
        }
        let slot = match self.own_place(cluster) {
            Ok(Place::OwnTable(slot)) => slot,
            Ok(Place::NoTable | Place::SharedTable(_)) => {
                return Ok(Ok(WriteStep::Table(geometry.l1_index(cluster))));
            }
            Err(e) => return Ok(Err(e)),
        };
        let first = match self.map.mapping(slot)? {
            Ok(mapping) => mapping,
            Err(e) => return Ok(Err(e)),
        };
        let need = match self.target(cluster, first) {
            Ok(need) => need,
            Err(e) => return Ok(Err(e)),
        };
        let wanted = geometry.clusters_for(inside + len);
        let count_max = match need {
            Target::Own(_) => {
                self.busy.writable_prefix(cluster, wanted).min(in_slice(geometry, slot))
            }
            _ => self.reach(geometry, cluster, slot, wanted),
        };
        if count_max == 0 {
            return Ok(Ok(WriteStep::Busy));
        }
        // Where the write goes to is checked when it is written; here, what it will set free.
        if need == Target::New
            && let Err(e) = self.check_mapping(geometry, first)
        {
            return Ok(Err(e));
        }
        let count = self.count_with_target(geometry, cluster, slot, need, count_max)?;
        Ok(Ok(match need {
            Target::Own(host) => WriteStep::InPlace {
                host: geometry.host_start(host).plus(inside),
                len: (geometry.bytes(count) - inside).min(len),
                written: self.hold_written(cluster, count),
            },
            Target::Reserved(host) => WriteStep::Allocate(self.hold(Held {
                first: cluster,
                count,
                slot,
                reserved: Some(host),
            })),
            Target::New => {
                WriteStep::Allocate(self.hold(Held { first: cluster, count, slot, reserved: None }))
            }
        }))
    }

    /// What to do about a change of the mapping of `count` clusters from `first` on, or of the first of them.
    pub fn plan_change(
        &mut self,
        geometry: Geometry,
        first: GuestCluster,
        count: u64,
    ) -> Asked<Result<ChangeStep>> {
        if self.busy.free_prefix(first, 1) == 0 {
            return Ok(Ok(ChangeStep::Busy));
        }
        let slot = match self.own_place(first) {
            Ok(Place::OwnTable(slot)) => slot,
            Ok(Place::SharedTable(_)) => {
                return Ok(Ok(ChangeStep::Table(geometry.l1_index(first))));
            }
            Ok(Place::NoTable) => {
                let left = geometry.l2_entries() - geometry.l2_index(first).0 as u64;
                let count = self.busy.free_prefix(first, left.min(count));
                return Ok(Ok(ChangeStep::NoTable { count }));
            }
            Err(e) => return Ok(Err(e)),
        };
        // Looked at before it is held, so that everything up to the release finds the slice in memory and sound.
        let reach = self.reach(geometry, first, slot, count);
        let mut held = 0;
        while held < reach {
            let next = Slot { index: slot.index + held as usize, ..slot };
            match self.sound_mapping(geometry, first.plus(held), next)? {
                Ok(_) => held += 1,
                Err(e) if held == 0 => return Ok(Err(e)),
                Err(_) => break,
            }
        }
        Ok(Ok(ChangeStep::Held(self.hold(Held { first, count: held, slot, reserved: None }))))
    }

    /// How many of the clusters from `first` on are free to be changed and have their entries in the slice of `slot`.
    pub(super) fn reach(
        &self,
        geometry: Geometry,
        first: GuestCluster,
        slot: Slot,
        count: u64,
    ) -> u64 {
        self.busy.free_prefix(first, count.min(in_slice(geometry, slot)))
    }

    /// Where a write to `cluster` goes, which is mapped to `mapping`; an error where that cannot be.
    fn target(&self, cluster: GuestCluster, mapping: Mapping) -> Result<Target> {
        self.map.check_place(cluster, mapping)?;
        let target = Target::of(mapping);
        // In a file of its own, data has but one place, and nobody else has that.
        let own = HostCluster::new(cluster.get());
        Ok(match target {
            Target::New if self.map.data_place().is_external() => Target::Reserved(own),
            other => other,
        })
    }

    /// Keeps the mapping of clusters that are about to be written in place, where zeroing them reaches the bytes, too:
    /// the two must not cross.
    fn hold_written(&mut self, first: GuestCluster, count: u64) -> Option<Written> {
        if self.map.data_place() != DataPlace::RawExternal {
            return None;
        }
        self.busy.hold_written(first, count);
        Some(Written { first, count })
    }

    /// Lets the mapping of clusters that were written in place change again.
    pub fn release_written(&mut self, written: Written) {
        self.busy.release_written(written.first, written.count);
    }

    /// What to do about the space of `count` clusters from `first` on, which an unlink has freed and which nobody in
    /// flight knows; or about that of the first of them.
    pub fn plan_punch(
        &mut self,
        geometry: Geometry,
        first: GuestCluster,
        count: u64,
    ) -> Asked<Result<PunchStep>> {
        let slot = match self.map.place(first) {
            Ok(Place::OwnTable(slot)) => slot,
            Ok(Place::NoTable | Place::SharedTable(_)) => {
                return Ok(Ok(PunchStep::Skip { count: 1 }));
            }
            Err(e) => return Ok(Err(e)),
        };
        let reach = self.reach(geometry, first, slot, count);
        let mut idle = 0;
        while idle < reach {
            let next = Slot { index: slot.index + idle as usize, ..slot };
            match self.map.mapping(next)? {
                Ok(mapping)
                    if mapping.host().is_none() || Bug::DataPunchedWhileInUse.is_seeded() =>
                {
                    idle += 1;
                }
                _ => break,
            }
        }
        Ok(Ok(match idle {
            0 => PunchStep::Skip { count: 1 },
            count => PunchStep::Held(self.hold(Held { first, count, slot, reserved: None })),
        }))
    }

    /// As [`super::map::Map::place`], for a change: an error also where a table is shared against what its flag says.
    pub(super) fn own_place(&self, cluster: GuestCluster) -> Result<Place> {
        let place = self.map.place(cluster)?;
        if let Place::OwnTable(slot) = place {
            self.check_own_table(slot)?;
        }
        Ok(place)
    }

    /// What the entry at `slot` means, for a change: an error also where what it names cannot be data.
    fn sound_mapping(
        &mut self,
        geometry: Geometry,
        cluster: GuestCluster,
        slot: Slot,
    ) -> Asked<Result<Mapping>> {
        let mapping = self.map.mapping(slot)?;
        Ok(mapping.and_then(|mapping| {
            self.map.check_place(cluster, mapping)?;
            self.check_mapping(geometry, mapping).map(|()| mapping)
        }))
    }

    fn count_with_target(
        &mut self,
        geometry: Geometry,
        cluster: GuestCluster,
        slot: Slot,
        first: Target,
        count_max: u64,
    ) -> Asked<u64> {
        let mut count = 1;
        while count < count_max {
            let next = Slot { index: slot.index + count as usize, ..slot };
            let Ok(mapping) = self.map.mapping(next)? else { break };
            let Ok(target) = self.target(cluster.plus(count), mapping) else { break };
            let continues = target.continues(first, count);
            if !continues || first == Target::New && self.check_mapping(geometry, mapping).is_err()
            {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    pub(super) fn hold(&mut self, held: Held) -> Held {
        self.busy.hold(held.first, held.count);
        self.map.slices_mut().pin(held.slot.key);
        held
    }

    /// Keeps only the first `count` of the held clusters.
    pub fn shrink_hold(&mut self, held: &mut Held, count: u64) {
        self.busy.release(held.first, held.count);
        held.count = count;
        self.busy.hold(held.first, held.count);
    }

    /// Lets others change the clusters again.
    pub fn release_hold(&mut self, held: &Held) {
        self.busy.release(held.first, held.count);
        self.map.slices_mut().unpin(held.slot.key);
    }

    /// Maps held clusters to consecutive host clusters from `host` on, which hold their bytes now.
    ///
    /// # Errors
    /// These cannot be data; then nothing has been changed.
    pub fn link_held(&mut self, geometry: Geometry, held: &Held, host: HostCluster) -> Result<()> {
        if !self.map.data_place().is_external() {
            self.check_target(geometry, host, held.count)?;
        }
        for i in 0..held.count {
            let new = Mapping::Data(Owned { cluster: host.plus(i), copied: true });
            self.relink(geometry, held.slot(i), new, false);
        }
        Ok(())
    }

    /// Changes what held clusters map to, by `change` from old to new. A new mapping names what the old one named, or
    /// nothing.
    pub fn change_held(
        &mut self,
        geometry: Geometry,
        held: &Held,
        change: impl Fn(Mapping) -> Mapping,
        punch: bool,
    ) {
        for slot in (0..held.count).map(|i| held.slot(i)) {
            let Ok(Ok(old)) = self.map.mapping(slot) else {
                panic!("a held entry is in memory and sound")
            };
            let new = change(old);
            assert!(
                cluster_of(new).is_none_or(|cluster| cluster_of(old) == Some(cluster)),
                "a change of kind names no other cluster"
            );
            if new != old {
                self.relink(geometry, slot, new, punch);
                if Bug::StaleMappingAfterDiscard.is_seeded() {
                    self.map.replace(slot, old);
                }
            }
        }
    }

    fn note_linked(&mut self, geometry: Geometry, new: Mapping) {
        if self.map.data_place().is_external() {
            return;
        }
        let (first, count) = match (new, cluster_of(new)) {
            (Mapping::Compressed(extent), _) => geometry.host_span(extent.offset, extent.len),
            (_, Some(cluster)) => (cluster, 1),
            (_, None) => return,
        };
        self.note_changed(first, count);
    }

    /// Maps a held cluster anew, and sends what it mapped to before on its way to being free.
    pub(super) fn relink(&mut self, geometry: Geometry, slot: Slot, new: Mapping, punch: bool) {
        let old = self.map.replace(slot, new);
        let kept = cluster_of(new);
        if kept.is_none() || kept != cluster_of(old) {
            self.note_linked(geometry, new);
        }
        match old {
            Mapping::Compressed(extent) => {
                let (first, count) = geometry.host_span(extent.offset, extent.len);
                let count = if Bug::CompressedFreedInPart.is_seeded() { 1 } else { count };
                if Bug::PackedFreedOnce.is_seeded() && self.reclaim.has_unlinked(first) {
                    return;
                }
                self.unlink(first, count, punch);
            }
            _ => match cluster_of(old) {
                Some(cluster) if kept != Some(cluster) => self.unlink_data(cluster, punch),
                _ => {}
            },
        }
    }

    /// Sends a data cluster that no table in memory names any more on its way: to being free, or, where it belongs to
    /// the guest cluster in any case, to having its hole punched.
    fn unlink_data(&mut self, cluster: HostCluster, punch: bool) {
        match self.map.data_place() {
            DataPlace::Image => self.unlink(cluster, 1, punch),
            DataPlace::External if punch => self.punches.unlink(cluster, 1, true),
            DataPlace::External | DataPlace::RawExternal => {}
        }
    }
}

/// Entries from `slot` to the end of its slice.
fn in_slice(geometry: Geometry, slot: Slot) -> u64 {
    geometry.l2_entries_per_slice() - slot.index as u64
}

/// Where a write to a cluster goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Own(HostCluster),
    Reserved(HostCluster),
    New,
}

impl Target {
    fn of(mapping: Mapping) -> Self {
        match mapping {
            Mapping::Data(Owned { cluster, copied })
                if copied || Bug::SharedClusterWrittenInPlace.is_seeded() =>
            {
                Self::Own(cluster)
            }
            Mapping::Zero { preallocated: Some(Owned { cluster, copied: true }) } => {
                Self::Reserved(cluster)
            }
            _ => Self::New,
        }
    }

    fn continues(self, first: Self, distance: u64) -> bool {
        match (first, self) {
            (Self::Own(a), Self::Own(b)) | (Self::Reserved(a), Self::Reserved(b)) => {
                a.checked_add(distance) == Some(b)
            }
            (Self::New, Self::New) => true,
            _ => false,
        }
    }
}

fn cluster_of(mapping: Mapping) -> Option<HostCluster> {
    mapping.host().map(|host| host.cluster)
}
