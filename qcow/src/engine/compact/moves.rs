//! Which clusters move, and where to.

/// What moves, in the order in which it does: nothing after what points to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Data,
    EncryptedData,
    L2Tables,
    ActiveL1,
    SnapshotL1,
    SnapshotTable,
    BitmapData,
    BitmapTables,
    BitmapDirectory,
    RefcountBlocks,
    RefcountTable,
}

/// A run of clusters that moves as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    /// Its first cluster.
    pub(super) from: u64,
    /// Where that goes.
    pub(super) to: u64,
    /// Clusters.
    pub(super) len: u64,
}

/// Moves of one stage, from different clusters to different clusters.
#[derive(Debug, Default)]
pub(super) struct Moves(Vec<Move>);

impl Moves {
    pub(super) fn push(&mut self, new: Move) {
        match self.0.last_mut() {
            Some(last) if last.from + last.len == new.from && last.to + last.len == new.to => {
                last.len += new.len;
            }
            _ => self.0.push(new),
        }
    }

    /// Lets [`Self::place_of`] find what was pushed.
    pub(super) fn sort(&mut self) {
        self.0.sort_unstable_by_key(|one| one.from);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Move> + '_ {
        self.0.iter().copied()
    }

    /// Where `cluster` goes, if it moves.
    pub(super) fn place_of(&self, cluster: u64) -> Option<u64> {
        let behind = self.0.partition_point(|one| one.from <= cluster);
        let one = self.0.get(behind.checked_sub(1)?)?;
        (cluster < one.from + one.len).then(|| one.to + (cluster - one.from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_and_found() {
        let mut moves = Moves::default();
        for (from, to, len) in [(50, 4, 1), (51, 5, 2), (60, 7, 1), (40, 20, 3)] {
            moves.push(Move { from, to, len });
        }
        moves.sort();
        assert_eq!(moves.iter().count(), 3);
        let places = [39, 40, 42, 43, 49, 50, 52, 53, 60, 61].map(|at| moves.place_of(at));
        let expected =
            [None, Some(20), Some(22), None, None, Some(4), Some(6), None, Some(7), None];
        assert_eq!(places, expected);
    }
}
