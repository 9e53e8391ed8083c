//! Claiming host clusters, and giving them back if what they were claimed for fails.

use super::layer::Qcow2;
use crate::disk::Disk;
use crate::error::Result;
use crate::meta::{Claim, Run};
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

    /// Something points to the clusters now.
    pub fn keep(mut self) {
        self.run = None;
    }
}

impl<D: Disk> Drop for Claimed<'_, D> {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            // Nothing points to them, but I/O of the request that failed may still be under way: they go the same way
            // as clusters that were unlinked.
            lock(&self.image.meta).unlink(run.first, run.count, false);
        }
    }
}

impl<D: Disk> Qcow2<D> {
    /// Claims up to `count` clusters in a row, at least one.
    pub(super) async fn claim(&self, count: u64) -> Result<Claimed<'_, D>> {
        loop {
            let claim = self.ask(|meta| match meta.check_writable() {
                Ok(()) => meta.claim(count),
                Err(e) => Ok(Err(e)),
            });
            match claim.await? {
                Claim::Run(run) => return Ok(Claimed { image: self, run: Some(run) }),
                Claim::MissingBlock(index) => self.grow_refcounts(index).await?,
            }
        }
    }
}
