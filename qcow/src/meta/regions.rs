//! Which clusters hold metadata, so that nothing else is ever put there, and none of them is ever freed by mistake.
//!
//! Kept for writable images only, and asked before every write and every claim: each answer is one lookup per cluster.
//! An L2 table counts one use for the active L1 table's entry, and one for each entry of a snapshot's L1 table.

use std::fmt;

use crate::addr::{AddressMap, ClusterCount, HostCluster};
use crate::error::{Error, Result};

/// What a cluster of metadata is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The header.
    Header,
    /// The active L1 table.
    L1,
    /// An L2 table that the active L1 table or a snapshot's names.
    L2,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The LUKS header with its key material.
    EncryptionHeader,
    /// The snapshot table.
    SnapshotTable,
    /// The L1 table of a snapshot.
    SnapshotL1,
    /// The directory of persistent bitmaps.
    BitmapDirectory,
    /// The table of a persistent bitmap.
    BitmapTable,
    /// Bits of a persistent bitmap.
    BitmapData,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::L1 => "L1 table",
            Self::L2 => "L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::EncryptionHeader => "encryption header",
            Self::SnapshotTable => "snapshot table",
            Self::SnapshotL1 => "L1 table of a snapshot",
            Self::BitmapDirectory => "bitmap directory",
            Self::BitmapTable => "bitmap table",
            Self::BitmapData => "bits of a bitmap",
        })
    }
}

/// The clusters of metadata, each with what it is and how many pointers name it.
#[derive(Debug, Default)]
pub struct Regions {
    clusters: AddressMap<HostCluster, (Kind, u32)>,
}

impl Regions {
    /// None yet, with room for `count` clusters.
    pub fn with_room(count: usize) -> Self {
        let mut clusters = AddressMap::default();
        clusters.reserve(count);
        Self { clusters }
    }

    /// Notes that one more pointer names these clusters as `kind`.
    ///
    /// # Errors
    /// They are something else already.
    pub fn add(&mut self, kind: Kind, first: HostCluster, count: ClusterCount) -> Result<()> {
        for cluster in (0..count).map(|i| first.plus(i)) {
            let (found, uses) = self.clusters.entry(cluster).or_insert((kind, 0));
            if *found != kind || *uses > 0 && kind != Kind::L2 {
                let number = cluster.get();
                return Err(Error::corrupt(format!("cluster {number} is {found} and {kind}")));
            }
            *uses += 1;
        }
        Ok(())
    }

    /// Takes over where `before` knows bitmaps.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn carry_bitmaps(&mut self, before: &Self) -> Result<()> {
        let kinds = [Kind::BitmapDirectory, Kind::BitmapTable, Kind::BitmapData];
        let bitmaps = before.clusters.iter().filter(|(_, (kind, _))| kinds.contains(kind));
        bitmaps.into_iter().try_for_each(|(&cluster, &(kind, _))| self.add(kind, cluster, 1))
    }

    /// Notes that one pointer fewer names these clusters.
    pub fn remove(&mut self, first: HostCluster, count: ClusterCount) {
        for cluster in (0..count).map(|i| first.plus(i)) {
            if let Some((_, uses)) = self.clusters.get_mut(&cluster) {
                *uses -= 1;
                if *uses == 0 {
                    self.clusters.remove(&cluster);
                }
            }
        }
    }

    /// How often the L2 table in `cluster` is named, as far as that is known; an error names what else lies there.
    pub fn l2_uses(&self, cluster: HostCluster) -> Result<u64> {
        match self.clusters.get(&cluster) {
            None => Ok(0),
            Some((Kind::L2, uses)) => Ok(u64::from(*uses)),
            Some((kind, _)) => {
                let number = cluster.get();
                Err(Error::corrupt(format!("cluster {number} is metadata ({kind})")))
            }
        }
    }

    /// Fails unless every one of these clusters is `kind`, and none is an L2 table with more than one use: what a
    /// snapshot sees too is never changed in place.
    ///
    /// # Errors
    /// Names the first cluster that is something else.
    pub fn check_own(&self, kind: Kind, first: HostCluster, count: ClusterCount) -> Result<()> {
        for cluster in (0..count).map(|i| first.plus(i)) {
            let is = match self.clusters.get(&cluster) {
                Some((found, 1)) if *found == kind => continue,
                Some((found, 1)) => format!("{found}"),
                Some((found, _)) => format!("{found} that is shared, which its COPIED flag denies"),
                None => "not metadata".to_owned(),
            };
            let number = cluster.get();
            return Err(Error::corrupt(format!("cluster {number}, written as {kind}, is {is}")));
        }
        Ok(())
    }

    /// Fails where any of these clusters holds metadata.
    ///
    /// # Errors
    /// Names one of them.
    pub fn check_clear(&self, first: HostCluster, count: ClusterCount) -> Result<()> {
        let end = first.plus(count);
        let hit = if count <= self.clusters.len() as u64 {
            (0..count).find_map(|i| self.clusters.get_key_value(&first.plus(i)))
        } else {
            self.clusters.iter().find(|(cluster, _)| (first..end).contains(cluster))
        };
        match hit {
            None => Ok(()),
            Some((cluster, (kind, _))) => {
                Err(Error::corrupt(format!("cluster {} is metadata ({kind})", cluster.get())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(number: u64) -> HostCluster {
        HostCluster::new(number)
    }

    #[test]
    fn a_cluster_is_one_thing() {
        let mut regions = Regions::default();
        regions.add(Kind::L1, cluster(3), 2).expect("nothing is there yet");
        regions.add(Kind::L2, cluster(4), 1).expect_err("an L1 table lies there");
        regions.add(Kind::L1, cluster(4), 1).expect_err("only L2 tables have several uses");
        assert!(regions.check_clear(cluster(4), 1).is_err());
        regions.check_clear(cluster(5), 100).expect("clear");
    }

    #[test]
    fn a_shared_table_stays_until_its_last_use_ends() {
        let mut regions = Regions::default();
        regions.add(Kind::L2, cluster(7), 1).expect("active");
        regions.check_own(Kind::L2, cluster(7), 1).expect("the active table is the only user");
        regions.add(Kind::L2, cluster(7), 1).expect("a snapshot");
        regions.check_own(Kind::L2, cluster(7), 1).expect_err("shared");
        regions.remove(cluster(7), 1);
        regions.check_clear(cluster(7), 1).expect_err("the snapshot still has it");
        regions.remove(cluster(7), 1);
        regions.check_clear(cluster(7), 1).expect("nobody has it");
    }

    #[test]
    fn a_write_must_go_to_what_it_says() {
        let mut regions = Regions::default();
        regions.add(Kind::RefcountTable, cluster(2), 2).expect("clear");
        regions.check_own(Kind::RefcountTable, cluster(2), 2).expect("it is that");
        regions.check_own(Kind::RefcountTable, cluster(3), 2).expect_err("it ends before");
        regions.check_own(Kind::RefcountBlock, cluster(2), 1).expect_err("it is the table");
    }

    #[test]
    fn a_wide_range_is_searched_as_well_as_a_narrow_one() {
        let mut regions = Regions::default();
        regions.add(Kind::L2, cluster(9), 1).expect("clear");
        for (first, count, clear) in [(0, 9, true), (0, 10, false), (9, 1, false), (10, 50, true)] {
            assert_eq!(
                regions.check_clear(cluster(first), count).is_ok(),
                clear,
                "{first}+{count}"
            );
        }
    }
}
