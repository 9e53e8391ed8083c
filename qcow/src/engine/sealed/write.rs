//! Writing: whole clusters, sealed, to blocks that nobody uses; then the tree says where they are.

use std::ops::Range;

use super::buffers::{PIECE_LEN, buffers_for, joined};
use super::claim::Claimed;
use super::{Freed, Sealed, cluster};
use crate::crypt::seal::Seal;
use crate::disk::{Buffer, Disk, Payload};
use crate::engine::Image;
use crate::engine::compress::Packed;
use crate::error::{Error, Result};
use crate::exec::try_join_all;
use crate::format::sealed::entry::{Entry, Stored};
use crate::format::sealed::{BLOCK_LEN, blocks_for, start_of};
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::sealed::BlockRun;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Blocks that are on their way to being free after which a write looks for some that have arrived.
const RECLAIM_BLOCKS: u64 = 64;

impl<D: Disk> Image<D> {
    /// Writes `from` at `at`.
    pub(in crate::engine) async fn write_sealed(
        &self,
        sealed: &Sealed<D>,
        at: u64,
        from: &Payload,
    ) -> Result<()> {
        sealed.health()?;
        if from.is_empty() {
            return Ok(());
        }
        let first_end = (at / PIECE_LEN + 1) * PIECE_LEN;
        let written = if at + from.len() <= first_end {
            self.write_piece(sealed, at, from.clone()).await
        } else {
            let writes = pieces(at, from).map(|(at, from)| self.write_piece(sealed, at, from));
            Box::pin(try_join_all(IN_FLIGHT_MAX, writes)).await
        };
        sealed.keep_house().await?;
        written
    }

    /// Writes a part of a request.
    async fn write_piece(&self, sealed: &Sealed<D>, at: u64, from: Payload) -> Result<()> {
        let _inside = sealed.drain.enter();
        let clusters = sealed.clusters(at, from.len());
        let _held = sealed.hold(clusters.clone()).await;
        let mut buffers = buffers_for((clusters.end - clusters.start) * sealed.cluster_len());
        self.fill_around(sealed, &joined(&buffers), &clusters, at, from.len()).await?;
        let seals = sealed.copy_and_seal(&mut buffers, &clusters, at, &from);
        sealed.store(clusters.start, seals, &joined(&buffers)).await
    }

    /// Fills `into`, which is for `clusters`, with what the disk has there, but for `len` bytes at `at`.
    async fn fill_around(
        &self,
        sealed: &Sealed<D>,
        into: &Payload,
        clusters: &Range<u64>,
        at: u64,
        len: u64,
    ) -> Result<()> {
        let (start, end) = sealed.bytes_of(clusters);
        if clusters.end - clusters.start == 1 && len < into.len() {
            // One look for what is on both sides.
            return Box::pin(self.fill_old(sealed, into, start)).await;
        }
        let (head, tail) = (at - start, end - at - len);
        if head > 0 {
            Box::pin(self.fill_old(sealed, &into.slice(0, head), start)).await?;
        }
        if tail > 0 {
            let part = into.slice(at + len - start, tail);
            Box::pin(self.fill_old(sealed, &part, end - tail)).await?;
        }
        Ok(())
    }

    /// Fills `into` with what the disk has at `at`; behind its end there are zeros.
    async fn fill_old(&self, sealed: &Sealed<D>, into: &Payload, at: u64) -> Result<()> {
        let there = sealed.size().saturating_sub(at).min(into.len());
        into.zero(there, into.len() - there);
        match there {
            0 => Ok(()),
            _ => self.read_from(0, at, &into.slice(0, there)).await,
        }
    }
}

/// Cuts `from` at multiples of [`PIECE_LEN`] of the disk.
fn pieces(at: u64, from: &Payload) -> impl Iterator<Item = (u64, Payload)> + '_ {
    let mut done = 0;
    std::iter::from_fn(move || {
        let here = at + done;
        let len = (from.len() - done).min(PIECE_LEN - here % PIECE_LEN);
        let piece = (len > 0).then(|| (here, from.slice(done, len)));
        done += len;
        piece
    })
}

impl<D: Disk> Sealed<D> {
    /// Copies `from`, which goes to `at`, into `buffers`, which are for `clusters`, and seals these one by one: what has just been
    /// copied is near.
    fn copy_and_seal(
        &self,
        buffers: &mut [Buffer],
        clusters: &Range<u64>,
        at: u64,
        from: &Payload,
    ) -> Vec<(Seal, u32)> {
        let len = self.cluster_len() as usize;
        let bytes = buffers.iter_mut().flat_map(|buffer| buffer.make_mut().chunks_mut(len));
        let sealed = clusters.clone().zip(bytes).map(|(index, bytes)| {
            let (skip, offset, count) = self.overlap(index, at, from.len());
            from.copy_to(offset, &mut bytes[skip as usize..(skip + count) as usize]);
            (self.seal(0, index, bytes), bytes.len() as u32)
        });
        sealed.collect()
    }

    /// Stores the clusters from `first` on, which the caller holds and which are `sealed` with `seals`.
    async fn store(&self, first: u64, seals: Vec<(Seal, u32)>, sealed: &Payload) -> Result<()> {
        let claimed = self.claim(self.cluster_blocks(), seals.len() as u64)?;
        if Bug::SealedLinkedBeforeWritten.is_seeded() {
            let runs = claimed.runs().to_vec();
            self.link(first, seals, false, claimed).await?;
            return self.write_runs(&runs, sealed).await;
        }
        self.write_runs(claimed.runs(), sealed).await?;
        self.link(first, seals, false, claimed).await
    }

    /// Stores cluster `index`, which the caller holds and which is `packed` in compressed form.
    async fn store_packed(&self, index: u64, packed: &[u8]) -> Result<()> {
        let blocks = blocks_for(packed.len() as u64);
        let claimed = self.claim(blocks, 1)?;
        let mut buffer = Buffer::zeroed((blocks * BLOCK_LEN) as usize);
        let bytes = &mut buffer.make_mut()[..packed.len()];
        bytes.copy_from_slice(packed);
        let seal = self.seal(0, index, bytes);
        self.write_runs(claimed.runs(), &buffer.payload()).await?;
        self.link(index, vec![(seal, packed.len() as u32)], true, claimed).await
    }

    /// Writes `sealed` to `runs`, one after the other.
    async fn write_runs(&self, runs: &[BlockRun], sealed: &Payload) -> Result<()> {
        let mut done = 0;
        for run in runs {
            let (at, len) = (start_of(run.first), run.count * BLOCK_LEN);
            let written = self.disk.write(at, &sealed.slice(done, len)).await;
            written.map_err(|e| self.named(Error::io(format!("write at {at}"), &e)))?;
            done += len;
        }
        Ok(())
    }

    /// Says in the tree where the clusters from `first` on are now, which has been written.
    async fn link(
        &self,
        first: u64,
        seals: Vec<(Seal, u32)>,
        compressed: bool,
        mut claimed: Claimed<'_, D>,
    ) -> Result<()> {
        let mut left = (first..).zip(seals).peekable();
        self.ask(|state| {
            while let Some(&(index, (seal, len))) = left.peek() {
                let blocks = blocks_for(len.into());
                let born = state.tree.generation();
                let place = claimed.runs()[0].first;
                let stored = Stored { place, len, compressed, born, seal };
                // Where a node is missing, this is asked again, from this cluster on.
                let old = state.tree.set(cluster(index), Entry::Stored(stored))?;
                state.linked_end = state.linked_end.max(place.plus(blocks));
                claimed.keep(blocks);
                if let Some(old) = old.stored() {
                    state.unlink(old, Freed::Kept);
                }
                left.next();
            }
            Ok(())
        })
        .await
    }

    /// Writes a root where much waits for one, and frees what may be freed. To be called outside of the drain.
    pub(super) async fn keep_house(&self) -> Result<()> {
        let (wants_flush, pending) = {
            let state = lock(&self.state);
            (state.wants_flush(), state.pending.blocks())
        };
        if wants_flush {
            Box::pin(self.flush()).await?;
        } else if pending >= RECLAIM_BLOCKS {
            self.reclaim().await?;
        }
        Ok(())
    }
}

impl<D: Disk> Image<D> {
    /// Stores clusters that have been compressed.
    pub(in crate::engine) async fn write_packed_sealed(
        &self,
        sealed: &Sealed<D>,
        packed: &Packed,
    ) -> Result<()> {
        let len = sealed.cluster_len();
        let first = packed.at / len;
        for (offset, range) in (0..).zip(&packed.clusters) {
            let index = first + offset;
            match range {
                Some(range) => {
                    let _inside = sealed.drain.enter();
                    let _held = sealed.hold(index..index + 1).await;
                    sealed.store_packed(index, &packed.bytes[range.clone()]).await?;
                }
                None => {
                    let at = offset * len;
                    let plain = packed.plain.slice(at, len.min(packed.plain.len() - at));
                    self.write_piece(sealed, packed.at + at, plain).await?;
                }
            }
        }
        sealed.keep_house().await
    }
}
