//! Giving freed clusters back: punching their holes, then lowering their counts.

use super::layer::Qcow2;
use crate::addr::HostCluster;
use crate::disk::Disk;
use crate::error::Result;
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

    /// Frees `release`, which on failure is left as what remains to be freed.
    async fn free(&self, release: &mut Release) -> Result<()> {
        if let Err(e) = lock(&self.meta).check_clear(release.first, release.count) {
            // Damage that was there before: a table named what is not data. It stays, for `check` to deal with.
            tracing::warn!("{}: not freed: {e}", self.path.display());
            return Ok(());
        }
        if release.punch {
            self.punch(*release).await?;
        }
        self.ask(|meta| {
            while release.count > 0 {
                let result = meta.release(release.first)?;
                (release.first, release.count) = (release.first.plus(1), release.count - 1);
                if let Err(e) = result {
                    // Damage that was there before; the cluster stays as it is, for `check` to deal with.
                    tracing::warn!("{}: {e}", self.path.display());
                }
            }
            Ok(Ok(()))
        })
        .await
    }

    /// Punches the clusters that have no other reference; nobody can claim them before their counts are lowered.
    async fn punch(&self, release: Release) -> Result<()> {
        let mut at = 0;
        while at < release.count {
            let first = release.first.plus(at);
            let (count, last_reference) =
                self.ask(|meta| same_fate(meta, first, release.count - at)).await?;
            if last_reference {
                let (start, len) = (self.geometry.host_start(first), self.geometry.bytes(count));
                if let Err(e) = self.disk.punch_hole(start, len).await {
                    tracing::warn!("{}: punch a hole at {start}: {e}", self.path.display());
                }
            }
            at += count;
        }
        Ok(())
    }
}

/// How many clusters from `first` on are, or are not, in their last reference.
fn same_fate(
    meta: &mut crate::meta::Meta,
    first: HostCluster,
    count_max: u64,
) -> crate::meta::Asked<Result<(u64, bool)>> {
    let last = meta.refs.get(first)? == Some(1);
    let mut count = 1;
    while count < count_max && (meta.refs.get(first.plus(count))? == Some(1)) == last {
        count += 1;
    }
    Ok(Ok((count, last)))
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
