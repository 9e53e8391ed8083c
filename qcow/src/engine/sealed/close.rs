//! Leaving an authenticated image as clean as it can be: everything durable, and written down which blocks are in use.

use std::sync::atomic::AtomicBool;

use super::Sealed;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::sealed::root::Root;
use crate::format::sealed::{BLOCK_LEN, SPACE_LEVEL, blocks_for};
use crate::meta::sealed::BlockRun;
use crate::sync::lock;

/// Rounds of flushing and freeing after which a close gives up on blocks that cannot be freed.
const ROUNDS_MAX: u32 = 8;
/// Attempts to find room for a map that has itself in it.
const FITS_MAX: u32 = 8;

impl<D: Disk> Sealed<D> {
    /// Writes everything back, and, where it is known, which blocks are in use. No request may be in flight, and none may
    /// follow.
    pub async fn close(&self) -> Result<()> {
        self.write_all_back().await?;
        self.release_memory();
        Ok(())
    }

    async fn write_all_back(&self) -> Result<()> {
        self.come_to_rest().await?;
        let has_strays = {
            let state = lock(&self.state);
            state.has_strays && state.space.is_known()
        };
        if has_strays {
            if let Err(e) = self.sweep(&AtomicBool::new(false)).await {
                let path = self.path.display();
                tracing::warn!("{path}: what is in use for nothing could not be found: {e}");
            }
            self.come_to_rest().await?;
        }
        let is_settled = {
            let state = lock(&self.state);
            let is_written = !state.space_at.is_void();
            let is_at_rest = state.pending.is_empty() && !state.tree.is_changed();
            is_at_rest && state.space.is_known() && !state.has_strays && !is_written
        };
        match is_settled {
            true => self.write_space().await,
            false => Ok(()),
        }
    }

    /// Makes everything durable, and frees all that is on its way to being free.
    async fn come_to_rest(&self) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            self.flush().await?;
            let state = lock(&self.state);
            if state.pending.is_empty() && !state.tree.is_changed() {
                break;
            }
        }
        Ok(())
    }

    /// Writes down which blocks are in use, and a root that leads there.
    async fn write_space(&self) -> Result<()> {
        let _rooting = self.rooting.acquire().await;
        let Some((run, bytes)) = self.claim_for_map()? else {
            tracing::warn!("{}: no room for the map of blocks", self.path.display());
            return Ok(());
        };
        let (capture, details, newest_snapshot, has_older) = {
            let mut state = lock(&self.state);
            (state.tree.capture(), state.details_at, state.newest_snapshot, state.has_older)
        };
        let born = capture.generation;
        let space = self.write_blob(SPACE_LEVEL, &bytes, run.first, born).await?;
        let end = lock(&self.state).space.used().end();
        let root = Root {
            generation: born,
            size: capture.size,
            cluster_bits: self.header.cluster_bits,
            levels: capture.levels,
            end,
            newest_snapshot,
            has_older,
            top: capture.top,
            details,
            space,
        };
        self.commit_root(&root).await?;
        {
            let mut state = lock(&self.state);
            (state.space_at, state.linked_end) = (space, end);
        }
        self.cut_unused_end(end.get() * BLOCK_LEN).await;
        Ok(())
    }

    /// Claims blocks for the map of blocks, and says what it is with these among them.
    fn claim_for_map(&self) -> Result<Option<(BlockRun, Vec<u8>)>> {
        let mut state = lock(&self.state);
        state.check_writable()?;
        state.space.cut();
        let mut count = blocks_for(state.space.used().encode().len() as u64).max(1);
        for _ in 0..FITS_MAX {
            let Some(run) = state.space.take(count, 1) else { return Ok(None) };
            let bytes = state.space.used().encode();
            let needed = blocks_for(bytes.len() as u64);
            if needed == count {
                return Ok(Some((run, bytes)));
            }
            let was_used = state.space.free(run);
            assert!(was_used, "what has just been taken is in use");
            state.space.cut();
            count = needed;
        }
        Ok(None)
    }

    /// Makes the file as short as it can be.
    async fn cut_unused_end(&self, len: u64) {
        let cut = async {
            match self.disk.len()? > len {
                true => self.disk.set_len(len).await,
                false => Ok(()),
            }
        };
        if let Err(e) = cut.await {
            let e = Error::io("cut off the unused end", &e);
            tracing::warn!("{}: the file stays longer than it has to be: {e}", self.path.display());
        }
    }
}
