//! What a check can find, and the line that tells a person.

use std::fmt;

use super::fault::{Fault, Growth};
use crate::addr::{ClusterCount, HostBlock, HostCluster};

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
    /// A step of a repair; what it repairs is told and counted by itself.
    Step,
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
    /// The refcount structures are made anew.
    Rebuilding,
    /// A repair changes an entry of a table.
    EntryChanged(EntryChange),
    /// A repair removes a snapshot that cannot be used.
    SnapshotDropped {
        /// The snapshot's identifier.
        id: String,
        /// The snapshot's name.
        name: String,
    },
    /// A repair lets go of the bitmaps, since they cannot be read.
    BitmapsDropped,
    /// A repair makes counts wider, since they cannot tell how often a cluster is used.
    CountsWidened {
        /// Bits of a count from now on.
        bits: u32,
    },
    /// Snapshots at the end of their table are cut off.
    SnapshotsDiscarded {
        /// How many.
        count: u32,
        /// Whether their table is too large, rather than their number.
        too_big: bool,
    },
    /// A snapshot's extra data is cut off.
    SnapshotExtraDiscarded {
        /// Position of its entry.
        index: u32,
        /// Bytes of the extra data.
        size: u32,
        /// Bytes that are left.
        max: u32,
    },
    /// A snapshot's entry lacks fields that version 3 demands.
    SnapshotIncomplete {
        /// Position of the entry.
        index: u32,
        /// Whether it is written anew.
        repaired: bool,
    },
    /// The snapshot table cannot be read.
    SnapshotTableUnusable {
        /// Why, and what can be done.
        reason: String,
    },
    /// A part of an authenticated image is not what was written there.
    Unsealed {
        /// Which part, with its place in the file.
        what: String,
        /// Whether it was made anew from another copy.
        repaired: bool,
    },
    /// Blocks of an authenticated image to which its tree leads more than once, or which its map says are free.
    BlocksMisused {
        /// The first of them.
        first: HostBlock,
        /// How many.
        count: u64,
        /// Whether it is the map that contradicts the tree.
        by_map: bool,
    },
    /// Blocks of an authenticated image that are in use for nothing.
    BlocksLeaked {
        /// The first of them.
        first: HostBlock,
        /// How many.
        count: u64,
    },
    /// Nothing is repaired, since more would be lost than won.
    NotRepaired {
        /// Why.
        reason: String,
    },
}

/// An entry that a repair changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryChange {
    /// Which kind of table: `L1` or `L2`.
    pub table: &'static str,
    /// Where that table lay, in bytes of the file.
    pub at: u64,
    /// Position of the entry.
    pub index: u64,
    /// The entry as it was.
    pub old: u64,
    /// The entry as it is now.
    pub new: u64,
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Leaked { repaired: true, .. } => Severity::LeakFixed,
            Self::Leaked { .. } | Self::BlocksLeaked { .. } => Severity::Leak,
            Self::Undercounted { repaired: true, .. }
            | Self::Unsealed { repaired: true, .. }
            | Self::CopiedFlagOfTable { repaired: true, .. }
            | Self::CopiedFlagOfCluster { repaired: true, .. }
            | Self::SnapshotsDiscarded { .. }
            | Self::SnapshotExtraDiscarded { .. }
            | Self::SnapshotIncomplete { repaired: true, .. }
            | Self::Fault(
                Fault::RefcountBlockOutside { growth: Growth::Done, .. }
                | Fault::PreallocatedUnaligned { repaired: true, .. },
            ) => Severity::CorruptionFixed,
            Self::RefcountUnknown { .. }
            | Self::TooManyUnalignedTables
            | Self::RebuildNeeded
            | Self::SnapshotTableUnusable { .. } => Severity::CheckError,
            Self::Rebuilding
            | Self::EntryChanged(_)
            | Self::SnapshotDropped { .. }
            | Self::BitmapsDropped
            | Self::CountsWidened { .. }
            | Self::NotRepaired { .. } => Severity::Step,
            Self::SnapshotIncomplete { .. }
            | Self::Undercounted { .. }
            | Self::CopiedFlagOfTable { .. }
            | Self::CopiedFlagOfCluster { .. }
            | Self::Unsealed { .. }
            | Self::BlocksMisused { .. }
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
                    | Fault::RefcountBlockOutside { growth: Growth::Refused, .. }
            )
        )
    }

    /// Whether it is more than a count or a flag that disagrees.
    pub(super) fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Fault(_)
                | Self::RefcountUnknown { .. }
                | Self::TooManyUnalignedTables
                | Self::SnapshotIncomplete { .. }
        )
    }

    /// Whether it casts doubt on the references themselves: a damaged entry may have meant another cluster.
    pub(super) fn hides_references(&self) -> bool {
        match self {
            Self::TooManyUnalignedTables => true,
            Self::Fault(fault) => !fault.is_of_refcounts(),
            _ => false,
        }
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
            Self::Rebuilding => f.write_str("Rebuilding refcount structure"),
            Self::EntryChanged(EntryChange { table, at, index, old, new }) => {
                write!(
                    f,
                    "Repairing {table} table at {at:#x}: entry {index} is {old:#x}, now {new:#x}"
                )
            }
            Self::SnapshotDropped { id, name } => {
                write!(f, "Removing snapshot {id} ({name}), which cannot be used")
            }
            Self::BitmapsDropped => f.write_str("Removing all bitmaps, which cannot be read"),
            Self::CountsWidened { bits } => write!(f, "Making refcounts {bits} bits wide"),
            Self::SnapshotsDiscarded { count, too_big } => {
                let why = if *too_big { " (snapshot table is too big)" } else { "" };
                write!(f, "Discarding {count} overhanging snapshots{why}")
            }
            Self::SnapshotExtraDiscarded { index, size, max } => write!(
                f,
                "Discarding too much extra metadata in snapshot table entry {index} ({size} > {max})"
            ),
            Self::SnapshotIncomplete { index, repaired } => {
                write!(f, "{} snapshot table entry {index} is incomplete", verb_of(*repaired))
            }
            Self::SnapshotTableUnusable { reason } => write!(f, "ERROR {reason}"),
            Self::Unsealed { what, repaired } => {
                write!(f, "{} {what} is not what was written there", verb_of(*repaired))
            }
            Self::BlocksMisused { first, count, by_map } => {
                let why =
                    if *by_map { "in use, but free in the map of blocks" } else { "used twice" };
                let (first, last) = (first.get(), first.get() + count - 1);
                write!(f, "ERROR blocks {first} to {last} are {why}")
            }
            Self::BlocksLeaked { first, count } => {
                write!(f, "Leaked blocks {} to {}", first.get(), first.get() + count - 1)
            }
            Self::NotRepaired { reason } => write!(f, "Nothing is repaired: {reason}"),
            Self::Fault(fault) => fault.fmt(f),
            Self::RefcountUnknown { first, count } => {
                let (first, last) = (first.get(), first.get() + count - 1);
                write!(f, "Can't get refcount for clusters {first} to {last}")
            }
        }
    }
}

pub(super) fn verb_of(repaired: bool) -> &'static str {
    if repaired { "Repairing" } else { "ERROR" }
}
