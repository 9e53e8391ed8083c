//! Which slices of a table leave a full cache: 2Q (Johnson and Shasha, 1994), so that a pass over the whole disk does not
//! drive out what is used again and again.
//!
//! A slice that is new waits in the young queue, first in, first out, however often it is used there: a pass over the disk
//! uses each slice some hundred times in a row and then never again, so that says nothing. What leaves that queue is
//! remembered by name for a while. Who is asked for again in that time has proven to be used over a longer time, and comes
//! into the old queue, which gives a second chance to what has been used since its last turn. The young give way first as
//! long as they have more than their share; so a pass over the disk only ever drives out what came with it.

use std::collections::{HashSet, VecDeque};

use crate::addr::SliceKey;

/// The part of the cache that is the young's to keep.
const YOUNG_PART: usize = 4;

/// The order in which slices are to leave.
#[derive(Debug)]
pub struct Eviction {
    young: VecDeque<SliceKey>,
    old: VecDeque<SliceKey>,
    gone: Gone,
    young_max: usize,
    /// How many of each queue have had their turn and stayed since any slice came or left.
    young_stayed: usize,
    old_stayed: usize,
}

/// A slice that may leave now.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which slice.
    pub key: SliceKey,
    /// Whether it has proven to be used over a longer time: then it stays if it has been used since its last turn.
    pub proven: bool,
}

impl Eviction {
    /// The order of a cache of `count_max` slices; the names of as many that have left are remembered.
    pub fn new(count_max: usize) -> Self {
        let (young, old) = (VecDeque::new(), VecDeque::new());
        let gone = Gone::new(count_max);
        let young_max = count_max / YOUNG_PART;
        Self { young, old, gone, young_max, young_stayed: 0, old_stayed: 0 }
    }

    /// Turns after which every slice has had a chance, and every old one a second.
    pub fn turns(&self) -> usize {
        2 * self.old.len() + self.young.len() + 1
    }

    /// Notes that a slice has come.
    pub fn admit(&mut self, key: SliceKey) {
        let proven = self.gone.forget(key);
        self.keep(Candidate { key, proven });
        self.begin_anew();
    }

    /// Whose turn it is. It is no more in the order: it either stays or leaves.
    pub fn next(&mut self) -> Option<Candidate> {
        let young_is_due = self.young.len() > self.young_max && !self.young_is_in_use();
        let proven = !(young_is_due || self.old.is_empty() || self.old_is_in_use());
        let queue = if proven { &mut self.old } else { &mut self.young };
        queue.pop_front().map(|key| Candidate { key, proven })
    }

    /// Whether none of the young can leave.
    fn young_is_in_use(&self) -> bool {
        self.young_stayed >= self.young.len()
    }

    /// Whether none of the old can leave, although each has had a second turn.
    fn old_is_in_use(&self) -> bool {
        self.old_stayed >= 2 * self.old.len()
    }

    /// Notes that a slice whose turn it was stays.
    pub fn keep(&mut self, Candidate { key, proven }: Candidate) {
        if proven {
            self.old_stayed += 1;
            self.old.push_back(key);
        } else {
            self.young_stayed += 1;
            self.young.push_back(key);
        }
    }

    /// Notes that a slice whose turn it was has left.
    pub fn left(&mut self, Candidate { key, proven }: Candidate) {
        self.begin_anew();
        if !proven {
            self.gone.remember(key);
        }
    }

    fn begin_anew(&mut self) {
        (self.young_stayed, self.old_stayed) = (0, 0);
    }

    /// Notes that all slices have left, and are not to be remembered.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.gone.clear();
    }
}

/// The names of slices that have left not long ago.
#[derive(Debug)]
struct Gone {
    names: HashSet<SliceKey, foldhash::fast::RandomState>,
    /// Oldest first; names that have been forgotten since among them.
    order: VecDeque<SliceKey>,
    count_max: usize,
}

impl Gone {
    fn new(count_max: usize) -> Self {
        Self { names: HashSet::default(), order: VecDeque::new(), count_max }
    }

    fn remember(&mut self, key: SliceKey) {
        if self.names.insert(key) {
            self.order.push_back(key);
        }
        while self.order.len() > self.count_max {
            let oldest = self.order.pop_front().expect("more than none");
            self.names.remove(&oldest);
        }
    }

    /// Whether `key` was remembered; not any more.
    fn forget(&mut self, key: SliceKey) -> bool {
        self.names.remove(&key)
    }

    fn clear(&mut self) {
        self.names.clear();
        self.order.clear();
    }
}
