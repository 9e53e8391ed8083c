//! From one set of snapshots and active tables to another: the order in which it reaches the disk.
//!
//! ```text
//! version 3   new tables, in clusters of their own     durable; nothing names them
//!             the header: it names the new tables,
//!             and is dirty                              one sector, durable
//!             counts and COPIED flags                   durable
//!             the header: not dirty any more            durable
//!
//! version 2   new tables                                durable
//!             raised counts                             durable
//!             COPIED flags that go                      durable
//!             the header names the new tables           one sector, durable
//!             COPIED flags that come                    durable
//!             lowered counts                            durable
//! ```
//!
//! In version 3 whoever opens the image for writing after a crash sees the dirty bit and works counts and flags out anew,
//! as the format asks. Version 2 has no such bit: its counts are never too low, and a flag is set only where nobody else
//! refers to the cluster. Counts may be too high then and flags may contradict them, which harms nobody; our own mark
//! says so, for our next open to repair.

use std::sync::atomic::Ordering;

use super::settle::{Flags, Settlement};
use crate::addr::HostOffset;
use crate::disk::Disk;
use crate::engine::claim::Claimed;
use crate::engine::layer::Qcow2;
use crate::engine::regions::add_snapshots;
use crate::error::Result;
use crate::format::feature::Incompatible;
use crate::format::header::{Header, Version};
use crate::format::snapshot::{SnapshotEntry, encode_table};
use crate::meta::Run;
use crate::meta::regions::Kind;
use crate::meta::settle::trees::{Trees, with_flags};
use crate::meta::table::WordTable;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// What a verb changes.
pub(super) struct Change {
    /// The tables that gain or lose references.
    pub trees: Trees,
    pub flags: Flags,
    /// The snapshots from now on, where they are others.
    pub snapshots: Option<Vec<SnapshotEntry>>,
    /// The active L1 table from now on, where it lies elsewhere.
    pub l1: Option<Vec<u64>>,
    /// The disk's size from now on, in bytes.
    pub size: u64,
    /// Clusters of tables that nobody names any more.
    pub dropped: Vec<Run>,
}

impl<D: Disk> Qcow2<D> {
    /// Carries out `change`; the clusters that are free after it. Nobody else may use the image meanwhile, and nothing may
    /// wait to be written.
    ///
    /// # Errors
    /// As [`Settlement::survey`], with nothing changed; or the host failed half-way. Then the image takes no more writes, and
    /// the next open finds it as it was or as it was to be.
    pub(super) async fn carry_out_change(&self, mut change: Change) -> Result<Vec<Run>> {
        if lock(&self.header).version == Version::V2 {
            self.require_mark().await?;
        }
        let header = lock(&self.header).clone();
        let mut new = Header { size: change.size, ..header.clone() };
        let mut claims = Vec::new();
        if let Some(snapshots) = &change.snapshots {
            let table = encode_table(snapshots)?;
            let (offset, claimed) = self.write_beside(table).await?;
            (new.snapshots_offset, new.snapshot_count) = (offset, snapshots.len() as u32);
            claims.extend(claimed);
            change.dropped.extend(self.snapshot_table().await?);
        }
        if let Some(l1) = &change.l1 {
            let bytes: Vec<u8> = l1.iter().flat_map(|word| word.to_be_bytes()).collect();
            let (offset, claimed) = self.write_beside(bytes).await?;
            (new.l1_table_offset, new.l1_size) = (offset, l1.len() as u32);
            claims.extend(claimed);
        }
        // The counts of the new tables' clusters, and the tables.
        if !Bug::NoBarrierBeforeSnapshotSwitch.is_seeded() {
            self.come_to_rest().await?;
        }
        let two_steps = header.version == Version::V2;
        let Change { trees, flags, dropped, .. } = change;
        let survey = Settlement::survey(self, trees, flags, &dropped, two_steps).await;
        let settlement = survey.map_err(|e| self.named(e))?;
        // From here on the header may name them.
        claims.into_iter().for_each(Claimed::keep);
        let settled = self.switch(new, change.l1, settlement).await;
        settled.map_err(|e| {
            let lost = e.context("a snapshot operation was cut short, the image is read-only now");
            let lost = self.named(lost);
            lock(&self.meta).fail(lost.clone());
            lost
        })
    }

    /// Writes a table into clusters that nobody uses; where it lies, and the claim of its clusters. An empty one takes none.
    async fn write_beside(
        &self,
        mut bytes: Vec<u8>,
    ) -> Result<(HostOffset, Option<Claimed<'_, D>>)> {
        let clusters = self.geometry.clusters_for(bytes.len() as u64);
        if clusters == 0 {
            return Ok((HostOffset::new(0), None));
        }
        bytes.resize(self.geometry.bytes(clusters) as usize, 0);
        let claimed = self.claim_row(clusters).await?;
        if Bug::NoBarrierBeforeSnapshotSwitch.is_seeded() {
            self.come_to_rest().await?;
        }
        self.write_new(claimed.run().first, &bytes).await?;
        Ok((self.geometry.host_start(claimed.run().first), Some(claimed)))
    }

    /// The clusters of the snapshot table.
    async fn snapshot_table(&self) -> Result<Option<Run>> {
        let (_, len) = self.read_snapshot_table().await?;
        let (first, count) = self.geometry.host_span(lock(&self.header).snapshots_offset, len);
        Ok((len > 0).then_some(Run { first, count, fresh: false }))
    }

    async fn switch(
        &self,
        new: Header,
        l1: Option<Vec<u64>>,
        settlement: Settlement<'_, D>,
    ) -> Result<Vec<Run>> {
        let _structure = self.structure.acquire().await;
        match new.version {
            Version::V3 => self.switch_v3(new, l1, settlement).await,
            Version::V2 => self.switch_v2(new, l1, settlement).await,
        }
    }

    async fn switch_v3(
        &self,
        new: Header,
        l1: Option<Vec<u64>>,
        mut settlement: Settlement<'_, D>,
    ) -> Result<Vec<Run>> {
        let mut dirty = new.clone();
        if !Bug::SettledWithoutDirty.is_seeded() {
            dirty.incompatible = new.incompatible.with(Incompatible::DIRTY);
        }
        if Bug::NoBarrierAfterSnapshotSwitch.is_seeded() {
            self.write_header(dirty).await?;
        } else {
            self.commit_header(dirty).await?;
        }
        settlement.write_flags().await?;
        let l1 = self.settle_l1(l1, &settlement).await?;
        settlement.write_counts().await?;
        if !Bug::DirtyClearedTooEarly.is_seeded() {
            self.barrier().await?;
        }
        self.commit_header(new).await?;
        self.restart(l1, settlement.freed()).await
    }

    async fn switch_v2(
        &self,
        new: Header,
        l1: Option<Vec<u64>>,
        mut settlement: Settlement<'_, D>,
    ) -> Result<Vec<Run>> {
        // There is no dirty bit; our own mark sends our next open for the same repair.
        self.mark_unsettled().await?;
        self.barrier().await?;
        if !Bug::SnapshotBeforeCounts.is_seeded() {
            settlement.write_raised().await?;
            self.barrier().await?;
        }
        let clears = settlement.flags() == Flags::Clear && !Bug::SnapshotBeforeFlags.is_seeded();
        if clears {
            settlement.write_flags().await?;
            self.barrier().await?;
        }
        if Bug::SnapshotFreedTooEarly.is_seeded() {
            settlement.write_counts().await?;
        }
        self.commit_header(new).await?;
        if !clears {
            settlement.write_flags().await?;
        }
        let l1 = self.settle_l1(l1, &settlement).await?;
        if !clears {
            self.barrier().await?;
        }
        if Bug::SnapshotBeforeCounts.is_seeded() {
            settlement.write_raised().await?;
        }
        settlement.write_counts().await?;
        self.barrier().await?;
        self.mark_unclean().await?;
        self.restart(l1, settlement.freed()).await
    }

    /// The active L1 table from now on. A new one is on disk already; the flags of the old one follow the counts.
    async fn settle_l1(
        &self,
        new: Option<Vec<u64>>,
        settlement: &Settlement<'_, D>,
    ) -> Result<WordTable> {
        let offset = lock(&self.header).l1_table_offset;
        if let Some(words) = new {
            return Ok(WordTable::new(offset, words));
        }
        let old = lock(&self.meta).map.l1().words().to_vec();
        let words = with_flags(self.geometry, &old, |table| settlement.count(table) == 1)?;
        if words != old {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            self.write_metadata(Kind::L1, offset, &bytes).await?;
        }
        Ok(WordTable::new(offset, words))
    }

    /// Goes on with what is on disk now, as if the image had just been opened. Takes in the clusters that have become free.
    async fn restart(&self, l1: WordTable, freed: Vec<Run>) -> Result<Vec<Run>> {
        let header = lock(&self.header).clone();
        self.size.store(header.virtual_size(), Ordering::Release);
        let mut regions = {
            let mut meta = lock(&self.meta);
            meta.restart(l1);
            meta.own_regions(self.geometry)?
        };
        let snapshots = self.read_snapshot_table().await?;
        let inside = |table| lock(&self.meta).check_inside(self.geometry, Kind::L2, table);
        add_snapshots(&self.disk, &self.path, &header, &snapshots, &mut regions, inside).await?;
        let mut meta = lock(&self.meta);
        regions.carry_bitmaps(meta.regions())?;
        *meta.regions_mut() = regions;
        freed.iter().for_each(|run| meta.alloc.freed(run.first));
        Ok(freed)
    }
}
