//! Giving freed clusters back: carrying out the steps that `meta::reclaim` lays down.

use super::layer::Qcow2;
use crate::addr::HostCluster;
use crate::disk::Disk;
use crate::error::{ErrorKind, Result};
use crate::meta::Meta;
use crate::meta::reclaim::{Drained, Piece, Reclaim, Release};
use crate::seeded_bugs::Bug;
use crate::sync::lock;

impl<D: Disk> Qcow2<D> {
    /// Frees every cluster that is unlinked on disk and that nobody in flight can see. The lowered counts are written
    /// by the next flush.
    ///
    /// What cannot be freed now is kept and tried again later: the space is lost for the moment, nothing else.
    ///
    /// # Errors
    /// A cluster must not be freed: the image is damaged.
    pub(super) async fn reclaim(&self) -> Result<()> {
        let Some(drained) = lock(&self.meta).reclaim.begin(&self.drain) else { return Ok(()) };
        let mut freeing = Freeing { image: self, left: drained, of: |meta| &mut meta.reclaim };
        while let Some(next) = freeing.left.next() {
            match self.free_some(&mut freeing.left, next).await {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Corrupt => return Err(e),
                Err(e) => {
                    tracing::warn!("cannot give clusters back for now: {e}");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Frees the first clusters of `next`, as many as share a fate.
    async fn free_some(&self, drained: &mut Drained, next: Release) -> Result<()> {
        let (count, last) = self.ask(|meta| meta.plan_release(next.first, next.count)).await?;
        let piece = drained.piece(count);
        let punched = if last && next.punch {
            if Bug::PunchedAfterFreed.is_seeded() {
                return self.free_then_punch(piece).await;
            }
            // Nobody can claim them before their counts are lowered.
            let (first, count) = piece.span();
            self.punch(first, count).await;
            piece.punched()
        } else {
            piece.kept()
        };
        let released = lock(&self.meta).release(punched);
        match released {
            Ok(released) => released.map_err(|e| self.named(e)),
            // Their counts were evicted meanwhile: the piece is as it was, and its turn comes again.
            Err(need) => self.load(need).await.map_err(|e| self.named(e)),
        }
    }

    /// The seeded bug: what the type `Punched` is there to prevent.
    async fn free_then_punch(&self, piece: Piece<'_>) -> Result<()> {
        let (first, count) = piece.span();
        let released = lock(&self.meta).release(piece.kept());
        if let Err(need) = released {
            return self.load(need).await;
        }
        self.punch(first, count).await;
        Ok(())
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
pub(super) struct Freeing<'a, D: Disk> {
    pub image: &'a Qcow2<D>,
    pub left: Drained,
    /// Whose they are.
    pub of: fn(&mut Meta) -> &mut Reclaim,
}

impl<D: Disk> Drop for Freeing<'_, D> {
    fn drop(&mut self) {
        (self.of)(&mut lock(&self.image.meta)).end(std::mem::take(&mut self.left));
        self.image.changed.wake_all();
    }
}
