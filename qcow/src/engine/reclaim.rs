//! Giving freed clusters back: punching their holes, then lowering their counts.

use super::layer::Qcow2;
use crate::addr::HostCluster;
use crate::disk::Disk;
use crate::error::{ErrorKind, Result};
use crate::meta::reclaim::{Drained, Release};
use crate::sync::lock;

impl<D: Disk> Qcow2<D> {
    /// Frees every cluster that is unlinked on disk and that nobody in flight can see. The lowered counts are written
    /// by the next flush.
    ///
    /// What cannot be freed now is kept and tried again later: the space is lost for the moment, nothing else.
    pub(super) async fn reclaim(&self) {
        let Some(Drained(releases)) = lock(&self.meta).reclaim.begin(&self.drain) else { return };
        let mut freeing = Freeing { image: self, left: releases };
        while let Some(release) = freeing.left.last_mut() {
            if let Err(e) = self.free(release).await {
                tracing::warn!("cannot give clusters back for now: {e}");
                return;
            }
            freeing.left.pop();
        }
    }

    /// Frees `release` piece by piece; after a failure it is what remains to be freed.
    async fn free(&self, release: &mut Release) -> Result<()> {
        while release.count > 0 {
            let first = release.first;
            let (count, last) =
                self.ask(|meta| meta.refs.same_fate(first, release.count).map(Ok)).await?;
            match self.free_alike(first, count, last && release.punch).await {
                // Damage that was there before. The clusters stay as they are, for `check` to deal with.
                Err(e) if e.kind() == ErrorKind::Corrupt => tracing::warn!("not freed: {e}"),
                other => other?,
            }
            release.first = first.plus(count);
            release.count -= count;
        }
        Ok(())
    }

    /// Frees clusters of one slice of counts. Nobody can claim them before their counts are lowered, so until then their
    /// hole may be punched.
    async fn free_alike(&self, first: HostCluster, count: u64, punch: bool) -> Result<()> {
        lock(&self.meta).regions.check_clear(first, count).map_err(|e| self.named(e))?;
        if punch {
            self.punch(first, count).await;
        }
        self.ask(|meta| meta.release(first, count)).await
    }

    /// Gives the space of clusters that nobody refers to back to the host, if it takes it.
    pub(super) async fn punch(&self, first: HostCluster, count: u64) {
        let (start, len) = (self.geometry.host_start(first), self.geometry.bytes(count));
        if let Err(e) = self.disk.punch_hole(start, len).await {
            tracing::warn!("{}: punch a hole at {start}: {e}", self.path.display());
        }
    }
}

/// Clusters being freed. What is left when it is dropped waits for the next time.
struct Freeing<'a, D: Disk> {
    image: &'a Qcow2<D>,
    left: Vec<Release>,
}

impl<D: Disk> Drop for Freeing<'_, D> {
    fn drop(&mut self) {
        lock(&self.image.meta).reclaim.end(std::mem::take(&mut self.left));
        self.image.changed.wake_all();
    }
}
