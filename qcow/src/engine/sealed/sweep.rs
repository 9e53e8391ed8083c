//! Finding out which blocks are in use, from all that a root and its snapshots lead to: after a crash, and after snapshots have
//! gone. Requests go on meanwhile.
//!
//! The walk goes by one durable root. What only later roots lead to was taken since, and is noted as it is taken; what that
//! root leads to stays where it is until the walk has ended, whoever has left it behind.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Sealed, Stored};
use crate::disk::Disk;
use crate::engine::recover::{Recovery, RecoveryEnd};
use crate::error::{Error, Result};
use crate::exec::{join_all, yield_now};
use crate::format::sealed::Generation;
use crate::format::sealed::details::SealedSnapshot;
use crate::format::sealed::entry::Entry;
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::drain::Grace;
use crate::meta::sealed::BlockRun;
use crate::meta::sealed::blocks::Blocks;
use crate::sync::lock;

/// Flushes to wait for requests that began before the sweep.
const GRACE_FLUSHES_MAX: u32 = 1000;

impl<D: Disk> Sealed<D> {
    /// Whether blocks may be in use that nothing leads to.
    pub fn has_strays(&self) -> bool {
        lock(&self.state).has_strays
    }

    /// Finds all blocks in use, and makes the others free. Once `stop` is set it ends soon.
    ///
    /// # Errors
    /// Something that a root leads to does not open, this is running already, or the host failed.
    pub async fn sweep(&self, stop: &AtomicBool) -> Result<Recovery> {
        let nothing = |end| Recovery { clusters: 0, end };
        let Some(_sweeping) = Sweeping::begin(self) else {
            return Err(self.named(Error::invalid("blocks are being looked for already")));
        };
        let mut grace = Grace::default();
        let mut flushes = 0;
        while !self.drain.has_passed(&mut grace) {
            if flushes == GRACE_FLUSHES_MAX {
                return Ok(nothing(RecoveryEnd::Doubtful(0)));
            }
            flushes += 1;
            self.flush().await?;
            yield_now().await;
        }
        // Those requests have said in the tree what they have written; the next root has it.
        self.flush().await?;
        let (mut marked, disk, snapshots, until) = {
            let _rooting = self.rooting.acquire().await;
            let state = lock(&self.state);
            let mut marked = Blocks::default();
            for blob in [state.details_at, state.space_at].iter().filter_map(Entry::stored) {
                marked.add(BlockRun::of(blob));
            }
            (marked, state.rooted, state.details.snapshots.clone(), state.space.end())
        };
        for SealedSnapshot { top, levels, .. } in &snapshots {
            if self.mark(*top, *levels, &mut marked, stop).await?.is_none() {
                return Ok(nothing(RecoveryEnd::Stopped));
            }
        }
        let Some(oldest) = self.mark(disk.0, disk.1, &mut marked, stop).await? else {
            return Ok(nothing(RecoveryEnd::Stopped));
        };
        // No snapshot is on its way meanwhile.
        let _rooting = self.rooting.acquire().await;
        let mut state = lock(&self.state);
        for run in state.pending.runs() {
            marked.add(run);
        }
        let clusters = state.space.learn(until, marked);
        state.has_strays = false;
        let newest = state.details.snapshots.iter().map(|snapshot| snapshot.generation).max();
        state.newest_snapshot = newest.unwrap_or(0);
        state.has_older = oldest <= state.newest_snapshot;
        state.tree.touch();
        Ok(Recovery { clusters, end: RecoveryEnd::Complete })
    }

    /// Marks all blocks that `top` of a tree of so many levels leads to; the oldest generation of what had not been marked
    /// before. `None` where it was told to stop.
    async fn mark(
        &self,
        top: Entry,
        levels: u8,
        marked: &mut Blocks,
        stop: &AtomicBool,
    ) -> Result<Option<Generation>> {
        let mut oldest = Generation::MAX;
        let mut left: Vec<(u8, u64, Stored)> =
            top.stored().map(|s| (levels, 0, *s)).into_iter().collect();
        while !left.is_empty() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let batch = left.split_off(left.len().saturating_sub(IN_FLIGHT_MAX));
            let reads = batch.iter().filter_map(|(level, index, stored)| {
                let is_new = marked.insert(BlockRun::of(stored));
                if is_new {
                    oldest = oldest.min(stored.born);
                }
                // What is marked already another tree leads to, too, with all below it.
                let is_node = *level > 0;
                let read =
                    async move { (*level, *index, self.read_node(*level, *index, stored).await) };
                (is_new && is_node).then_some(read)
            });
            for (level, index, node) in join_all(reads.collect::<Vec<_>>()).await {
                for (slot, entry) in (0..).zip(&node?.0) {
                    if let Entry::Stored(stored) = entry {
                        left.push((
                            level - 1,
                            index * crate::format::sealed::entry::NODE_ENTRIES as u64 + slot,
                            *stored,
                        ));
                    }
                }
            }
        }
        Ok(Some(oldest))
    }
}

/// A sweep under way: nothing becomes free, and what is taken is noted.
struct Sweeping<'a, D: Disk>(&'a Sealed<D>);

impl<'a, D: Disk> Sweeping<'a, D> {
    fn begin(image: &'a Sealed<D>) -> Option<Self> {
        let mut state = lock(&image.state);
        if std::mem::replace(&mut state.sweeping, true) {
            return None;
        }
        state.space.begin_noting();
        Some(Self(image))
    }
}

impl<D: Disk> Drop for Sweeping<'_, D> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.sweeping = false;
        state.space.end_noting();
    }
}
