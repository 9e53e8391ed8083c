//! Bugs that image engines have really had, to be put back one at a time: they show that the tests can fail.
//!
//! Only builds with the feature `seeded-bugs`, which no program turns on, can have any of them; in all others
//! [`Bug::is_seeded`] is a constant.

/// A bug. What is said of each is what the engine does wrong while it is seeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// Mappings may reach the disk before the counts and data that they rest on.
    NoBarrierBeforeMappings,
    /// Mappings may reach the disk before the data in an external file that they name.
    DataFileNotSynced,
    /// The hole of a discarded cluster of an external data file is punched although it is in use again.
    DataPunchedWhileInUse,
    /// Zeros of a raw data file are in the mapping alone.
    RawDataKeepsZeroed,
    /// A write goes to a raw data file before its mapping is durable.
    RawDataBeforeMapping,
    /// A refcount table entry may reach the disk before the block that it names.
    NoBarrierBeforeRefcountTable,
    /// A flush is acknowledged before its mappings are durable.
    NoBarrierBeforeAcknowledgement,
    /// The header may name a larger refcount table before it is durable.
    NoBarrierBeforeLargerTable,
    /// The header may name a longer L1 table before it is durable.
    NoBarrierBeforeLongerL1,
    /// A header that is replaced may be switched to before all of it is durable.
    NoBarrierBetweenHeaderSteps,
    /// An image names another backing file before what differs there is durable in the image.
    BackingBeforeData,
    /// The header may name the L1 table of an emptied image before it is durable.
    NoBarrierBeforeEmptyL1,
    /// A disk has its new size before what was behind its end reads as zeros.
    SizeBeforeZeros,
    /// What a backing file has behind the old end of a disk shows when it grows.
    GrowthShowsBacking,
    /// A change may reach the disk before the mark that the image is being changed.
    NoBarrierAfterMark,
    /// The mark says that the image was closed before everything else is durable.
    MarkedCleanTooEarly,
    /// The header may name a new snapshot table or L1 table before it is durable.
    NoBarrierBeforeSnapshotSwitch,
    /// Counts and flags may change before the header is durable that says they may be wrong.
    NoBarrierAfterSnapshotSwitch,
    /// The dirty bit is cleared before counts and flags are durable.
    DirtyClearedTooEarly,
    /// The dirty bit is not set while counts and flags are behind.
    SettledWithoutDirty,
    /// In version 2, a snapshot comes before the counts of what it shares.
    SnapshotBeforeCounts,
    /// In version 2, a snapshot comes before the COPIED flags of what it shares are cleared.
    SnapshotBeforeFlags,
    /// In version 2, the counts of a snapshot are lowered while the header names it.
    SnapshotFreedTooEarly,
    /// COPIED flags stay where a snapshot shares a cluster.
    FlagsStayAfterSnapshot,
    /// A new image's header may reach the disk before what it names.
    NoBarrierBeforeNewHeader,
    /// A flush joins the one that is running, which may not carry what it is to make durable.
    FlushJoinsTheRunningOne,
    /// After a failed flush the next one succeeds, although the host has forgotten what it could not write.
    FailedFlushIsTriedAgain,
    /// Metadata whose write failed counts as written.
    FailedWriteCountsAsWritten,
    /// What a failed flush left in the page cache is taken for what is on disk.
    CacheIsTrusted,
    /// What a failed flush may have lost is read.
    LostMappingsAreRead,
    /// A cluster is freed before its unlink is durable (qcow2-rs).
    ReusedBeforeUnlinkIsDurable,
    /// A cluster is freed while requests in flight can still see it.
    ReusedBeforeDrained,
    /// A hole is punched after the cluster may have been handed out again (Cloud Hypervisor 8624).
    PunchedAfterFreed,
    /// A discard frees the cluster, and the table goes on to name it.
    StaleMappingAfterDiscard,
    /// A new refcount block does not count itself.
    BlockDoesNotCountItself,
    /// A cluster that is in use is handed out (Cloud Hypervisor 8358).
    UsedClusterIsClaimed,
    /// Clusters claimed for a request that failed are never freed.
    FailedClaimLeaks,
    /// A shared L2 table is released before its copy has a place (Cloud Hypervisor 8606).
    TableReleasedBeforeClaim,
    /// A cluster that a snapshot shares is written in place (Cloud Hypervisor: COPIED not looked at).
    SharedClusterWrittenInPlace,
    /// An L2 table that a snapshot shares is changed in place.
    SharedTableChangedInPlace,
    /// A partial write of a shared or unallocated cluster leaves zeros around it (qcow2-rs).
    CopyOnWriteForgets,
    /// A reused cluster is taken for one that reads as zeros.
    ReusedTakenForFresh,
    /// A cluster is mapped before its data has been written.
    LinkedBeforeWritten,
    /// Where a part of a cluster is filled, others that were filled meanwhile are forgotten.
    SubclustersForgotten,
    /// A cluster of which a part is filled counts as filled as a whole.
    SubclustersTakenForFilled,
    /// A discard lets the backing file show through (qcow2-rs).
    DiscardShowsBacking,
    /// Zeroing where nothing is mapped lets the backing file show through (Cloud Hypervisor 8245).
    ZeroingShowsBacking,
    /// What surrounds a first write in an encrypted image is left as the file has it.
    FreshTakenForEncryptedZeros,
    /// What lies behind the end of a short backing file is left as it was in memory.
    ShortBackingRead,
    /// Of a compressed cluster that lies in two clusters only one is freed (Cloud Hypervisor 7537).
    CompressedFreedInPart,
    /// A compressed cluster that is packed behind another one is not counted.
    PackedNotCounted,
    /// Of a compressed cluster that reaches into another cluster of the file only the second one is counted.
    PackedCountedInPart,
    /// The place behind a compressed cluster is handed out twice.
    PackedTwice,
    /// Two compressed clusters in one cluster of the file lower its count by one together.
    PackedFreedOnce,
    /// A compressed cluster is mapped before its data has been written.
    PackedBeforeWritten,
    /// What a compressed cluster was unpacked to is kept although its place is free.
    FreedStaysDecoded,
    /// Where a cluster was found is still believed while its mapping changes.
    KnownPlaceStays,
    /// Changed metadata is evicted from the cache.
    DirtySliceEvicted,
    /// Metadata is loaded again while it is being written.
    LoadedWhileWritten,
    /// Nobody wakes those who wait for a cluster.
    LostWakeup,
    /// A bitmap is said to be valid while what it has to record is being written.
    BitmapValidWhileWritten,
    /// Nobody says that a bitmap is in use before the first change.
    BitmapInUseTooLate,
    /// A zeroing is not recorded in bitmaps.
    ZeroingNotRecorded,
    /// The header may name bitmaps before they are durable.
    NoBarrierBeforeBitmaps,
    /// The size of a disk changes while its bitmaps claim to be valid.
    BitmapValidWhileResized,
    /// In a compaction, a pointer to a cluster's new place may be durable before its count and content are.
    MovedBeforeCopied,
    /// In a compaction, a cluster's old place is free before all pointers to it have changed durably.
    MovedFreedTooEarly,
    /// A cluster is used that lies across the end of the file.
    ClusterAcrossTheEnd,
    /// A redo log is emptied before what it records is in the tables of the file.
    RedoEmptiedTooEarly,
    /// A discard or a zeroing is in no redo log.
    UnmapNotRecorded,
    /// A write whose record finds no room in the redo log is acknowledged all the same.
    UnrecordedAcknowledged,
    /// What a redo log records is kept although a flush has lost it.
    RedoOutlivesLostFlush,
    /// A redo log is replayed although the sync of an open has lost what its records name.
    SessionOutlivesLostSync,
    /// A replay does not raise the counts of what it maps.
    ReplayCountsNothing,
    /// A replay maps clusters that are counted for somebody else.
    ReplayTakesWhatIsNamed,
    /// A redo log of another session is replayed.
    StaleRedoIsReplayed,
    /// A replay begins a session of its own before all of it is in the file.
    ReplayForgetsSession,
    /// In an authenticated image, a root may be durable before what it leads to.
    NoBarrierBeforeRoot,
    /// In an authenticated image, a flush is acknowledged before its root is durable.
    NoBarrierAfterRoot,
    /// In an authenticated image, the tree leads to a cluster before it has been written.
    SealedLinkedBeforeWritten,
    /// In an authenticated image, blocks are used again although the newest durable root leads to them.
    SealedFreedTooEarly,
    /// In an authenticated image, blocks are used again while requests in flight still read them.
    SealedReusedBeforeDrained,
    /// In an authenticated image, blocks become free to which a snapshot leads.
    SealedSnapshotFreed,
    /// A sweep takes for unused what has been taken since it began.
    SweepForgetsNew,
}

#[cfg(feature = "seeded-bugs")]
thread_local! {
    static SEEDED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

impl Bug {
    /// Whether this thread is to have the bug.
    #[cfg(feature = "seeded-bugs")]
    pub(crate) fn is_seeded(self) -> bool {
        SEEDED.get() == Some(self)
    }

    /// Whether this thread is to have the bug: never, in this build.
    #[cfg(not(feature = "seeded-bugs"))]
    #[expect(clippy::unused_self, reason = "the build with the bugs looks at it")]
    pub(crate) const fn is_seeded(self) -> bool {
        false
    }

    /// Runs `action` with the bug on this thread.
    #[cfg(feature = "seeded-bugs")]
    pub fn seeded<T>(self, action: impl FnOnce() -> T) -> T {
        /// Takes the bug out again, also where `action` panics.
        struct Restore(Option<Bug>);
        impl Drop for Restore {
            fn drop(&mut self) {
                SEEDED.set(self.0);
            }
        }
        let _restore = Restore(SEEDED.replace(Some(self)));
        action()
    }
}
