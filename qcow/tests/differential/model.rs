//! What the disk must hold: its bytes, and where a discard leaves a choice.

use std::ops::Range;

/// The bytes of a disk.
pub struct Model {
    bytes: Vec<u8>,
    /// Ranges that were discarded in this turn: old bytes or zeros, whatever the program chose.
    discarded: Vec<Range<usize>>,
}

impl Model {
    /// A disk that starts with `bytes` and goes on with zeros.
    pub fn new(size: u64, bytes: &[u8]) -> Self {
        let mut all = vec![0; size as usize];
        let len = bytes.len().min(all.len());
        all[..len].copy_from_slice(&bytes[..len]);
        Self { bytes: all, discarded: Vec::new() }
    }

    /// Sets a range to one byte.
    pub fn fill(&mut self, at: u64, len: u64, byte: u8) {
        let range = at as usize..(at + len) as usize;
        self.bytes[range.clone()].fill(byte);
        // What is written after a discard is certain again.
        let split =
            |d: &Range<usize>| [d.start..d.end.min(range.start), d.start.max(range.end)..d.end];
        self.discarded =
            self.discarded.iter().flat_map(split).filter(|d| d.start < d.end).collect();
    }

    /// Discards a range.
    pub fn discard(&mut self, at: u64, len: u64) {
        self.discarded.push(at as usize..(at + len) as usize);
    }

    /// Makes the disk larger, with zeros, or smaller.
    pub fn resize(&mut self, size: u64) {
        let size = size as usize;
        self.bytes.resize(size, 0);
        self.discarded.iter_mut().for_each(|d| *d = d.start.min(size)..d.end.min(size));
    }

    /// Checks what a program reads, and adopts its choices.
    pub fn check(&mut self, who: &str, read: &[u8]) {
        assert_eq!(read.len(), self.bytes.len(), "{who}: the disk's size");
        for range in std::mem::take(&mut self.discarded) {
            for at in range {
                assert!(
                    read[at] == self.bytes[at] || read[at] == 0,
                    "{who}: byte {at:#x} after a discard"
                );
                self.bytes[at] = read[at];
            }
        }
        if let Some(at) = (0..read.len()).find(|&at| read[at] != self.bytes[at]) {
            panic!("{who}: byte {at:#x} reads {:#x} instead of {:#x}", read[at], self.bytes[at]);
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
