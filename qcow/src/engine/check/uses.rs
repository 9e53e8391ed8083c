//! Tables that are used several times, in whole or in part: what overlaps is read once and counted as often as it is used.

use std::ops::{AddAssign, Range, SubAssign};

/// How often something is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Uses {
    /// By the active tables.
    pub(in crate::engine) active: u64,
    /// By the active tables, the snapshots' and all others.
    pub(in crate::engine) total: u64,
}

impl Uses {
    /// One use by the active tables.
    pub(in crate::engine) const ACTIVE: Self = Self { active: 1, total: 1 };
    /// One use by anything else.
    pub(in crate::engine) const OTHER: Self = Self { active: 0, total: 1 };
}

impl AddAssign for Uses {
    fn add_assign(&mut self, other: Self) {
        self.active += other.active;
        self.total += other.total;
    }
}

impl SubAssign for Uses {
    fn sub_assign(&mut self, other: Self) {
        self.active -= other.active;
        self.total -= other.total;
    }
}

/// A range of bytes or clusters, and how often it is used.
pub(in crate::engine) type Used = (Range<u64>, Uses);

/// Cuts ranges that may overlap into ranges that do not, in order, with the uses of all that cover them.
pub(in crate::engine) fn disjoint(ranges: &[Used]) -> Vec<Used> {
    let mut edges: Vec<(u64, bool, Uses)> = Vec::with_capacity(ranges.len() * 2);
    for (range, uses) in ranges.iter().filter(|(range, _)| !range.is_empty()) {
        edges.push((range.start, true, *uses));
        edges.push((range.end, false, *uses));
    }
    edges.sort_unstable_by_key(|&(at, ..)| at);
    let mut cut = Vec::new();
    let (mut opened, mut closed) = (Uses::default(), Uses::default());
    let mut start = 0;
    for (at, opens, uses) in edges {
        let mut current = opened;
        current -= closed;
        if at > start && current.total > 0 {
            cut.push((start..at, current));
        }
        start = at;
        if opens {
            opened += uses;
        } else {
            closed += uses;
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ranges_are_cut_and_their_uses_added() {
        let times = |total| Uses { active: 0, total };
        let cut = disjoint(&[
            (10..20, Uses::OTHER),
            (0..30, Uses::ACTIVE),
            (10..15, Uses::OTHER),
            (40..50, Uses::OTHER),
            (7..7, Uses::OTHER),
        ]);
        let expected = [
            (0..10, Uses::ACTIVE),
            (10..15, Uses { active: 1, total: 3 }),
            (15..20, Uses { active: 1, total: 2 }),
            (20..30, Uses::ACTIVE),
            (40..50, times(1)),
        ];
        assert_eq!(cut, expected);
    }
}
