//! Zeroing and discarding: whole clusters by their mapping, the rest by writing zeros.

use super::Image;
use super::layer::{Layer, Qcow2};
use super::options::Discard;
use super::write::Hold;
use crate::addr::{GuestCluster, GuestOffset};
use crate::disk::{Disk, Payload};
use crate::error::Result;
use crate::format::entry::Mapping;
use crate::meta::plan::ChangeStep;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Zeros that one write carries where the mapping cannot express them.
const ZERO_WRITE_LEN: u64 = 1 << 20;

impl<D: Disk> Image<D> {
    /// Makes `len` bytes at `at` read as zeros; with `unmap` their space may be given back.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<()> {
        self.check_change(at, len)?;
        let recorded = if Bug::ZeroingNotRecorded.is_seeded() { 0 } else { len };
        let _recording = self.record(at, recorded);
        let qcow2 = match self.top() {
            Layer::Raw(raw) => {
                // As QEMU: space is given back only where discards are.
                let unmap = unmap && self.inner.options.discard == Discard::Unmap;
                return raw.write_zeroes(at, len, unmap).await;
            }
            Layer::Qcow2(qcow2) => qcow2,
        };
        qcow2.prepare_for_change().await?;
        self.zero_range(qcow2, at, len, unmap).await
    }

    /// As [`Self::write_zeroes`], of a range that may lie behind the end of the disk.
    pub(super) async fn zero_range(
        &self,
        qcow2: &Qcow2<D>,
        at: u64,
        len: u64,
        unmap: bool,
    ) -> Result<()> {
        let whole = qcow2.whole_clusters(at, len, self.virtual_size());
        let Some((first, count)) = whole.filter(|_| qcow2.can_map_zeros()) else {
            return self.write_zero_bytes(qcow2, at, len).await;
        };
        let start = qcow2.geometry.guest_start(first).get();
        let end = (start + qcow2.geometry.bytes(count)).min(at + len);
        self.write_zero_bytes(qcow2, at, start - at).await?;
        self.write_zero_bytes(qcow2, end, at + len - end).await?;
        let change = if unmap { Change::ZeroUnmap } else { Change::Zero };
        self.change_clusters(qcow2, first, count, change).await
    }

    /// Tells that nobody needs `len` bytes at `at` any more. Clusters of this image that lie inside the range as a whole
    /// become free and read as zeros from then on; anything else, the backing file's clusters included, stays as it is.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check_change(at, len)?;
        if self.inner.options.discard == Discard::Ignore {
            return Ok(());
        }
        let _recording = self.record(at, len);
        match self.top() {
            Layer::Raw(raw) => raw.discard(at, len).await,
            Layer::Qcow2(qcow2) => {
                if qcow2.bitmaps.is_recording() {
                    // What is recorded is what was asked for, also where nothing comes of it.
                    qcow2.prepare_for_change().await?;
                }
                let whole = qcow2.whole_clusters(at, len, self.virtual_size());
                // Version 2 cannot say that a cluster reads as zeros although the backing file has it.
                let Some((first, count)) = whole.filter(|_| qcow2.can_map_zeros()) else {
                    return Ok(());
                };
                qcow2.prepare_for_change().await?;
                self.change_clusters(qcow2, first, count, Change::Discard).await
            }
        }
    }

    /// Writes zeros where the disk does not read as zeros already.
    async fn write_zero_bytes(&self, qcow2: &Qcow2<D>, at: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let wanted = (len - done).min(ZERO_WRITE_LEN);
            let source = {
                let _inside = self.enter();
                self.resolve(0, at + done, wanted).await?
            };
            if !source.content.reads_as_zeros() {
                self.write_clusters(qcow2, at + done, &Payload::zeros(source.len)).await?;
            }
            done += source.len;
        }
        Ok(())
    }

    pub(super) async fn change_clusters(
        &self,
        qcow2: &Qcow2<D>,
        first: GuestCluster,
        count: u64,
        change: Change,
    ) -> Result<()> {
        let mut done = 0;
        while done < count {
            let some = self.change_some(qcow2, first.plus(done), count - done, change);
            done += qcow2.guarded(some).await?;
            if lock(&qcow2.meta).wants_flush() {
                qcow2.write_back().await?;
            }
        }
        Ok(())
    }

    /// Changes the first of `count` clusters; how many it got done.
    async fn change_some(
        &self,
        qcow2: &Qcow2<D>,
        first: GuestCluster,
        count: u64,
        change: Change,
    ) -> Result<u64> {
        let _inside = self.enter();
        let step = qcow2.ask(|meta| meta.plan_change(qcow2.geometry, first, count)).await?;
        match step {
            ChangeStep::Busy => {
                qcow2.wait_until_free(first).await;
                Ok(0)
            }
            ChangeStep::Table(l1) => qcow2.make_table(l1).await.map(|()| 0),
            // Nothing is mapped: there is nothing to free, and without a backing file it reads as zeros.
            ChangeStep::NoTable { count }
                if change == Change::Discard
                    || !qcow2.has_backing()
                    || Bug::ZeroingShowsBacking.is_seeded() =>
            {
                Ok(count)
            }
            ChangeStep::NoTable { .. } => {
                qcow2.make_table(qcow2.geometry.l1_index(first)).await.map(|()| 0)
            }
            ChangeStep::Held(held) => {
                let hold = Hold { image: qcow2, held };
                let discard = self.inner.options.discard;
                if !Bug::RawDataKeepsZeroed.is_seeded() {
                    qcow2.zero_held(&hold.held, self.virtual_size(), change, discard).await?;
                }
                qcow2.change_held(&hold, change, self.inner.options.discard);
                Ok(held.count)
            }
        }
    }
}

/// What happens to clusters as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// They read as zeros, and keep their space.
    Zero,
    /// They read as zeros, and give their space back.
    ZeroUnmap,
    /// They give their space back.
    Discard,
}

impl Change {
    /// What a cluster that is mapped to `old` is mapped to afterwards.
    fn apply(self, old: Mapping, zero_flag: bool) -> Mapping {
        let zeros = |preallocated| Mapping::Zero { preallocated };
        match (self, old) {
            (_, Mapping::Unallocated) if !zero_flag || self == Self::Discard => {
                Mapping::Unallocated
            }
            // Version 2: without a backing file, nothing reads as zeros.
            _ if !zero_flag => Mapping::Unallocated,
            (Self::Zero, Mapping::Data(owned)) => zeros(Some(owned)),
            (Self::Zero, Mapping::Zero { preallocated }) => zeros(preallocated),
            _ if self == Self::Discard && Bug::DiscardShowsBacking.is_seeded() => {
                Mapping::Unallocated
            }
            _ => zeros(None),
        }
    }
}

impl<D: Disk> Qcow2<D> {
    /// Whether a mapping can make a cluster read as zeros.
    pub(super) fn can_map_zeros(&self) -> bool {
        lock(&self.meta).map.has_zero_flag() || !self.has_backing()
    }

    fn change_held(&self, hold: &Hold<'_, D>, change: Change, discard: Discard) {
        let mut meta = lock(&self.meta);
        let zero_flag = meta.map.has_zero_flag();
        let apply = |old| change.apply(old, zero_flag);
        meta.change_held(self.geometry, &hold.held, apply, discard == Discard::Unmap);
    }

    /// The clusters that lie in the range as a whole; one that the end of the disk cuts off counts as whole.
    pub(super) fn whole_clusters(
        &self,
        at: u64,
        len: u64,
        size: u64,
    ) -> Option<(GuestCluster, u64)> {
        let cluster = self.geometry.cluster_size();
        let first = at.div_ceil(cluster);
        let end = if at + len == size { size.div_ceil(cluster) } else { (at + len) / cluster };
        (end > first)
            .then(|| (self.geometry.guest_cluster(GuestOffset::new(first * cluster)), end - first))
    }
}
