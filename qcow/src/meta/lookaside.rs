//! Answers that were given before, for whoever asks again: where a guest cluster lies, without a lock.
//!
//! The tables lie behind one lock. Most requests of a disk in use go to clusters whose place has been looked up before and
//! has not changed since; for them the lock, and the cache line that all queues pass around with it, would be most of what
//! the engine costs. So the place of a cluster that holds plain data is noted here too, in one word that is read at once.
//!
//! Whoever holds the lock is the only one to write. That makes the argument short:
//!
//! - A place is noted under the lock under which it was looked up, and only while nobody holds the cluster for a change.
//! - Whoever is about to change the mapping of clusters holds them first, and that makes this forget them, under the lock.
//!   What changes the mapping of many at once, or says that other clusters of the file are metadata, makes it forget all.
//! - So a place that is found was right at some moment after the request entered the drain ([`super::drain`]): either it
//!   is right still, or it was forgotten after that, and then the cluster is not free before the request has ended. That is
//!   what a look at the tables says, too. Both sides are sequentially consistent: a request that is not seen in the drain
//!   sees what was forgotten before.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{GuestCluster, HostCluster};

/// log2 of the most places noted: half a mebibyte, which covers 4 GiB in clusters of 64 KiB.
const SLOT_BITS_MAX: u32 = 16;
/// Bits of a word for the place ...
const HOST_BITS: u32 = 32;
/// ... and for what of the guest cluster's number does not follow from the word's place.
const TAG_BITS: u32 = 64 - HOST_BITS - Right::BITS;

/// What may be done with a cluster where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Reading.
    Read = 1,
    /// Reading, and writing in place.
    Write = 2,
}

impl Right {
    const BITS: u32 = 2;
}

/// Places of guest clusters, as many as fit: one that is noted takes the slot of another one.
#[derive(Debug)]
pub struct Lookaside {
    /// Made when the first place is noted.
    slots: OnceLock<Box<[AtomicU64]>>,
    slot_bits: u32,
    /// Places noted since all were forgotten; only whoever holds the lock counts.
    noted: AtomicU64,
}

impl Lookaside {
    /// Room for the places of a disk of `clusters` guest clusters.
    pub fn new(clusters: u64) -> Self {
        let slot_bits = clusters.max(1).next_power_of_two().trailing_zeros().min(SLOT_BITS_MAX);
        Self { slots: OnceLock::new(), slot_bits, noted: AtomicU64::new(0) }
    }

    /// Where `cluster` lies, if that is known and the `right` is given. The caller is inside the drain.
    pub fn find(&self, cluster: GuestCluster, right: Right) -> Option<HostCluster> {
        let word = self.slot(cluster)?.load(Ordering::SeqCst);
        let known = tag_of(word) == self.tag(cluster) && right_of(word) >= right as u64;
        known.then(|| host_of(word))
    }

    /// Notes that `cluster`, which nobody holds, lies at `host`. The caller holds the lock on the metadata.
    pub(super) fn note(&self, cluster: GuestCluster, host: HostCluster, right: Right) {
        if host.get() >> HOST_BITS != 0 || self.tag(cluster) >> TAG_BITS != 0 {
            return;
        }
        self.slots.get_or_init(|| (0..1 << self.slot_bits).map(|_| AtomicU64::new(0)).collect());
        let slot = self.slot(cluster).expect("slots that have just been made");
        let word = |right| self.tag(cluster) << (64 - TAG_BITS) | host.get() << Right::BITS | right;
        // Whoever only reads does not take the right to write away.
        if slot.load(Ordering::Relaxed) != word(Right::Write as u64) {
            slot.store(word(right as u64), Ordering::SeqCst);
            self.noted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets the places of `count` clusters from `first` on, whose mapping is about to change. The caller holds the lock.
    pub(super) fn forget(&self, first: GuestCluster, count: u64) {
        if count >> self.slot_bits != 0 {
            return self.forget_all();
        }
        for cluster in (0..count).map(|i| first.plus(i)) {
            if let Some(slot) = self.slot(cluster) {
                slot.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Forgets all places. The caller holds the lock.
    pub(super) fn forget_all(&self) {
        if self.noted.swap(0, Ordering::Relaxed) > 0 {
            let slots = self.slots.get().map_or(&[][..], |slots| slots);
            slots.iter().for_each(|slot| slot.store(0, Ordering::SeqCst));
        }
    }

    fn slot(&self, cluster: GuestCluster) -> Option<&AtomicU64> {
        let index = cluster.get() & ((1 << self.slot_bits) - 1);
        self.slots.get()?.get(index as usize)
    }

    fn tag(&self, cluster: GuestCluster) -> u64 {
        cluster.get() >> self.slot_bits
    }
}

fn tag_of(word: u64) -> u64 {
    word >> (64 - TAG_BITS)
}

fn host_of(word: u64) -> HostCluster {
    HostCluster::new(word >> Right::BITS & ((1 << HOST_BITS) - 1))
}

fn right_of(word: u64) -> u64 {
    word & ((1 << Right::BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(number: u64) -> GuestCluster {
        GuestCluster::new(number)
    }

    fn host(number: u64) -> HostCluster {
        HostCluster::new(number)
    }

    #[test]
    fn the_right_to_write_includes_the_one_to_read_and_stays() {
        let lookaside = Lookaside::new(100);
        assert_eq!(lookaside.find(guest(7), Right::Read), None);
        lookaside.note(guest(7), host(0), Right::Read);
        assert_eq!(lookaside.find(guest(7), Right::Read), Some(host(0)));
        assert_eq!(lookaside.find(guest(7), Right::Write), None);
        lookaside.note(guest(7), host(9), Right::Write);
        lookaside.note(guest(7), host(9), Right::Read);
        assert_eq!(lookaside.find(guest(7), Right::Write), Some(host(9)));
        lookaside.note(guest(7), host(10), Right::Read);
        assert_eq!(lookaside.find(guest(7), Right::Read), Some(host(10)));
        assert_eq!(lookaside.find(guest(7), Right::Write), None, "of another place");
    }

    #[test]
    fn clusters_that_share_a_slot_are_told_apart() {
        let lookaside = Lookaside::new(1 << 40);
        let (one, other) = (guest(5), guest(5 + (1 << SLOT_BITS_MAX)));
        lookaside.note(one, host(1), Right::Write);
        assert_eq!(lookaside.find(other, Right::Read), None);
        lookaside.note(other, host(2), Right::Write);
        assert_eq!(lookaside.find(one, Right::Read), None);
        assert_eq!(lookaside.find(other, Right::Write), Some(host(2)));
    }

    #[test]
    fn what_does_not_fit_into_a_word_is_not_noted() {
        let lookaside = Lookaside::new(1 << 60);
        let far = guest(1 << (SLOT_BITS_MAX + TAG_BITS));
        for (cluster, host) in [(guest(3), host(1 << HOST_BITS)), (far, host(1))] {
            lookaside.note(cluster, host, Right::Read);
            assert_eq!(lookaside.find(cluster, Right::Read), None);
        }
        let last = guest((1 << (SLOT_BITS_MAX + TAG_BITS)) - 1);
        lookaside.note(last, host((1 << HOST_BITS) - 1), Right::Write);
        assert_eq!(lookaside.find(last, Right::Write), Some(host((1 << HOST_BITS) - 1)));
    }

    #[test]
    fn what_is_forgotten_is_not_found() {
        let lookaside = Lookaside::new(16);
        let note_all = || (0..16).for_each(|i| lookaside.note(guest(i), host(i), Right::Write));
        let found = || (0..16).filter(|&i| lookaside.find(guest(i), Right::Read).is_some()).count();
        note_all();
        lookaside.forget(guest(4), 3);
        assert_eq!(found(), 13);
        lookaside.forget(guest(20), 100);
        assert_eq!(found(), 0, "more than there are slots");
        note_all();
        lookaside.forget_all();
        assert_eq!(found(), 0);
    }
}
