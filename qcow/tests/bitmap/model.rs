//! What bitmaps are to hold, by the simplest means.

use std::collections::BTreeMap;

/// One bitmap.
#[derive(Clone, Debug)]
pub struct Bitmap {
    pub granularity: u64,
    pub enabled: bool,
    pub marked: Vec<bool>,
}

/// A disk and its bitmaps by name.
#[derive(Clone, Debug)]
pub struct Model {
    pub size: u64,
    pub bitmaps: BTreeMap<String, Bitmap>,
}

impl Model {
    pub fn new(size: u64) -> Self {
        Self { size, bitmaps: BTreeMap::new() }
    }

    pub fn add(&mut self, name: &str, granularity: u64, enabled: bool) {
        let marked = vec![false; self.size.div_ceil(granularity) as usize];
        self.bitmaps.insert(name.to_owned(), Bitmap { granularity, enabled, marked });
    }

    /// The disk has changed in `len` bytes at `at`.
    pub fn change(&mut self, at: u64, len: u64) {
        for bitmap in self.bitmaps.values_mut().filter(|bitmap| bitmap.enabled) {
            bitmap.mark(at, len);
        }
    }

    pub fn merge(&mut self, to: &str, from: &str) {
        let from = self.bitmaps[from].clone();
        let to = self.bitmaps.get_mut(to).expect("it is there");
        for index in (0..from.marked.len()).filter(|&index| from.marked[index]) {
            let start = index as u64 * from.granularity;
            to.mark(start, from.granularity.min(self.size - start));
        }
    }

    pub fn resize(&mut self, size: u64) {
        self.size = size;
        for bitmap in self.bitmaps.values_mut() {
            bitmap.marked.resize(size.div_ceil(bitmap.granularity) as usize, false);
        }
    }
}

impl Bitmap {
    fn mark(&mut self, at: u64, len: u64) {
        let (first, last) = (at / self.granularity, (at + len - 1) / self.granularity);
        self.marked[first as usize..=last as usize].fill(true);
    }
}
