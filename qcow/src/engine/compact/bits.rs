//! A bit for each cluster of a file.

/// A bit for each cluster of a file, all clear at first. What was never set takes no memory.
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn new(clusters: u64) -> Self {
        Self(vec![0; (clusters / 64 + 1) as usize])
    }

    pub(super) fn get(&self, cluster: u64) -> bool {
        self.0[(cluster / 64) as usize] >> (cluster % 64) & 1 == 1
    }

    pub(super) fn set(&mut self, cluster: u64, bit: bool) {
        let word = &mut self.0[(cluster / 64) as usize];
        *word = *word & !(1 << (cluster % 64)) | u64::from(bit) << (cluster % 64);
    }
}
