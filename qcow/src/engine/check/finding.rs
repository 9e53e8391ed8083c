//! What a check can find, and the line that tells a person.

use std::fmt;

use super::fault::Fault;
use crate::addr::{ClusterCount, HostCluster};

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Data is lost, or the next write may destroy some.
    Corruption,
    /// Space is wasted.
    Leak,
    /// Something could not be checked or repaired.
    CheckError,
    /// A corruption that is now repaired.
    CorruptionFixed,
    /// A leak that is now repaired.
    LeakFixed,
}

/// One thing that is wrong with an image. Entries are raw words as they are on disk; offsets are bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A cluster is counted higher than it is used.
    Leaked {
        /// Which one.
        cluster: HostCluster,
        /// Its count on disk.
        refcount: u64,
        /// How often it is used.
        reference: u64,
        /// Whether the count was lowered.
        repaired: bool,
    },
    /// A cluster is used more often than it is counted.
    Undercounted {
        /// Which one.
        cluster: HostCluster,
        /// Its count on disk.
        refcount: u64,
        /// How often it is used.
        reference: u64,
        /// Whether the count was raised.
        repaired: bool,
    },
    /// The COPIED flag of an L1 entry contradicts the L2 table's count.
    CopiedFlagOfTable {
        /// Position of the entry.
        l1_index: u64,
        /// The entry.
        entry: u64,
        /// The L2 table's count.
        refcount: u64,
        /// Whether the flag was corrected.
        repaired: bool,
    },
    /// The COPIED flag of an L2 entry contradicts the cluster's count.
    CopiedFlagOfCluster {
        /// The entry.
        entry: u64,
        /// The cluster's count.
        refcount: u64,
        /// Whether the flag was corrected.
        repaired: bool,
    },
    /// An entry or a table is wrong in itself.
    Fault(Fault),
    /// The counts of some clusters cannot be read.
    RefcountUnknown {
        /// The first of them.
        first: HostCluster,
        /// How many.
        count: ClusterCount,
    },
    /// More L2 tables than a damaged image can have by accident are unaligned; the rest was not followed.
    TooManyUnalignedTables,
    /// The refcount structures are too damaged to be repaired in place; nothing was.
    RebuildNeeded,
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Leaked { repaired: true, .. } => Severity::LeakFixed,
            Self::Leaked { .. } => Severity::Leak,
            Self::Undercounted { repaired: true, .. }
            | Self::CopiedFlagOfTable { repaired: true, .. }
            | Self::CopiedFlagOfCluster { repaired: true, .. } => Severity::CorruptionFixed,
            Self::RefcountUnknown { .. } | Self::TooManyUnalignedTables | Self::RebuildNeeded => {
                Severity::CheckError
            }
            Self::Undercounted { .. }
            | Self::CopiedFlagOfTable { .. }
            | Self::CopiedFlagOfCluster { .. }
            | Self::Fault(_) => Severity::Corruption,
        }
    }

    /// Whether the refcount structures cannot be repaired in place.
    pub(super) fn needs_rebuild(&self) -> bool {
        matches!(
            self,
            Self::Fault(
                Fault::RefcountTableReservedBits { .. }
                    | Fault::RefcountBlockUnaligned { .. }
                    | Fault::RefcountBlockShared { .. }
            )
        )
    }

    /// Whether it casts doubt on the references themselves: a damaged entry may have meant another cluster.
    pub(super) fn hides_references(&self) -> bool {
        matches!(self, Self::Fault(_) | Self::RefcountUnknown { .. } | Self::TooManyUnalignedTables)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked { cluster, refcount, reference, repaired } => {
                let verb = if *repaired { "Repairing" } else { "Leaked" };
                let cluster = cluster.get();
                write!(f, "{verb} cluster {cluster} refcount={refcount} reference={reference}")
            }
            Self::Undercounted { cluster, refcount, reference, repaired } => {
                let (verb, cluster) = (verb_of(*repaired), cluster.get());
                write!(f, "{verb} cluster {cluster} refcount={refcount} reference={reference}")
            }
            Self::CopiedFlagOfTable { l1_index, entry, refcount, repaired } => write!(
                f,
                "{} OFLAG_COPIED L2 cluster: l1_index={l1_index} l1_entry={entry:x} refcount={refcount}",
                verb_of(*repaired)
            ),
            Self::CopiedFlagOfCluster { entry, refcount, repaired } => write!(
                f,
                "{} OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}",
                verb_of(*repaired)
            ),
            Self::TooManyUnalignedTables => {
                f.write_str("ERROR too many unaligned L2 tables; the rest was not checked")
            }
            Self::RebuildNeeded => f.write_str("ERROR need to rebuild refcount structures"),
            Self::Fault(fault) => fault.fmt(f),
            Self::RefcountUnknown { first, count } => {
                let (first, last) = (first.get(), first.get() + count - 1);
                write!(f, "Can't get refcount for clusters {first} to {last}")
            }
        }
    }
}

fn verb_of(repaired: bool) -> &'static str {
    if repaired { "Repairing" } else { "ERROR" }
}
