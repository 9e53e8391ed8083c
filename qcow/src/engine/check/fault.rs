//! Entries and tables that are wrong in themselves, whatever the counts say. Each is a corruption.

use std::fmt;

use super::finding::verb_of;

/// An entry or a table that breaks a rule of the format. Entries are raw words as they are on disk; offsets are bytes of
/// the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// More tables point to a cluster than a count of this image's width can tell.
    CountOverflow {
        /// First byte of the cluster.
        offset: u64,
    },
    /// An entry names bytes that end a cluster or more behind the end of the file.
    PastEnd {
        /// First byte named.
        offset: u64,
        /// Bytes named.
        len: u64,
    },
    /// An L1 entry has bits set that must be zero.
    L1ReservedBits {
        /// The entry.
        entry: u64,
    },
    /// An L2 table does not start at a cluster boundary.
    L2TableUnaligned {
        /// Where it starts.
        offset: u64,
    },
    /// An L2 entry has bits set that must be zero.
    L2ReservedBits {
        /// The entry.
        entry: u64,
    },
    /// An L2 entry of a version 2 image has the zero flag of version 3.
    ZeroFlagInVersion2 {
        /// The entry.
        entry: u64,
    },
    /// The L2 entry of a compressed cluster has the COPIED flag.
    CompressedCopied {
        /// First byte of the compressed data.
        offset: u64,
    },
    /// A data cluster does not start at a cluster boundary.
    DataUnaligned {
        /// Where it starts.
        offset: u64,
    },
    /// A cluster kept in reserve for zeros does not start at a cluster boundary.
    PreallocatedUnaligned {
        /// Where it starts.
        offset: u64,
        /// Whether the entry lets go of it.
        repaired: bool,
    },
    /// A compressed cluster in an image whose data lies in a file of its own.
    CompressedWithDataFile {
        /// Position of the entry in its table.
        index: u64,
        /// The entry.
        entry: u64,
    },
    /// The extended L2 entry of a compressed cluster tells of subclusters.
    CompressedWithSubclusters {
        /// Position of the entry in its table.
        index: u64,
        /// The entry.
        entry: u64,
    },
    /// An extended L2 entry says of a subcluster both that it is allocated and that it reads as zeros.
    SubclustersContradict {
        /// The cluster.
        offset: u64,
    },
    /// An extended L2 entry without a cluster says of a subcluster that it is allocated.
    SubclustersWithoutCluster,
    /// Snapshots in an image whose data lies in a file of its own.
    SnapshotsWithDataFile {
        /// How many.
        count: u64,
    },
    /// A snapshot's L1 table does not start at a cluster boundary; it was not followed.
    SnapshotL1Unaligned {
        /// The snapshot's identifier.
        id: String,
        /// The snapshot's name.
        name: String,
        /// Where the table claims to start.
        offset: u64,
    },
    /// A snapshot's L1 table is larger than any image needs; it was not followed.
    SnapshotL1TooLarge {
        /// The snapshot's identifier.
        id: String,
        /// The snapshot's name.
        name: String,
        /// Entries that it claims to have.
        entries: u32,
    },
    /// The bitmap directory breaks a rule; no bitmap was followed.
    BitmapDirectory {
        /// Which rule, and where.
        reason: String,
    },
    /// An entry of a bitmap's table breaks a rule.
    BitmapTableEntry {
        /// Which rule.
        reason: String,
    },
    /// A refcount table entry has bits set that must be zero.
    RefcountTableReservedBits {
        /// Position of the entry.
        index: u64,
    },
    /// A refcount block does not start at a cluster boundary.
    RefcountBlockUnaligned {
        /// Position of its entry in the refcount table.
        index: u64,
    },
    /// A refcount block lies behind the end of the file.
    RefcountBlockOutside {
        /// Position of its entry in the refcount table.
        index: u64,
        /// Whether the file was made longer for it.
        growth: Growth,
    },
    /// A refcount block is used as something else, too.
    RefcountBlockShared {
        /// Position of its entry in the refcount table.
        index: u64,
        /// How often its cluster is used.
        reference: u64,
    },
}

impl Fault {
    /// Whether it is one of the refcount structures, which others do not rely on to find what is theirs.
    pub(super) fn is_of_refcounts(&self) -> bool {
        matches!(
            self,
            Self::RefcountTableReservedBits { .. }
                | Self::RefcountBlockUnaligned { .. }
                | Self::RefcountBlockOutside { .. }
                | Self::RefcountBlockShared { .. }
        )
    }
}

/// Whether a file grows for a refcount block that lies behind its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Nobody asked for it.
    NotTried,
    /// It did, and the block is one of zeros now.
    Done,
    /// The block lies too far off.
    Refused,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CountOverflow { offset } => write!(
                f,
                "ERROR: overflow cluster offset={offset:#x}\n\
                 Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a \
                 clean copy if the image cannot be opened for writing"
            ),
            Self::PastEnd { offset, len } => write!(
                f,
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                 offset {offset:#x} size {len:#x}"
            ),
            Self::L1ReservedBits { entry } => {
                write!(f, "ERROR found L1 entry with reserved bits set: {entry:x}")
            }
            Self::L2TableUnaligned { offset } => {
                write!(
                    f,
                    "ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"
                )
            }
            Self::L2ReservedBits { entry } => {
                write!(f, "ERROR found l2 entry with reserved bits set: {entry:x}")
            }
            Self::ZeroFlagInVersion2 { entry } => {
                write!(f, "ERROR found l2 entry with the zero flag in a version 2 image: {entry:x}")
            }
            Self::CompressedCopied { offset } => write!(
                f,
                "ERROR: coffset={offset:#x}: copied flag must never be set for compressed clusters"
            ),
            Self::DataUnaligned { offset } => write!(
                f,
                "ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted."
            ),
            Self::PreallocatedUnaligned { offset, repaired } => write!(
                f,
                "{} offset={offset:x}: Preallocated cluster is not properly aligned; L2 entry corrupted.",
                verb_of(*repaired)
            ),
            Self::CompressedWithDataFile { index, entry } => {
                write!(f, "ERROR compressed cluster {index} with data file, entry=0x{entry:x}")
            }
            Self::CompressedWithSubclusters { index, entry } => write!(
                f,
                "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, \
                 entry=0x{entry:x}"
            ),
            Self::SubclustersContradict { offset } => write!(
                f,
                "ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap"
            ),
            Self::SubclustersWithoutCluster => {
                f.write_str("ERROR: Unallocated cluster has non-zero subcluster allocation map")
            }
            Self::SnapshotsWithDataFile { count } => {
                write!(f, "ERROR {count} snapshots in image with data file")
            }
            Self::SnapshotL1Unaligned { id, name, offset } => write!(
                f,
                "ERROR snapshot {id} ({name}) l1_offset={offset:#x}: L1 table is not cluster aligned; \
                 snapshot table entry corrupted"
            ),
            Self::SnapshotL1TooLarge { id, name, entries } => write!(
                f,
                "ERROR snapshot {id} ({name}) l1_size={entries:#x}: L1 table is too large; \
                 snapshot table entry corrupted"
            ),
            Self::BitmapDirectory { reason } => write!(f, "ERROR bitmap directory: {reason}"),
            Self::BitmapTableEntry { reason } => write!(f, "ERROR {reason}"),
            Self::RefcountTableReservedBits { index } => {
                write!(f, "ERROR refcount table entry {index} has reserved bits set")
            }
            Self::RefcountBlockUnaligned { index } => write!(
                f,
                "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
            ),
            Self::RefcountBlockOutside { index, growth } => {
                let verb = verb_of(*growth != Growth::NotTried);
                write!(f, "{verb} refcount block {index} is outside image")?;
                match growth {
                    Growth::Refused => {
                        f.write_str("\nERROR could not resize image: Invalid argument")
                    }
                    Growth::NotTried | Growth::Done => Ok(()),
                }
            }
            Self::RefcountBlockShared { index, reference } => {
                write!(f, "ERROR refcount block {index} refcount={reference}")
            }
        }
    }
}
