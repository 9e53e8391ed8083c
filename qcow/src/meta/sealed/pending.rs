//! Blocks that nothing of the disk leads to any more, on their way to being free.
//!
//! What an older root leads to may be used again once a root that does not is durable, and once every request has ended that
//! may still be reading there ([`Drain`]). What no root has led to skips the first of both.

use super::BlockRun;
use crate::format::sealed::Generation;
use crate::format::sealed::entry::Stored;
use crate::meta::drain::{Drain, Grace};
use crate::seeded_bugs::Bug;

/// What becomes of the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// It is kept for what comes.
    Kept,
    /// The host gets it back.
    Punched,
}

/// Blocks that become free.
pub type Freed = (BlockRun, Space);

/// Blocks that leave together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch(u64);

/// All that is on its way.
#[derive(Debug, Default)]
pub struct Pending {
    /// Older roots lead to these.
    unlinked: Vec<Freed>,
    /// The root that is being written does not lead to these.
    flushing: Vec<Freed>,
    /// No durable root leads to these.
    unreachable: Vec<Freed>,
    /// Requests may still read these.
    draining: Vec<(Grace, Vec<Freed>)>,
    /// Nobody leads to these or reads them, and their space is being given back to the host.
    leaving: Vec<(Batch, Vec<Freed>)>,
    next_batch: u64,
    /// Blocks of all that.
    blocks: u64,
}

impl Pending {
    /// Notes that the disk does not lead to `stored` any more, where the next root is `next`. No snapshot leads there.
    pub fn unlink(&mut self, stored: &Stored, next: Generation, space: Space) {
        let run = BlockRun::of(stored);
        self.blocks += run.count;
        match stored.born == next || Bug::SealedFreedTooEarly.is_seeded() {
            true => self.unreachable.push((run, space)),
            false => self.unlinked.push((run, space)),
        }
    }

    /// Notes that the root that is being written does not lead to `stored`, to which older ones led.
    pub fn unlink_by_flush(&mut self, stored: &Stored) {
        let run = BlockRun::of(stored);
        self.blocks += run.count;
        self.flushing.push((run, Space::Kept));
    }

    /// Notes blocks that nothing has ever led to and nobody reads.
    pub fn give_back(&mut self, run: BlockRun) {
        self.blocks += run.count;
        self.unreachable.push((run, Space::Kept));
    }

    /// A root is captured: what has been unlinked is not in it.
    pub fn begin_flush(&mut self) {
        self.flushing.append(&mut self.unlinked);
    }

    /// That root is durable, or has failed.
    pub fn end_flush(&mut self, success: bool) {
        match success {
            true => self.unreachable.append(&mut self.flushing),
            false => self.unlinked.append(&mut self.flushing),
        }
    }

    /// What nobody leads to or reads any more, if anything. It stays on its way until [`Self::end_leaving`].
    pub fn begin_leaving(&mut self, drain: &Drain) -> Option<(Batch, Vec<Freed>)> {
        if !self.unreachable.is_empty() {
            self.draining.push((Grace::default(), std::mem::take(&mut self.unreachable)));
        }
        let mut free = Vec::new();
        self.draining.retain_mut(|(grace, runs)| {
            let passed = drain.has_passed(grace) || Bug::SealedReusedBeforeDrained.is_seeded();
            if passed {
                free.append(runs);
            }
            !passed
        });
        if free.is_empty() {
            return None;
        }
        let batch = Batch(self.next_batch);
        self.next_batch += 1;
        self.leaving.push((batch, free.clone()));
        Some((batch, free))
    }

    /// Takes out what has left.
    pub fn end_leaving(&mut self, batch: Batch) -> Vec<Freed> {
        let at = self.leaving.iter().position(|(leaving, _)| *leaving == batch);
        let (_, free) = self.leaving.swap_remove(at.expect("a batch leaves once"));
        self.blocks -= free.iter().map(|(run, _)| run.count).sum::<u64>();
        free
    }

    /// All blocks that are on their way.
    pub fn runs(&self) -> impl Iterator<Item = BlockRun> + '_ {
        let lists = [&self.unlinked, &self.flushing, &self.unreachable];
        let draining = self.draining.iter().flat_map(|(_, runs)| runs);
        let leaving = self.leaving.iter().flat_map(|(_, runs)| runs);
        lists.into_iter().flatten().chain(draining).chain(leaving).map(|(run, _)| *run)
    }

    /// How many blocks are on their way.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Whether something waits for the next root.
    pub fn waits_for_root(&self) -> bool {
        !self.unlinked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::HostBlock;
    use crate::crypt::seal::Seal;

    fn stored(place: u64, born: Generation) -> Stored {
        let place = HostBlock::new(place);
        Stored { place, len: 4096, compressed: false, born, seal: Seal::default() }
    }

    fn free(pending: &mut Pending, drain: &Drain) -> usize {
        let Some((batch, free)) = pending.begin_leaving(drain) else { return 0 };
        assert!(!pending.is_empty(), "it is on its way until it has left");
        assert_eq!(pending.end_leaving(batch), free);
        free.len()
    }

    #[test]
    fn what_an_older_root_leads_to_waits_for_the_next_one() {
        let (mut pending, drain) = (Pending::default(), Drain::default());
        pending.unlink(&stored(10, 5), 7, Space::Kept);
        assert!(free(&mut pending, &drain) == 0 && pending.waits_for_root());
        pending.begin_flush();
        pending.unlink(&stored(11, 6), 8, Space::Kept);
        pending.end_flush(false);
        pending.begin_flush();
        assert_eq!(free(&mut pending, &drain), 0);
        pending.end_flush(true);
        assert_eq!(free(&mut pending, &drain), 2);
        assert!(pending.is_empty());
    }

    #[test]
    fn what_no_root_leads_to_waits_for_readers_alone() {
        let (mut pending, drain) = (Pending::default(), Drain::default());
        let reader = drain.enter();
        pending.unlink(&stored(10, 7), 7, Space::Kept);
        assert_eq!(free(&mut pending, &drain), 0);
        drop(reader);
        assert_eq!(free(&mut pending, &drain), 1);
    }
}
