//! The memory of a redo log: it outlives the process that writes to it, and not the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow::engine::{SharedWords, words_for};

/// Memory that is kept by somebody else.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Box<[AtomicU64]>>);

impl Memory {
    /// Fresh memory with room for so many records.
    pub fn new(records: u64) -> Self {
        Self::holding(vec![0; words_for(records) as usize])
    }

    /// Memory that holds `words`.
    pub fn holding(words: Vec<u64>) -> Self {
        Self(Arc::new(words.into_iter().map(AtomicU64::new).collect()))
    }

    /// What it holds now.
    pub fn words(&self) -> Vec<u64> {
        self.0.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// Whether no record waits in it: its head is its tail.
    pub fn is_empty(&self) -> bool {
        let [head, tail] = [3, 4].map(|at: usize| self.0[at].load(Ordering::Relaxed));
        head == tail
    }

    /// Whether its records mean nothing: it has no session.
    pub fn is_void(&self) -> bool {
        self.0[1].load(Ordering::Relaxed) == 0
    }

    /// Other memory that holds the same.
    pub fn copy(&self) -> Self {
        Self::holding(self.words())
    }

    /// For an image to use.
    pub fn share(&self) -> Arc<dyn SharedWords> {
        Arc::clone(&self.0) as Arc<dyn SharedWords>
    }
}
