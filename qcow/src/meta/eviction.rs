//! Which slices leave a full cache: 2Q (Johnson and Shasha, 1994), so that a pass over the whole disk does not drive out
//! what is used again and again.
//!
//! **Why not by the number of uses.** A slice holds some hundred entries, and a pass over the disk (a backup, a guest's `dd`)
//! looks into it for each: hundreds of uses in a row, then never again. Uses that follow each other closely are one use.
//! What tells a slice that is worth its place is a use after others have come in the meantime. Time is counted in slices
//! that have come, and uses count as far apart from [`Eviction::distance`] on.
//!
//! - A new slice waits in the *young* queue, first in, first out. When its turn comes, it moves to the old queue if its last
//!   use was far from its arrival; in a cache that has long been large enough for everything, that keeps what is in use
//!   when a pass begins. Else it leaves, and its name is remembered until as many have left as the cache holds.
//! - What is asked for while its name is remembered has been used far apart, and comes into the *old* queue at once. There a
//!   slice stays if it has been used since its last turn.
//! - The young give way first while they have more than their share of the cache, else the old: so a pass over the disk
//!   only drives out what came with it, and what is old leaves only to what has proven to be used, too.
//!
//! A slice that is in use when its turn comes (pinned, changed, being written) is put aside, so that nobody meets it twice,
//! and queues again when that ends. Each turn ends a slice's stay, puts it aside, or moves it because of a use since its last
//! one; so turns cost no more than uses do, and none allocates once the queues have their size.

use std::collections::VecDeque;

use crate::addr::{AddressMap, SliceKey};

/// The part of the cache that is the young's to keep.
const YOUNG_PART: usize = 4;

/// The order in which slices are to leave.
#[derive(Debug)]
pub struct Eviction {
    young: VecDeque<Waiting>,
    old: VecDeque<Waiting>,
    gone: Gone,
    young_max: usize,
    /// Slices that have come.
    now: u64,
}

/// Where a slice is in the order, and what is known of its use. It is the slice's own, so that a use costs one store.
#[derive(Clone, Copy, Debug)]
pub struct Stay {
    arrival: u64,
    last_turn: u64,
    last_use: u64,
    is_old: bool,
    is_aside: bool,
}

/// A slice that waits for its turn. It may have been forgotten meanwhile, and even have come again.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Which slice.
    pub key: SliceKey,
    arrival: u64,
}

/// What becomes of a slice whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It leaves.
    Leaves,
    /// It stays for now.
    Stays,
}

impl Stay {
    /// Notes a use.
    #[inline]
    pub fn note_use(&mut self, now: u64) {
        self.last_use = now;
    }

    /// Whether this is the stay that `waiting` waits in, and not a later one of the same slice.
    pub fn is_of(&self, waiting: Waiting) -> bool {
        self.arrival == waiting.arrival
    }

    /// Whether it does not wait for its turn because it was in use when that came.
    pub fn is_aside(&self) -> bool {
        self.is_aside
    }
}

impl Eviction {
    /// The order of a cache of `count_max` slices.
    pub fn new(count_max: usize) -> Self {
        let (young, old) = (VecDeque::new(), VecDeque::new());
        let gone = Gone { names: AddressMap::default(), order: VecDeque::new(), count_max };
        Self { young, old, gone, young_max: count_max / YOUNG_PART, now: 0 }
    }

    /// The time, for [`Stay::note_use`].
    #[inline]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// How many slices come at least between two uses that are far apart: as many as a new slice waits among.
    fn distance(&self) -> u64 {
        self.young_max as u64
    }

    /// How many wait, those that have been forgotten among them.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Begins the stay of a slice that comes, to be used at once.
    pub fn admit(&mut self, key: SliceKey) -> Stay {
        self.now += 1;
        let now = self.now;
        let is_old = self.gone.forget(key);
        self.queue(is_old).push_back(Waiting { key, arrival: now });
        Stay { arrival: now, last_turn: now, last_use: now, is_old, is_aside: false }
    }

    /// Whose turn it is; `None` where all that are left are aside. It waits no more until [`Self::take_turn`].
    pub fn next(&mut self) -> Option<Waiting> {
        let is_old = self.young.len() <= self.young_max && !self.old.is_empty();
        self.queue(is_old).pop_front()
    }

    /// Decides what becomes of the slice of `waiting`, which may leave unless it `is_in_use`.
    pub fn take_turn(&mut self, waiting: Waiting, stay: &mut Stay, is_in_use: bool) -> Turn {
        if is_in_use {
            stay.is_aside = true;
            return Turn::Stays;
        }
        let far = if stay.is_old { 1 } else { self.distance().max(1) };
        if stay.last_use.saturating_sub(stay.last_turn) >= far {
            stay.is_old = true;
            stay.last_turn = self.now;
            self.old.push_back(waiting);
            return Turn::Stays;
        }
        if !stay.is_old {
            self.gone.remember(waiting);
        }
        Turn::Leaves
    }

    /// Lets a slice wait again that was aside.
    pub fn wait_again(&mut self, key: SliceKey, stay: &mut Stay) {
        stay.is_aside = false;
        self.queue(stay.is_old).push_back(Waiting { key, arrival: stay.arrival });
    }

    /// Keeps only those that wait for slices which are still there.
    pub fn sweep(&mut self, mut is_there: impl FnMut(Waiting) -> bool) {
        self.young.retain(|&waiting| is_there(waiting));
        self.old.retain(|&waiting| is_there(waiting));
    }

    /// Notes that all slices have left, and are not to be remembered.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.gone.names.clear();
        self.gone.order.clear();
    }

    fn queue(&mut self, is_old: bool) -> &mut VecDeque<Waiting> {
        if is_old { &mut self.old } else { &mut self.young }
    }
}

/// The names of slices that have left not long ago, each with the arrival of its last stay.
#[derive(Debug)]
struct Gone {
    names: AddressMap<SliceKey, u64>,
    /// In the order in which they left; some have come again since.
    order: VecDeque<Waiting>,
    count_max: usize,
}

impl Gone {
    fn remember(&mut self, left: Waiting) {
        self.names.insert(left.key, left.arrival);
        self.order.push_back(left);
        if self.order.len() > self.count_max
            && let Some(oldest) = self.order.pop_front()
            && self.names.get(&oldest.key) == Some(&oldest.arrival)
        {
            self.names.remove(&oldest.key);
        }
    }

    /// Whether `key` was remembered; not any more.
    fn forget(&mut self, key: SliceKey) -> bool {
        self.names.remove(&key).is_some()
    }
}
