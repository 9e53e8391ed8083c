//! Claiming host clusters, in a file that is made longer for them, and giving them back if what they were claimed for
//! fails.

use super::layer::Qcow2;
use super::search::SLICES_MAX;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::meta::{Asked, Claim, Run};
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Clusters whose count has been raised but that nothing points to yet. Dropped without [`Claimed::keep`], they become
/// free again.
#[derive(Debug)]
pub(super) struct Claimed<'a, D: Disk> {
    image: &'a Qcow2<D>,
    run: Option<Run>,
}

impl<D: Disk> Claimed<'_, D> {
    /// The clusters.
    pub fn run(&self) -> Run {
        self.run.expect("a claim that has not been kept yet")
    }

    /// This claim and `next` as one, where `next` follows right behind; else both as they are.
    fn join(mut self, mut next: Self) -> std::result::Result<Self, (Self, Self)> {
        let (run, more) = (self.run(), next.run());
        if run.first.plus(run.count) != more.first {
            return Err((self, next));
        }
        next.run = None;
        let (count, fresh) = (run.count + more.count, run.fresh && more.fresh);
        self.run = Some(Run { count, fresh, ..run });
        Ok(self)
    }

    /// Something points to the clusters now.
    pub fn keep(mut self) {
        self.run = None;
    }
}

impl<D: Disk> Drop for Claimed<'_, D> {
    fn drop(&mut self) {
        if let Some(run) = self.run.take()
            && !Bug::FailedClaimLeaks.is_seeded()
        {
            // Nothing points to them, but I/O of the request that failed may still be under way: they go the same way
            // as clusters that were unlinked.
            lock(&self.image.meta).unlink(run.first, run.count, false);
        }
    }
}

impl<D: Disk> Qcow2<D> {
    /// Claims up to `count` clusters in a row, at least one.
    pub(super) async fn claim(&self, count: u64) -> Result<Claimed<'_, D>> {
        let mut slices = 0;
        loop {
            match self.try_claim(count) {
                Err(need) if slices < SLICES_MAX => {
                    slices += 1;
                    Box::pin(self.load(need)).await.map_err(|e| self.named(e))?;
                }
                Err(_) => {
                    slices = 0;
                    Box::pin(self.find_free()).await?;
                }
                Ok(claim) => match claim.map_err(|e| self.named(e))? {
                    Claim::Run(run) => {
                        let claimed = Claimed { image: self, run: Some(run) };
                        self.make_room(run).await?;
                        return Ok(claimed);
                    }
                    Claim::MissingBlock(index) => self.grow_refcounts(index).await?,
                },
            }
        }
    }

    fn try_claim(&self, count: u64) -> Asked<Result<Claim>> {
        let mut meta = lock(&self.meta);
        match meta.check_writable() {
            Ok(()) => meta.claim(count),
            Err(e) => Ok(Err(e)),
        }
    }

    /// Claims `count` clusters in a row.
    pub(super) async fn claim_row(&self, count: u64) -> Result<Claimed<'_, D>> {
        // A new refcount block lies at the start of the stretch that it counts, and so in the way of a longer row.
        if count >= self.geometry.refcounts_per_block() {
            let run = self.claim_beside_blocks(count).await?;
            return Ok(Claimed { image: self, run: Some(run) });
        }
        // What is too short stays claimed until a row is found, or it would be found again.
        let mut too_short = Vec::new();
        let mut row = self.claim(count).await?;
        while row.run().count < count {
            let next = self.claim(count - row.run().count).await?;
            row = row.join(next).unwrap_or_else(|(short, next)| {
                too_short.push(short);
                next
            });
        }
        Ok(row)
    }

    /// Makes the file long enough to hold `run`, which nobody uses yet.
    pub(super) async fn make_room(&self, run: Run) -> Result<()> {
        if lock(&self.meta).alloc.growth_for(&run).is_none() {
            return Ok(());
        }
        // One at a time: no later length may be shorter than an earlier one, and nobody writes behind the end.
        let _growing = self.growing.acquire().await;
        let Some(end) = lock(&self.meta).alloc.growth_for(&run) else { return Ok(()) };
        if Bug::ClusterAcrossTheEnd.is_seeded() {
            return Ok(());
        }
        let len = self.geometry.host_start(end).get();
        let grown = self.disk.set_len(len).await;
        grown.map_err(|e| self.named(Error::io(format!("make the file {len} bytes long"), &e)))?;
        lock(&self.meta).alloc.grown(end);
        Ok(())
    }

    /// Cuts off what the file was made longer by and nobody has used.
    pub(super) async fn cut_unused_end(&self) -> Result<()> {
        let _growing = self.growing.acquire().await;
        let end = {
            let mut meta = lock(&self.meta);
            let Some(end) = meta.alloc.unused_end() else { return Ok(()) };
            // From here on a claim behind it has to make the file longer again, after this has ended.
            meta.alloc.cut(end);
            end
        };
        let len = self.geometry.host_start(end).get();
        let cut = self.disk.set_len(len).await;
        cut.map_err(|e| self.named(Error::io(format!("cut the file to {len} bytes"), &e)))
    }
}
