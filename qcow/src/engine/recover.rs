//! Giving back what a crash has leaked, while the image is in use.
//!
//! A leaked cluster is counted higher than tables name it. Nothing that a request does makes it named again, so a leak
//! stays one however long the scan for it takes; `meta::recover` says how it is told from a cluster that is changing.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use super::Image;
use super::check::live::LiveReferences;
use super::check::{Fault, Finding};
use super::layer::{Layer, Qcow2};
use super::options::Discard;
use crate::addr::{ClusterCount, Geometry, HostCluster, HostOffset};
use crate::disk::Disk;
use crate::error::Result;
use crate::exec::yield_now;
use crate::meta::Meta;
use crate::meta::drain::Grace;
use crate::meta::recover::{Leak, Verdict};
use crate::sync::lock;

/// Scans after which clusters that are in doubt each time are left alone.
const ROUNDS_MAX: u32 = 5;
/// Flushes to wait for requests that began before the scan.
const GRACE_FLUSHES_MAX: u32 = 1000;
/// Clusters whose counts are looked at or lowered in one go, during which no request can ask the metadata anything.
const BATCH: ClusterCount = 1024;

/// What [`Image::recover_leaks`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Clusters whose counts were lowered to what the tables name.
    pub clusters: ClusterCount,
    /// How it ended.
    pub end: RecoveryEnd,
}

/// How a recovery of leaks ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryEnd {
    /// The image holds no leaks of a crash: it was closed cleanly the last time, or they have been given back.
    Complete,
    /// It was told to stop.
    Stopped,
    /// So many clusters may still be leaked: they were changing all the time, or only `check` can give them back.
    Doubtful(ClusterCount),
    /// The tables contradict each other. No counts were lowered after that was found.
    Corrupt,
}

impl<D: Disk> Image<D> {
    /// Whether it is writable and was opened as a crash had left it, and [`Self::recover_leaks`] has yet to run to its
    /// end. Images that have no mark say nothing.
    pub fn needs_recovery(&self) -> bool {
        match self.top() {
            Layer::Qcow2(qcow2) => qcow2.may_leak.load(Ordering::Acquire),
            Layer::Sealed(sealed) => self.is_writable() && sealed.has_strays(),
            Layer::Raw(_) | Layer::Luks(_) => false,
        }
    }

    /// Finds the clusters that a crash has leaked, and gives them back. Requests go on meanwhile. The lowered counts are
    /// durable with the next flush; after that [`Self::close`] may say that the image was closed cleanly. Once `stop` is
    /// set it ends soon, and the next open finds the rest.
    ///
    /// # Errors
    /// The host failed, or this is running already.
    pub async fn recover_leaks(&self, stop: &AtomicBool) -> Result<Recovery> {
        let nothing = Recovery { clusters: 0, end: RecoveryEnd::Complete };
        if !self.needs_recovery() {
            return Ok(nothing);
        }
        let qcow2 = match self.top() {
            Layer::Qcow2(qcow2) => qcow2,
            Layer::Sealed(sealed) => return sealed.sweep(stop).await,
            Layer::Raw(_) | Layer::Luks(_) => return Ok(nothing),
        };
        let punch = self.inner.options.discard == Discard::Unmap;
        let mut search = Search { image: qcow2, stop, punch, lowered: 0, doubtful: None };
        let end = search.run().await.map_err(|e| qcow2.named(e))?;
        if end == RecoveryEnd::Complete {
            qcow2.may_leak.store(false, Ordering::Release);
        }
        Ok(Recovery { clusters: search.lowered, end })
    }
}

struct Search<'a, D: Disk> {
    image: &'a Qcow2<D>,
    stop: &'a AtomicBool,
    /// Whether the host gets the space of freed clusters back.
    punch: bool,
    lowered: ClusterCount,
    /// What the last round could not decide; `None` before the first, which judges all.
    doubtful: Option<Vec<HostCluster>>,
}

impl<D: Disk> Search<'_, D> {
    async fn run(&mut self) -> Result<RecoveryEnd> {
        for _ in 0..ROUNDS_MAX {
            if let Some(end) = self.round().await? {
                return Ok(end);
            }
            // Clusters that were on their way to being free when they were judged may arrive now.
            self.image.write_back().await?;
        }
        let doubtful = self.doubtful.as_ref().map_or(0, |clusters| clusters.len() as u64);
        let path = self.image.path.display();
        tracing::warn!("{path}: too much is changing to find all that the last crash has leaked");
        Ok(RecoveryEnd::Doubtful(doubtful))
    }

    /// Scans once, and gives back what is surely leaked; `None` where something remains to be looked at again.
    async fn round(&mut self) -> Result<Option<RecoveryEnd>> {
        lock(&self.image.meta).begin_changes()?;
        let _noting = Noting(self.image);
        let mut grace = Grace::default();
        // Also the barrier without which a mapping that a killed process has unlinked could come back after a power cut,
        // to clusters that are somebody else's by then.
        self.image.flush_metadata().await?;
        self.image.wait(Meta::note_pending).await;
        let mut contradiction = None;
        let scanned = unless_stopped(self.stop, self.image.scan(&mut contradiction)).await;
        let Some(references) = scanned else { return Ok(Some(RecoveryEnd::Stopped)) };
        let references = references?;
        if let Some(what) = contradiction {
            return Ok(Some(self.refuse(&what)));
        }
        if !self.image.has_passed(&mut grace).await? || lock(&self.image.meta).is_scan_spoiled() {
            return Ok(None);
        }
        let Some(verdict) = self.judge(&references).await? else {
            return Ok(Some(RecoveryEnd::Stopped));
        };
        if let Some((cluster, refcount, reference)) = verdict.undercounted {
            let what = Finding::Undercounted { cluster, refcount, reference, repaired: false };
            return Ok(Some(self.refuse(&what.to_string())));
        }
        self.settle(&references, verdict).await
    }

    fn refuse(&self, what: &str) -> RecoveryEnd {
        tracing::warn!(
            "{}: not clean ({what}): leaks are not given back; stop using the image and run 'qcow check'",
            self.image.path.display()
        );
        RecoveryEnd::Corrupt
    }

    /// Holds the references against the counts; `None` where it was told to stop.
    async fn judge(&self, references: &LiveReferences<'_, D>) -> Result<Option<Verdict>> {
        let mut all = Verdict::default();
        let batches: Box<dyn Iterator<Item = Range<u64>>> = match &self.doubtful {
            Some(clusters) => Box::new(clusters.iter().map(|c| c.get()..c.get() + 1)),
            None => Box::new(self.image.counted_batches(references.clusters())),
        };
        for batch in batches {
            if self.is_stopped() {
                return Ok(None);
            }
            let count = |cluster| references.count(cluster);
            all.add(self.image.ask(|meta| meta.judge(batch.clone(), count).map(Ok)).await?);
            yield_now().await;
        }
        Ok(Some(all))
    }

    /// Gives back what is leaked by `verdict`; `None` where something remains in doubt.
    async fn settle(
        &mut self,
        references: &LiveReferences<'_, D>,
        verdict: Verdict,
    ) -> Result<Option<RecoveryEnd>> {
        let found: ClusterCount = verdict.leaks.iter().map(|leak| leak.count).sum();
        let leaks = unless_stopped(self.stop, without_active(references, verdict.leaks)).await;
        let Some(leaks) = leaks else { return Ok(Some(RecoveryEnd::Stopped)) };
        let leaks = leaks?;
        let left = found - leaks.iter().map(|leak| leak.count).sum::<ClusterCount>();
        if !leaks.is_empty() {
            self.image.prepare_header().await?;
        }
        let mut doubtful = verdict.doubtful;
        for leak in leaks.iter().flat_map(|leak| pieces(leak, self.image.geometry)) {
            if self.is_stopped() {
                return Ok(Some(RecoveryEnd::Stopped));
            }
            let lowered = self.image.give_back(&leak, self.punch).await?;
            self.lowered += lowered;
            if lowered < leak.count {
                doubtful.extend((0..leak.count).map(|i| leak.first.plus(i)));
            }
        }
        if left > 0 {
            tracing::warn!(
                "{}: {left} clusters are counted too high, and only 'qcow check -r leaks' can lower their counts",
                self.image.path.display()
            );
            return Ok(Some(RecoveryEnd::Doubtful(left)));
        }
        let settled = doubtful.is_empty() && !verdict.truncated;
        self.doubtful = (!verdict.truncated).then_some(doubtful);
        Ok(settled.then_some(RecoveryEnd::Complete))
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl<D: Disk> Qcow2<D> {
    /// Learns from the disk who points where. The first thing that is wrong, and not just changing, goes to
    /// `contradiction`.
    async fn scan(&self, contradiction: &mut Option<String>) -> Result<LiveReferences<'_, D>> {
        let header = lock(&self.header).clone();
        let mut report = |finding: &Finding| {
            if contradiction.is_none() && !self.is_change(finding) {
                *contradiction = Some(finding.to_string());
            }
        };
        LiveReferences::collect(&self.disk, header, &mut report).await
    }

    /// Whether a finding only shows that tables were read one after the other while they changed.
    fn is_change(&self, finding: &Finding) -> bool {
        let (offset, len) = match finding {
            Finding::Fault(Fault::PastEnd { offset, len }) => (*offset, *len),
            Finding::Fault(Fault::CountOverflow { offset }) => (*offset, 1),
            _ => return false,
        };
        let (first, count) = self.geometry.host_span(HostOffset::new(offset), len);
        lock(&self.meta).have_changed(first, count)
    }

    /// Waits until every request that was in flight when `grace` began has ended; false where one takes too long.
    async fn has_passed(&self, grace: &mut Grace) -> Result<bool> {
        for _ in 0..GRACE_FLUSHES_MAX {
            if self.drain.has_passed(grace) {
                return Ok(true);
            }
            self.write_back().await?;
        }
        Ok(false)
    }

    /// All clusters below `end`, and all behind it that a refcount block counts: what was claimed and never written lies
    /// past the end of the file. In batches of clusters whose counts share a slice.
    fn counted_batches(&self, end: ClusterCount) -> impl Iterator<Item = Range<u64>> + '_ {
        let geometry = self.geometry;
        let per_block = geometry.refcounts_per_block();
        let table_len = lock(&self.meta).refs.table().words().len() as u64;
        let blocks = 0..table_len.max(end.div_ceil(per_block));
        let is_counted =
            move |index: &u64| index * per_block < end || lock(&self.meta).refs.has_block(*index);
        blocks.filter(is_counted).flat_map(move |index| {
            let first = geometry.refcount_block_first(index).get();
            split(first..first + per_block, geometry)
        })
    }

    /// Lowers the counts of leaked clusters in one slice; how many it lowered.
    async fn give_back(&self, leak: &Leak, punch: bool) -> Result<ClusterCount> {
        if leak.reference == 0 {
            lock(&self.meta).regions().check_clear(leak.first, leak.count)?;
            if punch {
                // Nobody can claim them before their counts are lowered, and nobody knows them.
                self.punch(leak.first, leak.count).await;
            }
        }
        let lowered = self.ask(|meta| meta.lower(leak)).await?;
        if lock(&self.meta).wants_flush() {
            self.write_back().await?;
        }
        Ok(lowered)
    }
}

/// Leaks without the clusters that the active tables name once and that would be left with a count of one: they would
/// need their COPIED flags set, too, which a crash of this engine never leaves to do.
async fn without_active<D: Disk>(
    references: &LiveReferences<'_, D>,
    leaks: Vec<Leak>,
) -> Result<Vec<Leak>> {
    let singles = leaks.iter().filter(|leak| leak.reference == 1);
    let singles: HashSet<HostCluster> = singles.flat_map(Leak::clusters).collect();
    if singles.is_empty() {
        return Ok(leaks);
    }
    let active = references.active_among(&singles).await?;
    let mut left = Verdict::default();
    for leak in leaks {
        for cluster in leak.clusters().filter(|cluster| !active.contains(cluster)) {
            left.add_leak(cluster, leak.refcount, leak.reference);
        }
    }
    Ok(left.leaks)
}

/// A leak, cut into pieces that are given back in one go.
fn pieces(leak: &Leak, geometry: Geometry) -> impl Iterator<Item = Leak> + use<> {
    let leak = *leak;
    let clusters = leak.first.get()..leak.first.get() + leak.count;
    split(clusters, geometry).map(move |piece| Leak {
        first: HostCluster::new(piece.start),
        count: piece.end - piece.start,
        ..leak
    })
}

/// Cuts a range of clusters at multiples of [`BATCH`] and at the ends of slices of counts.
fn split(clusters: Range<u64>, geometry: Geometry) -> impl Iterator<Item = Range<u64>> {
    let step = BATCH.min(geometry.refcounts_per_slice());
    let mut next = clusters.start;
    std::iter::from_fn(move || {
        let start = next;
        next = clusters.end.min((start / step + 1) * step);
        (start < clusters.end).then_some(start..next)
    })
}

/// Runs `future`, which only reads, to its end or until `stop` is set; then `None`. It is looked at whenever something
/// that the future waits for has happened.
async fn unless_stopped<F: Future>(stop: &AtomicBool, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match stop.load(Ordering::Relaxed) {
        true => Poll::Ready(None),
        false => future.as_mut().poll(context).map(Some),
    })
    .await
}

/// Changes are noted until it is dropped.
struct Noting<'a, D: Disk>(&'a Qcow2<D>);

impl<D: Disk> Drop for Noting<'_, D> {
    fn drop(&mut self) {
        lock(&self.0.meta).end_changes();
    }
}
