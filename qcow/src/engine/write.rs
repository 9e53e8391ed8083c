//! Writing: in place where the cluster is this image's own, else to new clusters that are linked once they are filled.
//!
//! With extended L2 entries a cluster that is this image's own may have parts that hold nothing yet. Those are filled in
//! their place, and linked like new clusters; of new clusters only the subclusters that a write touches are filled.

use std::sync::atomic::Ordering;

use smallvec::{SmallVec, smallvec};

use super::Image;
use super::claim::Claimed;
use super::data_file::WrittenHold;
use super::layer::{Layer, Qcow2};
use super::options::DetectZeroes;
use super::surround::Around;
use crate::addr::{GuestOffset, HostCluster, HostOffset};
use crate::disk::{Disk, Payload};
use crate::encrypted::DataPlace;
use crate::error::Result;
use crate::exec::try_join_all;
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::lookaside::Right;
use crate::meta::plan::{Fill, Held, WriteStep};
use crate::meta::span::Span;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Writes `from` at `at`. Durable after the next successful [`Self::flush`].
    ///
    /// # Errors
    /// The range does not lie inside the disk, the image is read-only or damaged there, or the host failed or is full.
    /// Then each sector of the range holds its old or its new bytes, and all others what they held before.
    pub async fn write(&self, at: u64, from: &Payload) -> Result<()> {
        self.check_transfer(at, from.len())?;
        self.check_may_change(at, from.len())?;
        let _recording = self.record(at, from.len());
        let detect = self.inner.options.detect_zeroes;
        if detect != DetectZeroes::Off && !from.is_empty() && from.is_zero() {
            let unmap = detect == DetectZeroes::Unmap;
            return Box::pin(self.write_zeroes(at, from.len(), unmap)).await;
        }
        match self.top() {
            Layer::Raw(raw) => {
                raw.health()?;
                raw.write(at, from).await
            }
            Layer::Sealed(sealed) => Box::pin(self.write_sealed(sealed, at, from)).await,
            // Whether it still takes writes is part of the look at its metadata.
            Layer::Qcow2(qcow2) => self.write_clusters(qcow2, at, from).await,
            Layer::Luks(luks) => {
                luks.raw().health()?;
                luks.write(at, from).await
            }
        }
    }

    pub(super) async fn write_clusters(
        &self,
        qcow2: &Qcow2<D>,
        at: u64,
        from: &Payload,
    ) -> Result<()> {
        qcow2.prepare_for_change().await?;
        let inside = self.enter();
        if from.is_empty() {
            return Ok(());
        }
        let place = qcow2.known_place(GuestOffset::new(at), from.len(), Right::Write);
        if let Some(host) = place {
            return qcow2.write_judged(DataPlace { host, guest: at }, from).await;
        }
        let first = match qcow2.next_part(at, 0, from.len()).await? {
            // The look that found the place has judged it, and nothing has come between.
            Part::InPlace { host, len, hold: _hold, .. } if len == from.len() => {
                return qcow2.write_judged(DataPlace { host, guest: at }, from).await;
            }
            first => first,
        };
        let mut done = first.len();
        let mut parts: SmallVec<[Part<'_, D>; 1]> = smallvec![first];
        while done < from.len() {
            let part = qcow2.next_part(at + done, done, from.len() - done).await?;
            done += part.len();
            parts.push(part);
        }
        let written = match parts.len() {
            1 => {
                let part = parts.pop().expect("one part");
                self.write_part(qcow2, part, at, from).await
            }
            _ => {
                let writes = parts.into_iter().map(|part| self.write_part(qcow2, part, at, from));
                Box::pin(try_join_all(IN_FLIGHT_MAX, writes)).await
            }
        };
        drop(inside);
        if written.is_ok() && lock(&qcow2.meta).wants_flush() {
            Box::pin(qcow2.write_back()).await?;
        }
        written
    }

    /// Writes one part of a request that covers `from` at `at`.
    async fn write_part(
        &self,
        qcow2: &Qcow2<D>,
        part: Part<'_, D>,
        at: u64,
        from: &Payload,
    ) -> Result<()> {
        match part {
            Part::InPlace { host, offset, len, hold: _hold } if len == from.len() => {
                debug_assert_eq!(offset, 0);
                qcow2.write_data(DataPlace { host, guest: at }, from).await
            }
            Part::InPlace { host, offset, len, hold: _hold } => {
                let place = DataPlace { host, guest: at + offset };
                qcow2.write_data(place, &from.slice(offset, len)).await
            }
            Part::Allocate { allocation, offset, len } => {
                let data = from.slice(offset, len);
                Box::pin(self.fill_and_link(qcow2, *allocation, at + offset, data)).await
            }
        }
    }

    /// Fills newly claimed clusters with `data` at `at` and, around it, what the disk held there, then links them.
    async fn fill_and_link(
        &self,
        qcow2: &Qcow2<D>,
        mut allocation: Allocation<'_, D>,
        at: u64,
        data: Payload,
    ) -> Result<()> {
        let Fill { bytes, has_old } = allocation.plan_fill(at, data.len())?;
        let (start, mut end) = (bytes.start.get(), bytes.end.get());
        if qcow2.data.is_some() {
            // An external data file does not become longer than the disk.
            end = end.min(self.virtual_size().max(at + data.len()));
        }
        let filled = Span::touched(qcow2.geometry, bytes.start, end - start);
        let around = Around {
            head: start..at,
            tail: at + data.len()..end,
            has_old: has_old || self.layer_count() > 1,
            fresh: allocation.fresh() || Bug::ReusedTakenForFresh.is_seeded(),
            encrypted: qcow2.is_encrypted(),
        };
        let (first, all) = self.surround(around, data).await?;
        let place = DataPlace { host: allocation.place_of(first), guest: first };
        if Bug::LinkedBeforeWritten.is_seeded() {
            allocation.link(filled)?;
            return qcow2.write_data(place, &all).await;
        }
        qcow2.write_data(place, &all).await?;
        let linked = async {
            allocation.link(filled)?;
            qcow2.make_up_for_redo().await
        };
        qcow2.guarded(linked).await
    }
}

/// A part of a write that goes to consecutive places of the file.
enum Part<'a, D: Disk> {
    InPlace {
        host: HostOffset,
        offset: u64,
        len: u64,
        hold: Option<WrittenHold<'a, D>>,
    },
    /// On the heap: it is large, and most writes have none.
    Allocate {
        allocation: Box<Allocation<'a, D>>,
        offset: u64,
        len: u64,
    },
}

impl<D: Disk> Part<'_, D> {
    fn len(&self) -> u64 {
        match self {
            Self::InPlace { len, .. } | Self::Allocate { len, .. } => *len,
        }
    }
}

/// Guest clusters held for a change, released when dropped.
pub(super) struct Hold<'a, D: Disk> {
    pub image: &'a Qcow2<D>,
    pub held: Held,
}

impl<D: Disk> Drop for Hold<'_, D> {
    fn drop(&mut self) {
        lock(&self.image.meta).release_hold(&self.held);
        if !Bug::LostWakeup.is_seeded() {
            self.image.changed.wake_all();
        }
    }
}

/// Guest clusters and the host clusters that they are going to map to.
struct Allocation<'a, D: Disk> {
    hold: Hold<'a, D>,
    host: HostCluster,
    /// `None` where the space had been kept in reserve.
    claimed: Option<Claimed<'a, D>>,
}

impl<D: Disk> Allocation<'_, D> {
    /// Whether the host clusters read as zeros before anything is written to them.
    fn fresh(&self) -> bool {
        self.claimed.as_ref().is_some_and(|claimed| claimed.run().fresh)
    }

    /// What the host clusters have to be filled with for a write of `len` bytes at `at`.
    fn plan_fill(&self, at: u64, len: u64) -> Result<Fill> {
        let image = self.hold.image;
        let mut meta = lock(&image.meta);
        let fill = meta.plan_fill(image.geometry, &self.hold.held, GuestOffset::new(at), len);
        fill.map_err(|e| image.named(e))
    }

    /// Where byte `at` of the disk goes.
    fn place_of(&self, at: u64) -> HostOffset {
        let geometry = self.hold.image.geometry;
        let start = geometry.guest_start(self.hold.held.first);
        geometry.host_start(self.host).plus(GuestOffset::new(at).distance_from(start))
    }

    /// Maps the guest clusters to the host clusters, which hold the bytes of the subclusters in `filled` now.
    fn link(&mut self, filled: Span) -> Result<()> {
        let image = self.hold.image;
        let (geometry, held) = (image.geometry, &self.hold.held);
        let linked = lock(&image.meta).link_held(geometry, held, self.host, filled);
        linked.map_err(|e| image.named(e))?;
        if let Some(claimed) = self.claimed.take() {
            claimed.keep();
        }
        Ok(())
    }
}

impl<D: Disk> Qcow2<D> {
    /// Decides where the next bytes of a write go, and claims what that takes.
    async fn next_part(&self, at: u64, offset: u64, len: u64) -> Result<Part<'_, D>> {
        self.guarded(self.find_part(at, offset, len)).await
    }

    async fn find_part(&self, at: u64, offset: u64, len: u64) -> Result<Part<'_, D>> {
        loop {
            let step = self.ask(|meta| match meta.check_writable() {
                Ok(()) => meta.plan_write(self.geometry, GuestOffset::new(at), len),
                Err(e) => Ok(Err(e)),
            });
            match step.await? {
                WriteStep::InPlace { host, len, written } => {
                    let hold = written.map(|written| WrittenHold { image: self, written });
                    return Ok(Part::InPlace { host, offset, len, hold });
                }
                WriteStep::Table(l1) => Box::pin(self.make_table(l1)).await?,
                WriteStep::Busy(span) => Box::pin(self.wait_until_free(span)).await,
                WriteStep::Allocate(held) => {
                    let hold = Hold { image: self, held };
                    if self.has_raw_data() && !Bug::RawDataBeforeMapping.is_seeded() {
                        Box::pin(self.map_zeros(hold, self.size.load(Ordering::Acquire))).await?;
                        continue;
                    }
                    return Box::pin(self.allocate(hold, at, offset, len)).await;
                }
            }
        }
    }

    async fn allocate<'a>(
        &'a self,
        mut hold: Hold<'a, D>,
        at: u64,
        offset: u64,
        len: u64,
    ) -> Result<Part<'a, D>> {
        let (host, claimed) = match hold.held.reserved {
            Some(host) => (host, None),
            None => {
                let claimed = self.claim(hold.held.count).await?;
                let run = claimed.run();
                lock(&self.meta).shrink_hold(self.geometry, &mut hold.held, run.count);
                (run.first, Some(claimed))
            }
        };
        self.changed.wake_all();
        let end = hold.held.span.end_offset(self.geometry);
        let len = len.min(end.distance_from(GuestOffset::new(at)));
        let allocation = Box::new(Allocation { hold, host, claimed });
        Ok(Part::Allocate { allocation, offset, len })
    }

    /// Waits until nobody is changing the mapping of any part of `span`.
    pub(super) async fn wait_until_free(&self, span: Span) {
        self.wait(|meta| meta.busy.is_free(span).then_some(())).await;
    }

    /// Writes `from` as the data at `place`.
    async fn write_data(&self, place: DataPlace, from: &Payload) -> Result<()> {
        self.judge_write(place.host, from.len()).await?;
        self.write_judged(place, from).await
    }

    /// Fails where `len` bytes at `at` may not be written as data.
    pub(super) async fn judge_write(&self, at: HostOffset, len: u64) -> Result<()> {
        let checked = {
            let meta = lock(&self.meta);
            let writable = meta.check_writable();
            writable.and_then(|()| meta.check_data(self.geometry, at, len))
        };
        match checked {
            Ok(()) => Ok(()),
            Err(e) => self.guarded(async { Err(self.named(e)) }).await,
        }
    }
}
