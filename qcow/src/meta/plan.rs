//! Deciding what a change of guest clusters takes: nothing, a wait, a table, or new clusters.

use std::ops::Range;

use super::lookaside::Right;
use super::map::{DataPlace, Place, Slot};
use super::span::Span;
use super::{Asked, Meta};
use crate::addr::{Geometry, GuestCluster, GuestOffset, HostCluster, HostOffset, L1Index};
use crate::error::Result;
use crate::format::entry::{Mapping, Owned};
use crate::format::subcluster::{Subcluster, Subclusters};
use crate::seeded_bugs::Bug;

/// The next step of a write.
#[derive(Clone, Copy, Debug)]
pub enum WriteStep {
    /// The first `len` bytes go straight to `host`: these clusters are this image's own, and data may lie there.
    InPlace {
        /// Where the first byte goes.
        host: HostOffset,
        /// How many bytes.
        len: u64,
        /// Whose mapping must not change meanwhile, where that matters; it has to be released.
        written: Option<Span>,
    },
    /// The L2 table behind this entry is missing or shared: make one, then ask again.
    Table(L1Index),
    /// Somebody is changing a part of this: wait until nobody is, then ask again.
    Busy(Span),
    /// These clusters need new places, or parts of them are yet to be said to hold data. They are held now, and have to
    /// be released.
    Allocate(Held),
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

/// The next step of a change that replaces mappings: zeroing or discarding.
#[derive(Clone, Copy, Debug)]
pub enum ChangeStep {
    /// The first `count` subclusters have no L2 table.
    NoTable {
        /// How many subclusters.
        count: u64,
    },
    /// The L2 table behind this entry is shared with a snapshot: copy it, then ask again.
    Table(L1Index),
    /// Somebody is changing a part of this: wait until nobody is, then ask again.
    Busy(Span),
    /// The first `count` subclusters are a part of a compressed cluster, which has none.
    Indivisible {
        /// How many subclusters.
        count: u64,
    },
    /// These clusters, or a part of one, are held now, and have to be released.
    Held(Held),
}

/// Guest clusters with their entries in one slice of an L2 table, of which nobody else may change `span` until it is
/// released.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// The first cluster.
    pub first: GuestCluster,
    /// How many.
    pub count: u64,
    /// The first cluster's entry.
    pub slot: Slot,
    /// The clusters have places of their own from here on, to be used instead of new clusters.
    pub reserved: Option<HostCluster>,
    /// What is held of them: all, unless they keep their places.
    pub span: Span,
}

/// What has to be written to new places before anything maps to them.
#[derive(Clone, Debug)]
pub struct Fill {
    /// Which bytes of the disk: what a request writes and, around it, all that the old places have, and the rest of each
    /// subcluster.
    pub bytes: Range<GuestOffset>,
    /// Whether the old places have anything of that; else it is zeros, or what a backing file has.
    pub has_old: bool,
}

impl Held {
    /// The entry of the cluster `index` places after the first.
    pub fn slot(&self, index: u64) -> Slot {
        Slot { index: self.slot.index + index as usize, ..self.slot }
    }

    /// The subclusters of the cluster `index` places after the first that belong to `span`.
    pub fn part(&self, geometry: Geometry, index: u64, span: Span) -> Range<u32> {
        span.within(geometry, self.first.plus(index))
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
        let touched = Span::touched(geometry, at, len);
        let writable = self.busy.writable_prefix(touched);
        if writable.count == 0 {
            return Ok(Ok(WriteStep::Busy(touched.truncated(1))));
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
        let (touched, writable) = match first {
            Mapping::Divided(divided) if self.changes_apart(first) => {
                let index = geometry.subcluster_index(touched.first);
                let alike = u64::from(divided.subclusters().count_alike(index));
                (touched.truncated(alike), writable.truncated(alike))
            }
            _ => (touched, writable),
        };
        let run = Held { first: cluster, count: 1, slot, reserved: None, span: writable };
        let target = match self.target(cluster, first, run.part(geometry, 0, writable)) {
            Ok(target) => target,
            Err(e) => return Ok(Err(e)),
        };
        if let Target::Own(host) = target {
            let span = self.count_in_place(geometry, run, target)?.span;
            let end = span.end_offset(geometry).min(at.plus(len));
            let host = geometry.host_start(host).plus(geometry.in_guest_cluster(at));
            let is_inside_cluster = geometry.is_inside_cluster(at, len);
            let len = end.distance_from(at);
            if let Err(e) = self.check_data(geometry, host, len) {
                return Ok(Err(e));
            }
            let written = self.hold_written(span);
            if written.is_none() && is_inside_cluster {
                self.note_place(geometry, at, host, Right::Write);
            }
            return Ok(Ok(WriteStep::InPlace { host, len, written }));
        }
        let free = self.busy.free_prefix(touched);
        if free.count == 0 {
            return Ok(Ok(WriteStep::Busy(touched.truncated(1))));
        }
        match target {
            Target::Reserved(host) => {
                let run = self.count_in_place(geometry, Held { span: free, ..run }, target)?;
                let held = Held { reserved: Some(host), ..run };
                Ok(Ok(WriteStep::Allocate(self.hold(held))))
            }
            _ => self.plan_new(geometry, run, touched.cluster_count(geometry)),
        }
    }

    /// Whether the subclusters of a cluster that is mapped to `mapping` are written one kind at a time: in a raw data file,
    /// what is not data yet is zeroed first, beside data that stays.
    fn changes_apart(&self, mapping: Mapping) -> bool {
        let is_raw = self.map.data_place() == DataPlace::RawExternal;
        is_raw && matches!(mapping, Mapping::Divided(_))
    }

    /// As many clusters as continue the first one of `run`, whose target is `first`, and what of them is free; both
    /// together need what the first one needs.
    fn count_in_place(&mut self, geometry: Geometry, run: Held, first: Target) -> Asked<Held> {
        let count_max = run.span.cluster_count(geometry).min(left_in_slice(geometry, run.slot));
        let mut count = 1;
        while count < count_max {
            let Ok(mapping) = self.map.mapping(run.slot(count))? else { break };
            if self.changes_apart(mapping) {
                break;
            }
            let part = run.part(geometry, count, run.span);
            let Ok(target) = self.target(run.first.plus(count), mapping, part) else { break };
            if !target.continues(first, count) {
                break;
            }
            count += 1;
        }
        let end = Span::of_clusters(geometry, run.first, count).end();
        let span = run.span.truncated(end.distance_from(run.span.first));
        Ok(Held { count, span, ..run })
    }

    /// Holds the first clusters of `run`, up to `count_max`, that need new places; all of each, since all of it moves.
    fn plan_new(
        &mut self,
        geometry: Geometry,
        run: Held,
        count_max: u64,
    ) -> Asked<Result<WriteStep>> {
        let count_max = count_max.min(left_in_slice(geometry, run.slot));
        let count_max = self.free_clusters(geometry, run.first, count_max);
        if count_max == 0 {
            return Ok(Ok(WriteStep::Busy(Span::of_clusters(geometry, run.first, 1))));
        }
        let mut count = 0;
        while count < count_max {
            // Where the write goes to is checked when it is written; here, what it will set free.
            match self.sound_mapping(geometry, run.first.plus(count), run.slot(count))? {
                Ok(mapping) if Target::of_whole(geometry, mapping) == Target::New => count += 1,
                Err(e) if count == 0 => return Ok(Err(e)),
                _ => break,
            }
        }
        let span = Span::of_clusters(geometry, run.first, count);
        Ok(Ok(WriteStep::Allocate(self.hold(Held { count, span, ..run }))))
    }

    /// What to do about a change of the mapping of `span`, or of the first part of it: of whole clusters, or of a part of
    /// one.
    pub fn plan_change(&mut self, geometry: Geometry, span: Span) -> Asked<Result<ChangeStep>> {
        let first = geometry.cluster_of(span.first);
        let whole =
            span.within(geometry, first).len() == geometry.subclusters_per_cluster() as usize;
        let one = Span::of_clusters(geometry, first, 1);
        let step = if whole { one } else { self.busy.free_prefix(part_of(span, one)) };
        if step.count == 0 || !self.busy.is_free(step) {
            return Ok(Ok(ChangeStep::Busy(if whole { one } else { span.truncated(1) })));
        }
        let slot = match self.own_place(first) {
            Ok(Place::OwnTable(slot)) => slot,
            Ok(Place::SharedTable(_)) => {
                return Ok(Ok(ChangeStep::Table(geometry.l1_index(first))));
            }
            Ok(Place::NoTable) => {
                let left = geometry.l2_entries() - geometry.l2_index(first).0 as u64;
                let table = Span::of_clusters(geometry, first, left);
                let free = self.busy.free_prefix(part_of(span, table)).count;
                // A change of whole clusters stays one.
                let unit = if whole { one.count } else { 1 };
                return Ok(Ok(ChangeStep::NoTable { count: free / unit * unit }));
            }
            Err(e) => return Ok(Err(e)),
        };
        let held = Held { first, count: 1, slot, reserved: None, span: step };
        match whole {
            true => self.plan_whole(geometry, held, span),
            false => self.plan_part(geometry, held),
        }
    }

    /// Holds as many whole clusters of `span` as `held`, which is its first one, can be made to cover.
    fn plan_whole(
        &mut self,
        geometry: Geometry,
        held: Held,
        span: Span,
    ) -> Asked<Result<ChangeStep>> {
        let wanted = span.count / u64::from(geometry.subclusters_per_cluster());
        let wanted = wanted.min(left_in_slice(geometry, held.slot));
        let reach = self.free_clusters(geometry, held.first, wanted);
        // Looked at before it is held, so that everything up to the release finds the slice in memory and sound.
        let mut count = 0;
        while count < reach {
            match self.sound_mapping(geometry, held.first.plus(count), held.slot(count))? {
                Ok(_) => count += 1,
                Err(e) if count == 0 => return Ok(Err(e)),
                Err(_) => break,
            }
        }
        let span = Span::of_clusters(geometry, held.first, count);
        Ok(Ok(ChangeStep::Held(self.hold(Held { count, span, ..held }))))
    }

    /// Holds a part of one cluster.
    fn plan_part(&mut self, geometry: Geometry, held: Held) -> Asked<Result<ChangeStep>> {
        Ok(match self.sound_mapping(geometry, held.first, held.slot)? {
            Ok(Mapping::Compressed(_)) => Ok(ChangeStep::Indivisible { count: held.span.count }),
            Ok(_) => Ok(ChangeStep::Held(self.hold(held))),
            Err(e) => Err(e),
        })
    }

    /// Where a write to the subclusters `part` of `cluster` goes, which is mapped to `mapping`; an error where that cannot
    /// be.
    fn target(&self, cluster: GuestCluster, mapping: Mapping, part: Range<u32>) -> Result<Target> {
        self.map.check_place(cluster, mapping)?;
        // In a file of its own, data has but one place, and nobody else has that.
        let own = HostCluster::new(cluster.get());
        Ok(match Target::of(mapping, part) {
            Target::New if self.map.data_place().is_external() => Target::Reserved(own),
            other => other,
        })
    }

    /// Keeps the mapping of what is about to be written in place, where zeroing it reaches the bytes, too: the two must
    /// not cross.
    fn hold_written(&mut self, span: Span) -> Option<Span> {
        if self.map.data_place() != DataPlace::RawExternal {
            return None;
        }
        self.busy.hold_written(span);
        Some(span)
    }

    /// Lets the mapping of what was written in place change again.
    pub fn release_written(&mut self, span: Span) {
        self.busy.release_written(span);
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
        let reach = self.free_clusters(geometry, first, count.min(left_in_slice(geometry, slot)));
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
        if idle == 0 {
            return Ok(Ok(PunchStep::Skip { count: 1 }));
        }
        let span = Span::of_clusters(geometry, first, idle);
        let held = Held { first, count: idle, slot, reserved: None, span };
        Ok(Ok(PunchStep::Held(self.hold(held))))
    }

    /// How many of the `count` clusters from `first` on nobody holds any part of.
    pub(super) fn free_clusters(&self, geometry: Geometry, first: GuestCluster, count: u64) -> u64 {
        let free = self.busy.free_prefix(Span::of_clusters(geometry, first, count));
        free.count / u64::from(geometry.subclusters_per_cluster())
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

    pub(super) fn hold(&mut self, held: Held) -> Held {
        self.busy.hold(held.span);
        if !Bug::KnownPlaceStays.is_seeded() {
            self.map.lookaside().forget(held.first, held.count);
        }
        self.map.slices_mut().pin(held.slot.key);
        held
    }

    /// Keeps only the first `count` of clusters that are held as a whole.
    pub fn shrink_hold(&mut self, geometry: Geometry, held: &mut Held, count: u64) {
        self.busy.release(held.span);
        held.count = count;
        held.span = Span::of_clusters(geometry, held.first, count);
        self.busy.hold(held.span);
    }

    /// Lets others change the clusters again.
    pub fn release_hold(&mut self, held: &Held) {
        self.busy.release(held.span);
        self.map.slices_mut().unpin(held.slot.key);
    }

    /// What has to be written to the places of held clusters before they may be linked, for a write of `len` bytes at `at`.
    ///
    /// # Errors
    /// An entry is damaged, as no held one is.
    pub fn plan_fill(
        &mut self,
        geometry: Geometry,
        held: &Held,
        at: GuestOffset,
        len: u64,
    ) -> Result<Fill> {
        let touched = Span::touched(geometry, at, len);
        let last = held.count - 1;
        let head = self.held_mapping(held, 0)?;
        let tail = if last == 0 { head } else { self.held_mapping(held, last)? };
        let first_index = held.part(geometry, 0, touched).start;
        let last_index = held.part(geometry, last, touched).end - 1;
        let whole = geometry.subclusters_per_cluster();
        let kept = |mapping: Mapping| mapping.subclusters().allocated_span();
        let has =
            |mapping: Mapping, index| mapping.subclusters().get(index) == Subcluster::Allocated;
        let stays = held.reserved.is_some();
        let start = match kept(head) {
            Some(_) if stays && has(head, first_index) => at,
            Some(kept) if !stays => geometry.offset_in(held.first, kept.start.min(first_index)),
            _ => geometry.offset_in(held.first, first_index),
        };
        let last = held.first.plus(last);
        let end = match kept(tail) {
            Some(_) if stays && has(tail, last_index) => at.plus(len),
            Some(kept) if !stays => {
                geometry.offset_in(last, kept.end.min(whole).max(last_index + 1))
            }
            _ => geometry.offset_in(last, last_index + 1),
        };
        let has_old = kept(head).is_some() || kept(tail).is_some();
        Ok(Fill { bytes: start..end, has_old })
    }

    fn held_mapping(&mut self, held: &Held, index: u64) -> Result<Mapping> {
        self.map.mapping(held.slot(index)).expect("the slice of what is held stays in memory")
    }

    /// Maps held clusters to consecutive host clusters from `host` on, which hold the bytes of the subclusters in `filled`
    /// now.
    ///
    /// # Errors
    /// These cannot be data; then nothing has been changed.
    pub fn link_held(
        &mut self,
        geometry: Geometry,
        held: &Held,
        host: HostCluster,
        filled: Span,
    ) -> Result<()> {
        if !self.map.data_place().is_external() {
            self.check_target(geometry, host, held.count)?;
        }
        for i in 0..held.count {
            let place = Owned { cluster: host.plus(i), copied: true };
            let new = if geometry.has_extended_l2() {
                // Others may have filled other parts of a cluster that keeps its place: what it is now counts.
                match self.held_mapping(held, i)? {
                    Mapping::Compressed(_) => Mapping::Data(place),
                    old => {
                        let filled = held.part(geometry, i, filled);
                        Mapping::of_subclusters(Some(place), with_filled(old.subclusters(), filled))
                    }
                }
            } else {
                Mapping::Data(place)
            };
            self.relink(geometry, held.slot(i), new, false);
            self.note_redo(geometry, held.first.plus(i), new);
        }
        self.publish_redo();
        Ok(())
    }

    /// Changes what held clusters map to, by `change` from old to new; false, and nothing is changed, where it says of the
    /// first one that it cannot be. A new mapping names what the old one named, or nothing.
    pub fn change_held(
        &mut self,
        geometry: Geometry,
        held: &Held,
        change: impl Fn(Mapping) -> Option<Mapping>,
        punch: bool,
    ) -> bool {
        for (guest, slot) in (0..held.count).map(|i| (held.first.plus(i), held.slot(i))) {
            let Ok(Ok(old)) = self.map.mapping(slot) else {
                panic!("a held entry is in memory and sound")
            };
            let Some(new) = change(old) else { return false };
            assert!(
                cluster_of(new).is_none_or(|cluster| cluster_of(old) == Some(cluster)),
                "a change of kind names no other cluster"
            );
            if new != old {
                self.relink(geometry, slot, new, punch);
                if !Bug::UnmapNotRecorded.is_seeded() {
                    self.note_redo(geometry, guest, new);
                }
                if Bug::StaleMappingAfterDiscard.is_seeded() {
                    self.map.replace(slot, old);
                }
            }
        }
        self.publish_redo();
        true
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

/// Where a write to a cluster goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// To the cluster's own place, whose content the entry tells already.
    Own(HostCluster),
    /// To the cluster's own place, and then the entry has to tell of it.
    Reserved(HostCluster),
    /// To a new place.
    New,
}

impl Target {
    /// Of a write to the subclusters in `part`.
    fn of(mapping: Mapping, part: Range<u32>) -> Self {
        let own = |host: Owned| host.copied || Bug::SharedClusterWrittenInPlace.is_seeded();
        match (mapping, mapping.host()) {
            (Mapping::Data(_), Some(host)) if own(host) => Self::Own(host.cluster),
            (Mapping::Zero { .. }, Some(host)) if host.copied => Self::Reserved(host.cluster),
            (Mapping::Divided(divided), Some(host)) if own(host) => {
                match divided.subclusters().are_allocated(part) {
                    true => Self::Own(host.cluster),
                    false => Self::Reserved(host.cluster),
                }
            }
            _ => Self::New,
        }
    }

    /// Of a write to the cluster as a whole.
    fn of_whole(geometry: Geometry, mapping: Mapping) -> Self {
        Self::of(mapping, 0..geometry.subclusters_per_cluster())
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

/// Entries from that of `slot` to the end of its slice.
pub(super) fn left_in_slice(geometry: Geometry, slot: Slot) -> u64 {
    geometry.l2_entries_per_slice() - slot.index as u64
}

/// The part of `span` up to the end of `limit`, in which it starts.
fn part_of(span: Span, limit: Span) -> Span {
    span.truncated(limit.end().distance_from(span.first))
}

/// What the subclusters of a cluster are once those in `filled` are filled.
fn with_filled(before: Subclusters, filled: Range<u32>) -> Subclusters {
    if Bug::SubclustersTakenForFilled.is_seeded() {
        return Subclusters::ALLOCATED;
    }
    if Bug::SubclustersForgotten.is_seeded() {
        return Subclusters::UNALLOCATED.with_allocated(filled);
    }
    before.with_allocated(filled)
}

fn cluster_of(mapping: Mapping) -> Option<HostCluster> {
    mapping.host().map(|host| host.cluster)
}
