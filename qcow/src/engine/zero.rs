//! Zeroing and discarding: whole clusters and subclusters by their mapping, the rest by writing zeros.

use std::ops::Range;

use super::Image;
use super::layer::{Layer, Qcow2};
use super::options::Discard;
use super::write::Hold;
use crate::addr::GuestOffset;
use crate::disk::{Disk, Payload};
use crate::error::{Error, Result};
use crate::format::entry::Mapping;
use crate::format::subcluster::Subcluster;
use crate::meta::plan::ChangeStep;
use crate::meta::span::Span;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Zeros that one write carries where the mapping cannot express them.
pub(super) const ZERO_WRITE_LEN: u64 = 1 << 20;

/// What happens where the mapping cannot express zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// Zeros are written.
    Write,
    /// It is a failure.
    Fail,
}

impl<D: Disk> Image<D> {
    /// Makes `len` bytes at `at` read as zeros; with `unmap` their space may be given back.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<()> {
        self.write_zeroes_or(at, len, unmap, Otherwise::Write).await
    }

    /// As [`Self::write_zeroes`], but fails where zeros would have to be written as data; what lies before such a place is
    /// zeroed then.
    ///
    /// # Errors
    /// As [`Self::write`], and of kind [`Unsupported`](crate::ErrorKind::Unsupported) where only data can express the zeros.
    pub async fn write_zeroes_without_data(&self, at: u64, len: u64, unmap: bool) -> Result<()> {
        self.write_zeroes_or(at, len, unmap, Otherwise::Fail).await
    }

    async fn write_zeroes_or(
        &self,
        at: u64,
        len: u64,
        unmap: bool,
        otherwise: Otherwise,
    ) -> Result<()> {
        self.check_change(at, len)?;
        let recorded = if Bug::ZeroingNotRecorded.is_seeded() { 0 } else { len };
        let _recording = self.record(at, recorded);
        let qcow2 = match self.top() {
            Layer::Raw(raw) => {
                // As QEMU: space is given back only where discards are.
                let unmap = unmap && self.inner.options.discard == Discard::Unmap;
                return raw.write_zeroes(at, len, unmap).await;
            }
            Layer::Luks(luks) => {
                otherwise.check()?;
                return luks.write_zeroes(at, len).await;
            }
            Layer::Sealed(sealed) => {
                return Box::pin(self.zero_sealed(sealed, at, len, unmap, otherwise)).await;
            }
            Layer::Qcow2(qcow2) => qcow2,
        };
        qcow2.prepare_for_change().await?;
        self.zero_range(qcow2, at, len, unmap, otherwise).await
    }

    /// As [`Self::write_zeroes`], of a range that may lie behind the end of the disk.
    pub(super) async fn zero_range(
        &self,
        qcow2: &Qcow2<D>,
        at: u64,
        len: u64,
        unmap: bool,
        otherwise: Otherwise,
    ) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if !lock(&qcow2.meta).map.has_zero_flag() {
            // As QEMU: without zero clusters nothing is promised.
            otherwise.check()?;
        }
        if !qcow2.can_map_zeros() {
            return self.write_zero_bytes(qcow2, at, len).await;
        }
        let geometry = qcow2.geometry;
        let unit = geometry.subcluster_size();
        let Some(whole) = qcow2.whole_parts(at, len, self.virtual_size(), unit) else {
            return self.zero_inside(qcow2, at, len, otherwise).await;
        };
        let start = geometry.subcluster_start(whole.first).get();
        let end = whole.end_offset(geometry).get().min(at + len);
        self.zero_inside(qcow2, at, start - at, otherwise).await?;
        let change = if unmap { Change::ZeroUnmap } else { Change::Zero };
        self.change_span(qcow2, whole, change).await?;
        self.zero_inside(qcow2, end, at + len - end, otherwise).await
    }

    /// Makes a range that no whole subcluster lies in read as zeros: by its mapping, where each subcluster that it touches
    /// reads as zeros beside it and has no data of its own, else by writing zeros.
    async fn zero_inside(
        &self,
        qcow2: &Qcow2<D>,
        at: u64,
        len: u64,
        otherwise: Otherwise,
    ) -> Result<()> {
        if qcow2.has_raw_data() && otherwise == Otherwise::Write {
            // A change of the mapping reaches the bytes of the whole subcluster there.
            return self.write_zero_bytes(qcow2, at, len).await;
        }
        let geometry = qcow2.geometry;
        let mut done = 0;
        while done < len {
            let at = at + done;
            let subcluster = Span::touched(geometry, GuestOffset::new(at), 1);
            let start = geometry.subcluster_start(subcluster.first).get();
            let end = subcluster.end_offset(geometry).get();
            let part = (len - done).min(end - at);
            // Past the end of the disk there is nothing to keep.
            let disk_end = end.min(self.virtual_size()).max(at + part);
            let zeros_around = self.reads_as_zeros(start, at, otherwise).await?
                && self.reads_as_zeros(at + part, disk_end, otherwise).await?;
            if !zeros_around || !self.zero_unless_data(qcow2, subcluster).await? {
                otherwise.check()?;
                self.write_zero_bytes(qcow2, at, part).await?;
            }
            done += part;
        }
        Ok(())
    }

    /// Whether the bytes in `start..end` read as zeros, as far as mappings tell; where all depends on it, also as far as the
    /// host's holes do, as QEMU looks for them, too.
    async fn reads_as_zeros(&self, start: u64, end: u64, otherwise: Otherwise) -> Result<bool> {
        let _inside = self.enter();
        let mut at = start;
        while at < end {
            let (zeros, len) = match otherwise {
                Otherwise::Write => {
                    let source = self.resolve(0, at, end - at).await?;
                    (source.content.reads_as_zeros(), source.len)
                }
                Otherwise::Fail => {
                    let extent = self.map(at, end - at).await?;
                    (extent.zero, extent.len)
                }
            };
            if !zeros {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    /// Makes a subcluster that has no data of its own read as zeros; whether it is such a one.
    async fn zero_unless_data(&self, qcow2: &Qcow2<D>, subcluster: Span) -> Result<bool> {
        loop {
            let some = self.change_some(qcow2, subcluster, Change::ZeroUnlessData);
            match qcow2.guarded(some).await? {
                Changed::Again => {}
                Changed::Done(_) => return Ok(true),
                Changed::Impossible(_) => return Ok(false),
            }
        }
    }

    /// Tells that nobody needs `len` bytes at `at` any more. Clusters that lie inside the range as a whole read as zeros
    /// from then on, and those of this image become free; anything else stays as it is. Version 2 cannot say that of a
    /// cluster that a backing file may have, so there nothing happens.
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
            // As QEMU: a hole there would say what is not in use.
            Layer::Luks(_) => Ok(()),
            Layer::Sealed(sealed) => Box::pin(self.discard_sealed(sealed, at, len)).await,
            Layer::Qcow2(qcow2) => {
                if qcow2.bitmaps.is_recording() {
                    // What is recorded is what was asked for, also where nothing comes of it.
                    qcow2.prepare_for_change().await?;
                }
                let unit = qcow2.geometry.cluster_size();
                let whole = qcow2.whole_parts(at, len, self.virtual_size(), unit);
                let Some(whole) = whole.filter(|_| qcow2.can_map_zeros()) else {
                    return Ok(());
                };
                qcow2.prepare_for_change().await?;
                self.change_span(qcow2, whole, Change::Discard).await
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

    /// Changes what `span` maps to: whole clusters, and with [`Change::Zero`] also parts of them.
    pub(super) async fn change_span(
        &self,
        qcow2: &Qcow2<D>,
        span: Span,
        change: Change,
    ) -> Result<()> {
        let mut left = span;
        while left.count > 0 {
            let done = match qcow2.guarded(self.change_some(qcow2, left, change)).await? {
                Changed::Again => 0,
                Changed::Done(count) => count,
                Changed::Impossible(count) => {
                    let part = left.truncated(count);
                    let start = qcow2.geometry.subcluster_start(part.first).get();
                    let end = part.end_offset(qcow2.geometry).get();
                    self.write_zero_bytes(qcow2, start, end - start).await?;
                    count
                }
            };
            left = left.after(done);
            if lock(&qcow2.meta).wants_flush() {
                qcow2.write_back().await?;
            }
        }
        Ok(())
    }

    /// Changes the first part of `span`.
    async fn change_some(&self, qcow2: &Qcow2<D>, span: Span, change: Change) -> Result<Changed> {
        let _inside = self.enter();
        let step = qcow2.ask(|meta| meta.plan_change(qcow2.geometry, span)).await?;
        match step {
            ChangeStep::Busy(busy) => {
                qcow2.wait_until_free(busy).await;
                Ok(Changed::Again)
            }
            ChangeStep::Table(l1) => qcow2.make_table(l1).await.map(|()| Changed::Again),
            // Nothing is mapped, so there is nothing to free.
            ChangeStep::NoTable { count }
                if change == Change::Unlink
                    || change == Change::Discard && !qcow2.has_backing()
                    || Bug::ZeroingShowsBacking.is_seeded() =>
            {
                Ok(Changed::Done(count))
            }
            ChangeStep::NoTable { .. } => {
                let cluster = qcow2.geometry.cluster_of(span.first);
                qcow2.make_table(qcow2.geometry.l1_index(cluster)).await.map(|()| Changed::Again)
            }
            ChangeStep::Indivisible { count } => Ok(Changed::Impossible(count)),
            ChangeStep::Held(held) => {
                let hold = Hold { image: qcow2, held };
                let discard = self.inner.options.discard;
                if !Bug::RawDataKeepsZeroed.is_seeded() {
                    qcow2.zero_held(&hold.held, self.virtual_size(), change, discard).await?;
                }
                let changed = qcow2.change_held(&hold, change, discard);
                qcow2.make_up_for_redo().await?;
                let count = hold.held.span.count;
                Ok(if changed { Changed::Done(count) } else { Changed::Impossible(count) })
            }
        }
    }
}

impl Otherwise {
    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Write => Ok(()),
            Self::Fail => Err(Error::unsupported("zeros can only be written as data here")),
        }
    }
}

/// What came of an attempt to change a mapping.
#[derive(Clone, Copy, Debug)]
enum Changed {
    /// Nothing yet: try again.
    Again,
    /// The first so many subclusters are changed.
    Done(u64),
    /// The mapping of the first so many subclusters cannot be changed so.
    Impossible(u64),
}

/// What happens to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It reads as zeros, and keeps its space.
    Zero,
    /// It reads as zeros, and clusters as a whole give their space back.
    ZeroUnmap,
    /// It reads as zeros, unless it is data.
    ZeroUnlessData,
    /// Clusters that have data, or that a backing file may have, read as zeros and give their space back.
    Discard,
    /// Clusters give their space back, and a backing file does not show.
    Unlink,
}

impl Change {
    /// What a cluster that is mapped to `old` is mapped to afterwards, where this is about the subclusters in `part`;
    /// `None` where it cannot be done.
    fn apply(self, old: Mapping, part: Option<Range<u32>>, image: Abilities) -> Option<Mapping> {
        let is_data = |part: Range<u32>| {
            let subclusters = old.subclusters();
            part.into_iter().any(|index| subclusters.get(index) == Subcluster::Allocated)
        };
        if self == Self::ZeroUnlessData && is_data(part.clone().unwrap_or(0..1)) {
            return None;
        }
        Some(match part {
            Some(part) => Mapping::of_subclusters(old.host(), old.subclusters().with_zero(part)),
            None => self.apply_to_whole(old, image),
        })
    }

    fn apply_to_whole(self, old: Mapping, image: Abilities) -> Mapping {
        let zeros = |preallocated| Mapping::Zero { preallocated };
        let is_nowhere = old.host().is_none() && !matches!(old, Mapping::Compressed(_));
        match self {
            // Version 2: without a backing file, nothing reads as zeros.
            _ if !image.zero_flag => Mapping::Unallocated,
            Self::Zero | Self::ZeroUnlessData => zeros(old.host()),
            Self::Discard if is_nowhere && !image.names_backing => old,
            Self::Unlink if !image.names_backing => Mapping::Unallocated,
            Self::Unlink if old == Mapping::Unallocated => old,
            Self::Discard if Bug::DiscardShowsBacking.is_seeded() => Mapping::Unallocated,
            Self::ZeroUnmap | Self::Discard | Self::Unlink => zeros(None),
        }
    }
}

/// What an image can say, and has to hide.
#[derive(Clone, Copy, Debug)]
struct Abilities {
    zero_flag: bool,
    names_backing: bool,
}

impl<D: Disk> Qcow2<D> {
    /// Whether a mapping can make a cluster read as zeros.
    pub(super) fn can_map_zeros(&self) -> bool {
        lock(&self.meta).map.has_zero_flag() || !self.has_backing()
    }

    /// Changes what is held; whether that could be done.
    fn change_held(&self, hold: &Hold<'_, D>, change: Change, discard: Discard) -> bool {
        let mut meta = lock(&self.meta);
        let (zero_flag, names_backing) = (meta.map.has_zero_flag(), self.has_backing());
        let part = hold.held.part(self.geometry, 0, hold.held.span);
        let whole = part.len() == self.geometry.subclusters_per_cluster() as usize;
        let part = (!whole).then_some(part);
        let image = Abilities { zero_flag, names_backing };
        let apply = |old| change.apply(old, part.clone(), image);
        meta.change_held(self.geometry, &hold.held, apply, discard == Discard::Unmap)
    }

    /// The parts of `unit` bytes, subclusters or clusters, that lie in the range as a whole. One that the end of the disk
    /// cuts off counts as whole; so do, as in QEMU, the ones behind it in the last cluster, if all others do.
    pub(super) fn whole_parts(&self, at: u64, len: u64, size: u64, unit: u64) -> Option<Span> {
        let cluster = self.geometry.cluster_size();
        let start = at.next_multiple_of(unit);
        let end = match at + len {
            end if end != size => end / unit * unit,
            _ if size.is_multiple_of(unit) && start <= size / cluster * cluster => {
                size.next_multiple_of(cluster)
            }
            _ => size.next_multiple_of(unit),
        };
        let first = GuestOffset::new(start);
        (end > start).then(|| Span::touched(self.geometry, first, end - start))
    }
}
