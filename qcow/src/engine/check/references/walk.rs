//! Walks all L2 tables, by several threads where there are.
//!
//! Each batch of tables is told about in its turn, so that findings come in the order of the tables however many threads
//! there are, and no more of them wait than there are threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError, mpsc};

use super::super::counts::Counts;
use super::super::finding::Finding;
use super::super::tables::TableReader;
use super::super::tally::Tally;
use super::super::target::Target;
use super::super::uses::Uses;
use super::super::words;
use super::l2::{self, L2Rules};
use super::{Counter, Means};
use crate::disk::Disk;
use crate::error::Result;
use crate::sync::lock;

/// What a batch of tables has brought up.
#[derive(Default)]
struct Outcome {
    found: Vec<(Finding, u64)>,
    allocated: u64,
    compressed: u64,
    fragmented: u64,
    flags_in_doubt: Vec<u64>,
}

impl Outcome {
    fn tell(self, tally: &mut Tally<'_>, flags_in_doubt: &mut BTreeSet<u64>) {
        tally.note_all(self.found);
        let summary = &mut tally.summary;
        summary.allocated_clusters += self.allocated;
        summary.compressed_clusters += self.compressed;
        summary.fragmented_clusters += self.fragmented;
        flags_in_doubt.extend(self.flags_in_doubt);
    }
}

/// Counts what all tables name; returns those whose COPIED flags are in doubt.
pub(super) async fn l2_tables<D: Disk>(
    target: &Target<'_, D>,
    tables: &BTreeMap<u64, Uses>,
    counts: &Counts,
    rules: L2Rules,
    means: &Means<'_>,
    tally: &mut Tally<'_>,
) -> Result<BTreeSet<u64>> {
    let tables: Vec<(u64, Uses)> = tables.iter().map(|(&at, &uses)| (at, uses)).collect();
    let batch_len = TableReader::<D>::batch_for(target.geometry.cluster_size());
    let batches: Vec<&[(u64, Uses)]> = tables.chunks(batch_len).collect();
    let walk = Walk { target, counts, rules, means, batches };
    let mut flags_in_doubt = BTreeSet::new();
    if means.crew.threads() > 1 && walk.batches.len() > 1 {
        walk.with_crew(tally, &mut flags_in_doubt)?;
    } else {
        let mut reader = TableReader::new(target);
        for batch in &walk.batches {
            walk.batch(&mut reader, batch).await?.tell(tally, &mut flags_in_doubt);
        }
    }
    Ok(flags_in_doubt)
}

struct Walk<'w, 'd, D> {
    target: &'w Target<'d, D>,
    counts: &'w Counts,
    rules: L2Rules,
    means: &'w Means<'w>,
    batches: Vec<&'w [(u64, Uses)]>,
}

impl<'w, 'd, D: Disk> Walk<'w, 'd, D> {
    async fn batch(
        &self,
        reader: &mut TableReader<'w, 'd, D>,
        batch: &[(u64, Uses)],
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut counter = Counter::new(self.target, self.counts);
        let offsets: Vec<u64> = batch.iter().map(|&(at, _)| at).collect();
        let read = reader.read(&offsets, self.target.geometry.cluster_size()).await?;
        for (&(at, uses), bytes) in batch.iter().zip(read) {
            counter.count_table(at, uses);
            let Some(bytes) = bytes else { continue };
            let words: Vec<u64> = words(&bytes).collect();
            let layout = l2::scan(&mut counter, self.means.stored, self.rules, &words, uses);
            outcome.allocated += layout.allocated * uses.active;
            outcome.compressed += layout.compressed * uses.active;
            outcome.fragmented += layout.fragmented * uses.active;
            if layout.flags_in_doubt && uses.active > 0 {
                outcome.flags_in_doubt.push(at);
            }
        }
        outcome.found = counter.take_found();
        Ok(outcome)
    }

    /// Walks all batches by several threads. This one tells what they find, and waits.
    fn with_crew(&self, tally: &mut Tally<'_>, flags_in_doubt: &mut BTreeSet<u64>) -> Result<()> {
        let (next, stopped, turns) =
            (AtomicUsize::new(0), AtomicBool::new(false), Turns::default());
        let (sender, receiver) = mpsc::sync_channel(1);
        std::thread::scope(|scope| {
            for _ in 0..self.means.crew.threads().min(self.batches.len()) {
                let sender = sender.clone();
                let (next, stopped, turns) = (&next, &stopped, &turns);
                let work = async move || {
                    let mut reader = TableReader::new(self.target);
                    while !stopped.load(Relaxed) {
                        let number = next.fetch_add(1, Relaxed);
                        let Some(batch) = self.batches.get(number) else { break };
                        let turn = Turn { turns, number };
                        let outcome = self.batch(&mut reader, batch).await;
                        turn.come();
                        // Nobody listens where an error has ended it all.
                        let _ = sender.send(outcome);
                    }
                };
                let crew = self.means.crew;
                scope.spawn(move || crew.run(Box::pin(work())));
            }
            drop(sender);
            for outcome in receiver {
                match outcome {
                    Ok(outcome) => outcome.tell(tally, flags_in_doubt),
                    Err(error) => {
                        stopped.store(true, Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(())
        })
    }
}

/// Lets threads pass one after the other, by number.
#[derive(Default)]
struct Turns {
    current: Mutex<usize>,
    changed: Condvar,
}

/// The right of one thread to pass. It is over when this is dropped, come what may.
struct Turn<'t> {
    turns: &'t Turns,
    number: usize,
}

impl Turn<'_> {
    /// Waits for it.
    fn come(&self) {
        let mut current = lock(&self.turns.current);
        while *current != self.number {
            let waited = self.turns.changed.wait(current);
            current = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.come();
        *lock(&self.turns.current) = self.number + 1;
        self.turns.changed.notify_all();
    }
}
