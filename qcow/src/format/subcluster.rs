//! The bitmap of an extended L2 entry: what each of a cluster's 32 subclusters is.
//!
//! Clause "Extended L2 Entries" of the specification. Bit x of the low half says that subcluster x is allocated, bit x of
//! the high half that it reads as zeros; both at once is invalid, and cannot be expressed here.

use std::ops::Range;

use crate::error::{Error, Result};

/// Subclusters of a cluster.
pub const SUBCLUSTERS: u32 = 32;

/// What one subcluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subcluster {
    /// Nothing here: the backing file shows through, or zeros.
    Unallocated,
    /// It reads as zeros.
    Zero,
    /// Its data lies in its place of the host cluster.
    Allocated,
}

/// What the subclusters of one cluster are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subclusters {
    allocated: u32,
    zero: u32,
}

impl Subclusters {
    /// None is allocated, and none reads as zeros by itself.
    pub const UNALLOCATED: Self = Self { allocated: 0, zero: 0 };
    /// All of them are allocated.
    pub const ALLOCATED: Self = Self { allocated: u32::MAX, zero: 0 };
    /// All of them read as zeros.
    pub const ZERO: Self = Self { allocated: 0, zero: u32::MAX };

    /// What `bitmap` says.
    ///
    /// # Errors
    /// A subcluster is allocated and reads as zeros at the same time.
    pub fn parse(bitmap: u64) -> Result<Self> {
        let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
        if allocated & zero != 0 {
            return Err(Error::corrupt(format!(
                "subcluster bitmap {bitmap:#x} has subclusters that are both allocated and zero"
            )));
        }
        Ok(Self { allocated, zero })
    }

    /// The bitmap that says this.
    pub const fn bitmap(self) -> u64 {
        (self.zero as u64) << 32 | self.allocated as u64
    }

    /// The same with the subclusters in `range` allocated.
    #[must_use]
    pub fn with_allocated(self, range: Range<u32>) -> Self {
        let mask = mask(range);
        Self { allocated: self.allocated | mask, zero: self.zero & !mask }
    }

    /// The same with the subclusters in `range` reading as zeros.
    #[must_use]
    pub fn with_zero(self, range: Range<u32>) -> Self {
        let mask = mask(range);
        Self { allocated: self.allocated & !mask, zero: self.zero | mask }
    }

    /// What subcluster `index`, below 32, is.
    pub fn get(self, index: u32) -> Subcluster {
        match (self.allocated >> index & 1, self.zero >> index & 1) {
            (0, 0) => Subcluster::Unallocated,
            (0, _) => Subcluster::Zero,
            _ => Subcluster::Allocated,
        }
    }

    /// How many subclusters from `index` on, that one included, are the same.
    pub fn count_alike(self, index: u32) -> u32 {
        let bits = match self.get(index) {
            Subcluster::Unallocated => !(self.allocated | self.zero),
            Subcluster::Zero => self.zero,
            Subcluster::Allocated => self.allocated,
        };
        (bits >> index).trailing_ones()
    }

    /// Whether all subclusters in `range` are allocated.
    pub fn are_allocated(self, range: Range<u32>) -> bool {
        let mask = mask(range);
        self.allocated & mask == mask
    }

    /// From the first to behind the last subcluster that is allocated; `None` where none is.
    pub fn allocated_span(self) -> Option<Range<u32>> {
        let end = SUBCLUSTERS - self.allocated.leading_zeros();
        (self.allocated != 0).then(|| self.allocated.trailing_zeros()..end)
    }
}

/// The bits of the subclusters in `range`.
fn mask(range: Range<u32>) -> u32 {
    debug_assert!(range.start <= range.end && range.end <= SUBCLUSTERS);
    ((1_u64 << range.end) - (1 << range.start)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_is_read_and_written_back() {
        for bitmap in [0, 1, 0xffff_ffff, 0xffff_ffff << 32, 0x8000_0001_0000_0102] {
            assert_eq!(Subclusters::parse(bitmap).expect("valid").bitmap(), bitmap);
        }
        Subclusters::parse(1 << 5 | 1 << 37).expect_err("subcluster 5 is both");
        Subclusters::parse(u64::MAX).expect_err("all are both");
    }

    #[test]
    fn a_change_touches_its_range_alone() {
        let mixed = Subclusters::UNALLOCATED.with_allocated(3..9).with_zero(8..32);
        let kinds: Vec<_> = (0..32).map(|index| mixed.get(index)).collect();
        assert_eq!(kinds[2], Subcluster::Unallocated);
        assert!(kinds[3..8].iter().all(|&kind| kind == Subcluster::Allocated));
        assert!(kinds[8..].iter().all(|&kind| kind == Subcluster::Zero));
        assert_eq!(mixed.with_allocated(0..32), Subclusters::ALLOCATED);
        assert_eq!(mixed.with_zero(0..32), Subclusters::ZERO);
        assert_eq!(mixed.with_zero(4..4), mixed);
    }

    #[test]
    fn runs_end_where_the_kind_changes() {
        let mixed = Subclusters::UNALLOCATED.with_allocated(3..9).with_zero(9..32);
        let counts: Vec<_> = [0, 2, 3, 8, 9, 31].map(|index| mixed.count_alike(index)).into();
        assert_eq!(counts, [3, 1, 6, 1, 23, 1]);
        assert_eq!(Subclusters::ALLOCATED.count_alike(0), 32);
        assert_eq!(Subclusters::UNALLOCATED.count_alike(7), 25);
        assert_eq!(mixed.allocated_span(), Some(3..9));
        assert_eq!(Subclusters::ALLOCATED.allocated_span(), Some(0..32));
        assert_eq!(Subclusters::ZERO.allocated_span(), None);
        assert!(mixed.are_allocated(3..9) && !mixed.are_allocated(2..9));
    }
}
