//! Blocks for what is about to be written; nobody leads to them yet.

use super::{Sealed, State};
use crate::addr::HostBlock;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::meta::sealed::BlockRun;
use crate::sync::lock;

/// Claimed blocks; those that nothing leads to when it is dropped are given back.
#[derive(Debug)]
pub(super) struct Claimed<'a, D: Disk> {
    image: &'a Sealed<D>,
    /// In the order in which they are used.
    runs: Vec<BlockRun>,
}

impl<D: Disk> Sealed<D> {
    /// Claims `count` times `unit` blocks, of which each `unit` lies in a row.
    ///
    /// # Errors
    /// The image takes no more writes, or the file would become larger than any.
    pub(super) fn claim(&self, unit: u64, count: u64) -> Result<Claimed<'_, D>> {
        let mut claimed = Claimed { image: self, runs: Vec::new() };
        let mut left = count;
        let mut state = lock(&self.state);
        while left > 0 {
            let run = state.check_writable().and_then(|()| {
                let full = || Error::new(ErrorKind::NoSpace, "the file cannot become any larger");
                state.space.take(unit, left).ok_or_else(full)
            });
            match run {
                Ok(run) => {
                    left -= run.count / unit;
                    claimed.runs.push(run);
                }
                Err(e) => {
                    // Giving back what has been claimed takes the lock.
                    drop(state);
                    drop(claimed);
                    return Err(self.named(e));
                }
            }
        }
        drop(state);
        Ok(claimed)
    }
}

impl<D: Disk> Claimed<'_, D> {
    /// The blocks that are claimed, in rows.
    pub fn runs(&self) -> &[BlockRun] {
        &self.runs
    }

    /// The first `count` blocks lead somewhere now: where they start.
    pub fn keep(&mut self, count: u64) -> HostBlock {
        let (head, tail) = self.runs[0].split_at(count);
        match tail.count {
            0 => drop(self.runs.remove(0)),
            _ => self.runs[0] = tail,
        }
        head.first
    }

    /// All of them lead somewhere now.
    pub fn keep_all(&mut self) {
        self.runs.clear();
    }

    /// Only the first `count` blocks are needed; the rest is given back.
    pub fn truncate(&mut self, count: u64) {
        let (mut kept, mut left) = (Vec::new(), count);
        let mut state = lock(&self.image.state);
        for run in self.runs.drain(..) {
            let (head, tail) = run.split_at(run.count.min(left));
            left -= head.count;
            kept.extend((head.count > 0).then_some(head));
            if tail.count > 0 {
                state.pending.give_back(tail);
            }
        }
        self.runs = kept;
    }

    /// Gives the rest back, by who has the state in hand.
    pub fn give_back(mut self, state: &mut State) {
        self.runs.drain(..).for_each(|run| state.pending.give_back(run));
    }
}

impl<D: Disk> Drop for Claimed<'_, D> {
    fn drop(&mut self) {
        if !self.runs.is_empty() {
            let mut state = lock(&self.image.state);
            self.runs.drain(..).for_each(|run| state.pending.give_back(run));
        }
    }
}
