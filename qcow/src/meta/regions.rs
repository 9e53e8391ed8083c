//! Which clusters hold metadata, so that nothing else is ever put there, and none of them is ever freed by mistake.
//!
//! Kept for writable images only. The L2 tables of snapshots are not among them: their counts keep them from being
//! handed out.

use std::collections::HashMap;
use std::fmt;

use crate::addr::{ClusterCount, HostCluster};
use crate::error::{Error, Result};

/// What a cluster of metadata is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The header.
    Header,
    /// The active L1 table.
    L1,
    /// An L2 table that the active L1 table names.
    L2,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The snapshot table.
    SnapshotTable,
    /// The L1 table of a snapshot.
    SnapshotL1,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::L1 => "L1 table",
            Self::L2 => "L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::SnapshotL1 => "L1 table of a snapshot",
        })
    }
}

/// The clusters of metadata, each with what it is and how many pointers name it.
#[derive(Debug, Default)]
pub struct Regions {
    clusters: HashMap<HostCluster, (Kind, u32)>,
}

impl Regions {
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

    /// Fails where any of these clusters holds metadata.
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
