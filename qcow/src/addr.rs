//! Addresses and counts: what is where, and in which address space.
//!
//! A guest offset is a byte of the virtual disk, a host offset a byte of the image file. Both come in bytes and in
//! clusters, and mixing them up is how images are lost, so each is a type of its own with a private field. Only
//! [`Geometry`], which alone knows the cluster size, shifts and masks them.

use std::collections::HashMap;
use std::fmt;

use crate::limits::{
    CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, EXTENDED_L2_CLUSTER_BITS_MIN, HOST_OFFSET_BITS,
    REFCOUNT_ORDER_MAX, SECTOR_BYTES, SLICE_BYTES_MAX,
};

/// A map by addresses, for lookups on the request path: hashed in a few instructions, from another seed each time.
pub type AddressMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw value; the caller vouches for its unit and address space.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw value, for messages, on-disk fields and system calls.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// This address moved up by `distance` of its own unit; `None` where it would pass 2^64.
            pub fn checked_add(self, distance: u64) -> Option<Self> {
                self.0.checked_add(distance).map(Self)
            }

            /// This address moved up by `distance` of its own unit, which must not pass 2^64.
            #[must_use]
            #[inline]
            pub fn plus(self, distance: u64) -> Self {
                Self(self.0.checked_add(distance).expect("an address beyond 2^64"))
            }

            /// How far `self` lies behind `earlier`, in the unit of both.
            pub fn distance_from(self, earlier: Self) -> u64 {
                self.0.checked_sub(earlier.0).expect("the earlier address lies behind the later one")
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A byte of the virtual disk that the guest sees.
    GuestOffset
);
address!(
    /// A byte of the image file.
    HostOffset
);
address!(
    /// A cluster of the virtual disk, counted from its start.
    GuestCluster
);
address!(
    /// A cluster of the image file, counted from its start.
    HostCluster
);
address!(
    /// A subcluster of the virtual disk, counted from its start; without extended L2 entries the same as a cluster.
    GuestSubcluster
);

address!(
    /// A block of 4 KiB of the file of an authenticated image, counted from its start.
    HostBlock
);

/// A number of clusters of either space.
pub type ClusterCount = u64;

/// Index into an L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct L1Index(pub usize);

/// Index into an L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct L2Index(pub usize);

/// One slice of a table that fills whole clusters of the file: the unit in which metadata is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceKey {
    /// The table's cluster.
    pub table: HostCluster,
    /// The slice's position in that cluster, counted in slices.
    pub index: u32,
}

/// Cluster size, refcount width and kind of L2 entries of one image, and all the arithmetic that follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    extended_l2: bool,
}

impl Geometry {
    /// The geometry of a validated header with standard L2 entries: `cluster_bits` in 9..=21, `refcount_order` in 0..=6.
    pub fn new(cluster_bits: u32, refcount_order: u32) -> Self {
        assert!((CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&cluster_bits));
        assert!(refcount_order <= REFCOUNT_ORDER_MAX);
        Self { cluster_bits, refcount_order, extended_l2: false }
    }

    /// The same with extended L2 entries, if `extended_l2`; then clusters have at least 16 KiB.
    #[must_use]
    pub fn with_extended_l2(self, extended_l2: bool) -> Self {
        assert!(!extended_l2 || self.cluster_bits >= EXTENDED_L2_CLUSTER_BITS_MIN);
        Self { extended_l2, ..self }
    }

    /// Whether L2 entries are 16 bytes wide and describe 32 subclusters each.
    pub const fn has_extended_l2(self) -> bool {
        self.extended_l2
    }

    /// log2 of the subclusters of a cluster.
    const fn subclusters_order(self) -> u32 {
        if self.extended_l2 { 5 } else { 0 }
    }

    /// Subclusters of a cluster: 32 with extended L2 entries, else one.
    pub const fn subclusters_per_cluster(self) -> u32 {
        1 << self.subclusters_order()
    }

    /// Bytes of a subcluster, at least 512; without extended L2 entries those of a cluster.
    pub const fn subcluster_size(self) -> u64 {
        self.cluster_size() >> self.subclusters_order()
    }

    /// The subcluster that holds `offset`.
    pub const fn guest_subcluster(self, offset: GuestOffset) -> GuestSubcluster {
        GuestSubcluster(offset.0 >> (self.cluster_bits - self.subclusters_order()))
    }

    /// First byte of `subcluster`.
    pub const fn subcluster_start(self, subcluster: GuestSubcluster) -> GuestOffset {
        GuestOffset(subcluster.0 << (self.cluster_bits - self.subclusters_order()))
    }

    /// The first subcluster of `cluster`.
    pub const fn first_subcluster(self, cluster: GuestCluster) -> GuestSubcluster {
        GuestSubcluster(cluster.0 << self.subclusters_order())
    }

    /// The cluster that `subcluster` is a part of.
    pub const fn cluster_of(self, subcluster: GuestSubcluster) -> GuestCluster {
        GuestCluster(subcluster.0 >> self.subclusters_order())
    }

    /// First byte of subcluster `index` of `cluster`; with the number of subclusters, the first byte behind the cluster.
    pub const fn offset_in(self, cluster: GuestCluster, index: u32) -> GuestOffset {
        GuestOffset((cluster.0 << self.cluster_bits) + index as u64 * self.subcluster_size())
    }

    /// The index of `subcluster` in its cluster.
    pub const fn subcluster_index(self, subcluster: GuestSubcluster) -> u32 {
        subcluster.0 as u32 & (self.subclusters_per_cluster() - 1)
    }

    /// log2 of the cluster size in bytes.
    #[inline]
    pub const fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Bytes of a cluster.
    #[inline]
    pub const fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Clusters that `len` bytes fill, the last one perhaps in part.
    pub const fn clusters_for(self, len: u64) -> ClusterCount {
        len.div_ceil(self.cluster_size())
    }

    /// Bytes of `count` clusters.
    pub fn bytes(self, count: ClusterCount) -> u64 {
        count.checked_mul(self.cluster_size()).expect("a cluster count beyond 2^64 bytes")
    }

    /// The cluster that holds `offset`.
    pub const fn guest_cluster(self, offset: GuestOffset) -> GuestCluster {
        GuestCluster(offset.0 >> self.cluster_bits)
    }

    /// First byte of `cluster`.
    pub const fn guest_start(self, cluster: GuestCluster) -> GuestOffset {
        GuestOffset(cluster.0 << self.cluster_bits)
    }

    /// Distance of `offset` from the start of its cluster, in bytes.
    pub const fn in_guest_cluster(self, offset: GuestOffset) -> u64 {
        offset.0 & (self.cluster_size() - 1)
    }

    /// Whether `len` bytes at `offset` lie in one cluster.
    pub const fn is_inside_cluster(self, offset: GuestOffset, len: u64) -> bool {
        len <= self.cluster_size() - self.in_guest_cluster(offset)
    }

    /// The cluster that holds `offset`.
    #[inline]
    pub const fn host_cluster(self, offset: HostOffset) -> HostCluster {
        HostCluster(offset.0 >> self.cluster_bits)
    }

    /// First byte of `cluster`.
    #[inline]
    pub const fn host_start(self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0 << self.cluster_bits)
    }

    /// Distance of `offset` from the start of its cluster, in bytes.
    pub const fn in_host_cluster(self, offset: HostOffset) -> u64 {
        offset.0 & (self.cluster_size() - 1)
    }

    /// Whether `offset` is the first byte of a cluster.
    #[inline]
    pub const fn is_cluster_aligned(self, offset: u64) -> bool {
        offset & (self.cluster_size() - 1) == 0
    }

    /// The clusters that `len` bytes at `offset` touch: the first one, and how many.
    pub fn host_span(self, offset: HostOffset, len: u64) -> (HostCluster, ClusterCount) {
        let first = self.host_cluster(offset);
        (first, self.clusters_for(self.in_host_cluster(offset) + len))
    }

    /// Bytes of an L2 entry: 8, or 16 for extended ones.
    #[inline]
    pub const fn l2_entry_bytes(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    pub const fn l2_entries(self) -> u64 {
        self.cluster_size() / self.l2_entry_bytes()
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub const fn l1_entries_for(self, size: u64) -> u64 {
        self.clusters_for(size).div_ceil(self.l2_entries())
    }

    /// The L1 entry that covers `cluster`.
    pub const fn l1_index(self, cluster: GuestCluster) -> L1Index {
        L1Index((cluster.0 / self.l2_entries()) as usize)
    }

    /// The entry of `cluster` in its L2 table.
    pub const fn l2_index(self, cluster: GuestCluster) -> L2Index {
        L2Index((cluster.0 % self.l2_entries()) as usize)
    }

    /// The guest cluster behind entry `l2` of the table behind entry `l1`.
    pub const fn guest_cluster_at(self, l1: L1Index, l2: L2Index) -> GuestCluster {
        GuestCluster(l1.0 as u64 * self.l2_entries() + l2.0 as u64)
    }

    /// log2 of the refcount width in bits.
    #[inline]
    pub const fn refcount_order(self) -> u32 {
        self.refcount_order
    }

    /// Width of a refcount in bits: 1, 2, 4, 8, 16, 32 or 64.
    pub const fn refcount_bits(self) -> u32 {
        1 << self.refcount_order
    }

    /// Largest count that a refcount entry can hold.
    #[inline]
    pub const fn refcount_max(self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Refcounts in one refcount block.
    #[inline]
    pub const fn refcounts_per_block(self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// The refcount table entry whose block counts `cluster`.
    #[inline]
    pub const fn refcount_block_index(self, cluster: HostCluster) -> u64 {
        cluster.0 >> (self.cluster_bits + 3 - self.refcount_order)
    }

    /// The entry of `cluster` in its refcount block.
    #[inline]
    pub const fn index_in_refcount_block(self, cluster: HostCluster) -> u64 {
        cluster.0 & (self.refcounts_per_block() - 1)
    }

    /// First cluster that the refcount block at table entry `index` counts.
    pub const fn refcount_block_first(self, index: u64) -> HostCluster {
        HostCluster(index * self.refcounts_per_block())
    }

    /// Bytes of a metadata slice: a cluster, but at most [`SLICE_BYTES_MAX`].
    pub const fn slice_bytes(self) -> u64 {
        if self.cluster_size() < SLICE_BYTES_MAX { self.cluster_size() } else { SLICE_BYTES_MAX }
    }

    /// Slices of a table that fills one cluster.
    pub const fn slices_per_table(self) -> u32 {
        (self.cluster_size() / self.slice_bytes()) as u32
    }

    /// L2 entries in one slice.
    pub const fn l2_entries_per_slice(self) -> u64 {
        self.slice_bytes() / self.l2_entry_bytes()
    }

    /// The slice that holds entry `index` of the L2 table at `table`, and the entry's place in it.
    pub const fn l2_slice(self, table: HostCluster, index: L2Index) -> (SliceKey, usize) {
        let per = self.l2_entries_per_slice();
        let (slice, at) = (index.0 as u64 / per, index.0 as u64 % per);
        (SliceKey { table, index: slice as u32 }, at as usize)
    }

    /// Refcounts in one slice.
    pub const fn refcounts_per_slice(self) -> u64 {
        (self.slice_bytes() * 8) >> self.refcount_order
    }

    /// The slice of the refcount block at `block` that counts `cluster`, and the count's place in it.
    pub const fn refcount_slice(
        self,
        block: HostCluster,
        cluster: HostCluster,
    ) -> (SliceKey, usize) {
        let at = self.index_in_refcount_block(cluster);
        let per = self.refcounts_per_slice();
        (SliceKey { table: block, index: (at / per) as u32 }, (at % per) as usize)
    }

    /// Where a slice lies in the file.
    pub const fn slice_start(self, key: SliceKey) -> HostOffset {
        HostOffset((key.table.0 << self.cluster_bits) + key.index as u64 * self.slice_bytes())
    }

    /// The first cluster that no table entry can name.
    pub const fn host_cluster_end(self) -> HostCluster {
        HostCluster(1 << (HOST_OFFSET_BITS - self.cluster_bits))
    }

    /// Whether `len` bytes at `offset` stay below the highest offset that a table entry can name.
    pub fn is_addressable(self, offset: HostOffset, len: u64) -> bool {
        offset.0.checked_add(len).is_some_and(|end| end <= 1 << HOST_OFFSET_BITS)
    }
}

/// `value` rounded down to whole sectors of 512 bytes.
pub const fn sector_floor(value: u64) -> u64 {
    value & !(SECTOR_BYTES - 1)
}

/// `value` rounded up to whole sectors of 512 bytes; `None` where that passes 2^64.
pub const fn sector_ceil(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(SECTOR_BYTES)
}
