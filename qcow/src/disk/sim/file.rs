//! One simulated file: what it reads as, what survives a power cut for sure, and what may.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use super::content::{BLOCK_BYTES, Block, Content, pieces};
use super::effect::{Change, Effect, some_of};
use super::power_cut::PowerCut;
use super::random::Random;

/// A moment in the life of a world: how many operations had taken effect.
pub(super) type Moment = u64;

/// A file and its past since the last sync.
#[derive(Clone, Debug)]
pub(super) struct File {
    /// What reads return: the page cache.
    visible: Content,
    /// What the medium holds for sure.
    durable: Content,
    /// What has been done to each block since, oldest first.
    unsynced: BTreeMap<u64, Vec<(Moment, Block)>>,
    /// Blocks that a failed sync has lost, which the page cache still shows.
    lost: BTreeSet<u64>,
    /// Lengths the file has had since, oldest first.
    lens: Vec<(Moment, u64)>,
    /// Most bytes that may be stored.
    capacity: u64,
}

impl File {
    /// A file that has been on the medium for long.
    pub fn new(content: Content) -> Self {
        Self {
            visible: content.clone(),
            durable: content,
            unsynced: BTreeMap::new(),
            lost: BTreeSet::new(),
            lens: Vec::new(),
            capacity: u64::MAX,
        }
    }

    pub fn visible(&self) -> &Content {
        &self.visible
    }

    pub fn set_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
    }

    /// Fails where `effect` would need more space than there is.
    pub fn reserve(&self, effect: &Effect) -> io::Result<()> {
        let (at, len) = effect.stored();
        let missing = pieces(at, len).filter(|p| self.visible.block(p.block).is_hole()).count();
        let wanted = self.visible.allocated_len() + missing as u64 * BLOCK_BYTES;
        if missing > 0 && wanted > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Lets `changes` take effect. Of a write that happens in part, nothing can lie behind the length that it leaves.
    pub fn apply(&mut self, changes: Vec<Change>, now: Moment) {
        let (lens, blocks): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| matches!(change, Change::Len(_)));
        for change in lens.into_iter().chain(blocks) {
            match change {
                Change::Block { index, block } if index * BLOCK_BYTES < self.visible.len() => {
                    self.visible.set_block(index, block.clone());
                    self.unsynced.entry(index).or_default().push((now, block));
                }
                Change::Block { .. } => {}
                Change::Len(len) => {
                    self.visible.set_len(len);
                    self.lens.push((now, len));
                }
            }
        }
    }

    /// Makes everything durable that took effect up to `until`.
    pub fn sync(&mut self, until: Moment) {
        for (index, block) in self.take_unsynced(until) {
            self.durable.set_block(index, block);
        }
        if let Some(len) = self.take_len(until) {
            self.durable.set_len(len);
        }
    }

    /// A sync that failed: some of what it was to make durable is lost, and all of it is forgotten. The page cache may
    /// go on to show what was lost, or not. The length is the file system's own and waits for the next sync.
    pub fn fail_sync(&mut self, until: Moment, random: &mut Random) {
        let cache_keeps = random.below(2) == 0;
        for (index, block) in self.take_unsynced(until) {
            if random.below(2) == 0 {
                self.durable.set_block(index, block);
            } else {
                self.lost.insert(index);
            }
        }
        if !cache_keeps {
            self.drop_cache(0..u64::MAX);
        }
    }

    /// Lets reads of these bytes see the medium, except for what waits to be written.
    pub fn drop_cache(&mut self, bytes: Range<u64>) {
        let blocks = bytes.start.div_ceil(BLOCK_BYTES)..bytes.end / BLOCK_BYTES;
        let lost: Vec<u64> = self.lost.range(blocks).copied().collect();
        for index in lost {
            self.lost.remove(&index);
            if !self.unsynced.contains_key(&index) && index * BLOCK_BYTES < self.visible.len() {
                self.visible.set_block(index, self.durable.block(index));
            }
        }
    }

    /// What the page cache has after some of each of the effects `in_flight`.
    pub fn killed<'a>(
        &self,
        in_flight: impl Iterator<Item = &'a Effect>,
        random: &mut Random,
    ) -> Content {
        let mut file = Self::new(self.visible.clone());
        for effect in in_flight {
            let changes = effect.changes(&file.visible);
            file.apply(some_of(changes, random), 0);
        }
        file.visible
    }

    /// What a power cut may leave, if the effects `in_flight` may have begun.
    pub fn power_cut<'a>(&self, in_flight: impl Iterator<Item = &'a Effect>) -> PowerCut {
        let mut cut = PowerCut::new(self.durable.clone());
        for (&index, blocks) in &self.unsynced {
            blocks.iter().for_each(|(_, block)| cut.add_block(index, block.clone()));
        }
        self.lens.iter().for_each(|&(_, len)| cut.add_len(len));
        for effect in in_flight {
            for change in effect.changes(&self.visible) {
                match change {
                    Change::Block { index, block } => cut.add_block(index, block),
                    Change::Len(len) => cut.add_len(len),
                }
            }
        }
        cut
    }

    /// For each block the last thing that happened to it up to `until`; later things stay unsynced.
    fn take_unsynced(&mut self, until: Moment) -> Vec<(u64, Block)> {
        let mut taken = Vec::new();
        self.unsynced.retain(|&index, blocks| {
            let later = blocks.partition_point(|&(moment, _)| moment <= until);
            if let Some((_, last)) = blocks.drain(..later).next_back() {
                taken.push((index, last));
            }
            !blocks.is_empty()
        });
        taken
    }

    fn take_len(&mut self, until: Moment) -> Option<u64> {
        let later = self.lens.partition_point(|&(moment, _)| moment <= until);
        self.lens.drain(..later).next_back().map(|(_, len)| len)
    }
}
