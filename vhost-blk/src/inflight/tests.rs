//! The record after a kill between any two of its stores, and records of any content.

use std::cell::RefCell;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow::disk::sim::Random;

use super::{Record, RecordError, Region};

const SIZE: u16 = 8;

thread_local! {
    /// Every store of this thread: where, and what.
    static STORES: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Notes a store of the record.
pub fn note(word: &AtomicU64, value: u64) {
    STORES.with_borrow_mut(|stores| stores.push((std::ptr::from_ref(word).addr(), value)));
}

/// The stores since the last call, as numbers of words of queue 0 and values.
fn stores(region: &Region) -> Vec<(usize, u64)> {
    let start = region.queue(0).as_ptr().addr();
    let place = |(at, value)| ((at - start) / size_of::<u64>(), value);
    STORES.with_borrow_mut(std::mem::take).into_iter().map(place).collect()
}

fn region() -> Arc<Region> {
    let (file, len) = Region::make(1, SIZE).unwrap();
    map(file, len)
}

fn map(file: File, len: u64) -> Arc<Region> {
    Arc::new(Region::map(file, 0, len, 1, SIZE).unwrap())
}

/// A region whose words are these.
fn holding(words: &[u64]) -> Arc<Region> {
    let region = region();
    region.queue(0).iter().zip(words).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
    region
}

/// What must be in flight, the first that was taken first, and the used ring's index.
#[derive(Clone, Debug, Default)]
struct Truth {
    in_flight: Vec<u16>,
    used_index: u16,
}

/// The memory after every store, and the truth at that time.
struct History {
    words: Vec<u64>,
    truth: Truth,
    kills: Vec<(Vec<u64>, Truth)>,
}

impl History {
    /// The guest has been told of it, or the record is made to hold it.
    fn advance(&mut self, region: &Region, first: Truth, last: Truth) {
        self.truth = first;
        for (at, value) in stores(region) {
            self.kill();
            self.words[at] = value;
        }
        self.truth = last;
        self.kill();
    }

    fn kill(&mut self) {
        self.kills.push((self.words.clone(), self.truth.clone()));
    }
}

/// Requests that are taken, end and are shown at random, for a while.
fn run(random: &mut Random, history: &mut History) {
    let region = holding(&history.words);
    let mut truth = history.truth.clone();
    let (mut record, unfinished) =
        Record::resume(Arc::clone(&region), 0, SIZE, truth.used_index).unwrap();
    history.advance(&region, truth.clone(), truth.clone());
    let mut in_work = unfinished;
    let mut ended = Vec::new();
    for _ in 0..random.below(30) {
        let before = truth.clone();
        let busy = in_work.len() + ended.len();
        match random.below(3) {
            0 if busy < SIZE.into() => {
                let free: Vec<u16> =
                    (0..SIZE).filter(|head| !truth.in_flight.contains(head)).collect();
                let head = free[random.below(free.len() as u64) as usize];
                record.take(head);
                in_work.push(head);
                truth.in_flight.push(head);
                history.advance(&region, before, truth.clone());
            }
            1 if !in_work.is_empty() => {
                let head = in_work.swap_remove(random.below(in_work.len() as u64) as usize);
                record.end(head);
                ended.push(head);
                history.advance(&region, before, truth.clone());
            }
            2 if !ended.is_empty() => {
                truth.used_index = truth.used_index.wrapping_add(ended.len() as u16);
                truth.in_flight.retain(|head| !ended.contains(head));
                ended.clear();
                // The index in the ring comes before everything that the record is told.
                record.show(truth.used_index);
                history.advance(&region, truth.clone(), truth.clone());
            }
            _ => {}
        }
    }
}

#[test]
fn whichever_store_is_the_last_the_record_tells_what_is_in_flight() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let truth = Truth { in_flight: Vec::new(), used_index: random.below(1 << 16) as u16 };
        let mut history =
            History { words: vec![0; 2 + 2 * usize::from(SIZE)], truth, kills: Vec::new() };
        for _ in 0..4 {
            run(&mut random, &mut history);
            for (words, truth) in &history.kills {
                let region = holding(words);
                let (_, mut unfinished) =
                    Record::resume(region, 0, SIZE, truth.used_index).unwrap();
                unfinished.reverse();
                assert_eq!(unfinished, truth.in_flight, "seed {seed}, {words:x?}");
            }
            STORES.with_borrow_mut(Vec::clear);
            // The next process goes on from any of those kills.
            let kill = random.below(history.kills.len() as u64) as usize;
            (history.words, history.truth) = history.kills.swap_remove(kill);
            history.kills.clear();
        }
    }
}

#[test]
fn a_ring_that_starts_anew_has_nothing_in_flight() {
    let region = region();
    let resume = |used_index| Record::resume(Arc::clone(&region), 0, SIZE, used_index).unwrap();
    let (mut record, _) = resume(500);
    record.take(3);
    assert_eq!(resume(500).1, [3]);
    assert!(resume(0).1.is_empty());
    assert!(resume(0).1.is_empty());
}

#[test]
fn records_of_other_kinds_are_refused() {
    let resume = |region: Arc<Region>, queue, size| Record::resume(region, queue, size, 0);
    let words = |features, version: u64, size: u64| holding(&[features, version | size << 16]);
    assert!(resume(words(0, 1, 8), 0, SIZE).is_ok());
    assert!(resume(words(0, 1, 8), 0, SIZE / 2).is_ok());
    assert!(resume(words(7, 0, 99), 0, SIZE).is_ok(), "version 0 is a fresh one");
    for (features, version, size) in [(1, 1, 8), (0, 2, 8), (0, 1, 9), (0, 1, 0), (0, 0xffff, 8)] {
        let refused = resume(words(features, version, size), 0, SIZE);
        assert!(matches!(refused, Err(RecordError::Foreign { .. })));
    }
    assert!(matches!(resume(region(), 0, SIZE * 2), Err(RecordError::Size { .. })));
    assert!(matches!(resume(region(), 1, SIZE), Err(RecordError::NoQueue(1, 1))));
}

#[test]
fn whatever_a_record_holds_heads_of_the_ring_come_out_of_it_once() {
    for seed in 0..2000 {
        let mut random = Random::new(seed);
        let sparse = random.below(2) == 0;
        let mut words: Vec<u64> = (0..2 + 2 * usize::from(SIZE))
            .map(|_| if sparse { random.below(3) << (random.below(8) * 8) } else { random.draw() })
            .collect();
        // Otherwise hardly any would be looked at.
        (words[0], words[1]) = (0, words[1] >> 32 << 32 | 8 << 16 | 1);
        let used_index = random.below(1 << 16) as u16;
        let (mut record, mut heads) =
            Record::resume(holding(&words), 0, SIZE / 2, used_index).unwrap();
        (0..SIZE / 2).for_each(|head| record.take(head));
        record.end(1);
        record.show(used_index.wrapping_add(1));
        let count = heads.len();
        heads.sort_unstable();
        heads.dedup();
        assert!(heads.len() == count && heads.iter().all(|head| *head < SIZE / 2), "seed {seed}");
    }
}
