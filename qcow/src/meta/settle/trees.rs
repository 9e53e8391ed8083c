//! Which L2 tables gain or lose references when L1 tables come and go.

use std::collections::BTreeMap;

use crate::addr::{Geometry, HostCluster};
use crate::error::{Error, Result};
use crate::format::entry::{L1Entry, Owned};

/// What a change means for one L2 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct TableUse {
    /// References that it, and each cluster that it names, gains; or loses, where negative.
    gain: i64,
    /// The active L1 table names it from now on.
    active: bool,
}

/// The L2 tables that a change concerns, in the order of their places in the file.
#[derive(Clone, Debug, Default)]
pub struct Trees {
    tables: BTreeMap<HostCluster, TableUse>,
}

impl Trees {
    /// All that the entries of `l1` lead to gains `gain` references: 1, or -1 where it loses one.
    ///
    /// # Errors
    /// An entry is damaged.
    pub fn add(&mut self, geometry: Geometry, l1: &[u64], gain: i64) -> Result<()> {
        for table in tables_of(geometry, l1) {
            self.tables.entry(table?).or_default().gain += gain;
        }
        Ok(())
    }

    /// The entries of `l1` are those of the active table from now on.
    ///
    /// # Errors
    /// An entry is damaged.
    pub fn activate(&mut self, geometry: Geometry, l1: &[u64]) -> Result<()> {
        for table in tables_of(geometry, l1) {
            self.tables.entry(table?).or_default().active = true;
        }
        Ok(())
    }

    /// All tables.
    pub fn all(&self) -> impl Iterator<Item = HostCluster> + '_ {
        self.tables.keys().copied()
    }

    /// The tables that gain references, and how many.
    pub fn raised(&self) -> impl Iterator<Item = (HostCluster, u64)> + '_ {
        let raised = self.tables.iter().filter(|(_, table)| table.gain > 0);
        raised.map(|(&cluster, table)| (cluster, table.gain.unsigned_abs()))
    }

    /// The tables that lose references, and how many.
    pub fn lowered(&self) -> impl Iterator<Item = (HostCluster, u64)> + '_ {
        let lowered = self.tables.iter().filter(|(_, table)| table.gain < 0);
        lowered.map(|(&cluster, table)| (cluster, table.gain.unsigned_abs()))
    }

    /// The tables that the active L1 table names from now on.
    pub fn active(&self) -> impl Iterator<Item = HostCluster> + '_ {
        self.tables.iter().filter(|(_, table)| table.active).map(|(&cluster, _)| cluster)
    }

    /// Whether the table in `cluster` gains or loses references.
    pub fn changes(&self, cluster: HostCluster) -> bool {
        self.tables.get(&cluster).is_some_and(|table| table.gain != 0)
    }

    /// How many references the table in `cluster` loses.
    pub fn loss(&self, cluster: HostCluster) -> u64 {
        self.tables.get(&cluster).map_or(0, |table| table.gain.min(0).unsigned_abs())
    }
}

fn tables_of(geometry: Geometry, l1: &[u64]) -> impl Iterator<Item = Result<HostCluster>> + '_ {
    l1.iter().enumerate().filter_map(move |(index, &word)| {
        let parsed = L1Entry(word).parse(geometry);
        let named = |e: Error| e.context(format!("L1 entry {index}"));
        parsed.map_err(named).map(|table| table.map(|Owned { cluster, .. }| cluster)).transpose()
    })
}

/// The entries of `l1` without their COPIED flags: of a table whose L2 tables are all shared.
pub fn without_flags(geometry: Geometry, l1: &[u64]) -> Result<Vec<u64>> {
    with_flags(geometry, l1, |_| false)
}

/// The entries of `l1`, each with its COPIED flag as `is_single` says of the table that it names.
///
/// # Errors
/// An entry is damaged.
pub fn with_flags(
    geometry: Geometry,
    l1: &[u64],
    mut is_single: impl FnMut(HostCluster) -> bool,
) -> Result<Vec<u64>> {
    let flagged = l1.iter().map(|&word| {
        Ok(match L1Entry(word).parse(geometry)? {
            None => word,
            Some(table) => {
                let single = is_single(table.cluster);
                L1Entry::to_table(geometry, table.cluster, single).0
            }
        })
    });
    flagged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::entry::COPIED;

    #[test]
    fn what_comes_and_goes_at_once_stays() {
        let geometry = Geometry::new(16, 4);
        let mut trees = Trees::default();
        let (then, now) = ([0x2_0000, 0, 0x3_0000], [0x2_0000, COPIED | 0x4_0000]);
        trees.add(geometry, &then, 1).expect("sound");
        trees.add(geometry, &now, -1).expect("sound");
        trees.activate(geometry, &then).expect("sound");
        let number = |(cluster, count): (HostCluster, u64)| (cluster.get(), count);
        assert_eq!(trees.raised().map(number).collect::<Vec<_>>(), [(3, 1)]);
        assert_eq!(trees.lowered().map(number).collect::<Vec<_>>(), [(4, 1)]);
        assert_eq!(trees.active().map(HostCluster::get).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(trees.loss(HostCluster::new(4)), 1);
        assert_eq!(without_flags(geometry, &now).expect("sound"), [0x2_0000, 0x4_0000]);
        trees.add(geometry, &[0x2_0200], 1).expect_err("unaligned");
    }
}
