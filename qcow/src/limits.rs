//! Every limit of the engine, with its reason. Checked before anything is allocated.

/// Smallest cluster: 512 bytes (specification, header field `cluster_bits`).
pub const CLUSTER_BITS_MIN: u32 = 9;
/// Largest cluster: 2 MiB (QEMU's `MAX_CLUSTER_BITS`; the specification leaves it to the implementation).
pub const CLUSTER_BITS_MAX: u32 = 21;
/// Smallest cluster that can be divided into 32 subclusters of at least 512 bytes.
pub const EXTENDED_L2_CLUSTER_BITS_MIN: u32 = 14;
/// Widest refcount entry: `1 << 6` = 64 bits (specification, `refcount_order`).
pub const REFCOUNT_ORDER_MAX: u32 = 6;
/// Largest L1 table in bytes, active or of a snapshot (QEMU's `QCOW_MAX_L1_SIZE`).
pub const L1_BYTES_MAX: u64 = 32 << 20;
/// Largest refcount table in bytes (QEMU's `QCOW_MAX_REFTABLE_SIZE`).
pub const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// Most internal snapshots (QEMU's `QCOW_MAX_SNAPSHOTS`).
pub const SNAPSHOT_COUNT_MAX: u32 = 65_536;
/// Largest snapshot table in bytes (QEMU's `QCOW_MAX_SNAPSHOTS_SIZE`).
pub const SNAPSHOT_TABLE_BYTES_MAX: u64 = 64 << 20;
/// Most extra data of one snapshot table entry in bytes (QEMU's `QCOW_MAX_SNAPSHOT_EXTRA_DATA`).
pub const SNAPSHOT_EXTRA_BYTES_MAX: u32 = 1024;
/// Most bytes of snapshots' L1 tables that a writable open reads to learn where their L2 tables lie: ours. Tables beyond
/// are guarded by their refcounts alone.
pub const SNAPSHOT_L1_BYTES_READ_MAX: u64 = 64 << 20;
/// Most bytes of refcount blocks that a snapshot's creation, use or deletion holds in memory: ours. With 16-bit counts and
/// 64 KiB clusters, 32 TiB of file.
pub const SETTLE_BYTES_MAX: u64 = 1 << 30;
/// Most persistent bitmaps (QEMU's `QCOW2_MAX_BITMAPS`).
pub const BITMAP_COUNT_MAX: u32 = 65_535;
/// Largest bitmap directory in bytes (QEMU's `QCOW2_MAX_BITMAP_DIRECTORY_SIZE`).
pub const BITMAP_DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of one persistent bitmap's bits (QEMU's `BME_MAX_PHYS_SIZE`): what it costs in memory.
pub const BITMAP_BYTES_MAX: u64 = 512 << 20;
/// Most bytes of bits of all bitmaps together that record what is written: ours. A guest that writes everywhere makes
/// them cost that much memory.
pub const BITMAPS_RECORDING_BYTES_MAX: u64 = 4 << 30;
/// Most bytes of bitmap tables that a writable open reads: ours. They stand for 512 GiB of bits in clusters of 64 KiB.
pub const BITMAP_TABLE_BYTES_READ_MAX: u64 = 64 << 20;
/// Granularity of a persistent bitmap in bits of an address: 512 bytes to 2 GiB of the disk per bit (QEMU's range).
pub const BITMAP_GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
/// Longest name of a persistent bitmap in bytes (QEMU's `BME_MAX_NAME_SIZE`).
pub const BITMAP_NAME_BYTES_MAX: u16 = 1023;
/// Longest backing file name in bytes (specification).
pub const BACKING_NAME_BYTES_MAX: u32 = 1023;
/// Longest backing format name in bytes (QEMU's buffer).
pub const BACKING_FORMAT_BYTES_MAX: usize = 15;
/// Most header extensions of one image: ours; real images have fewer than ten.
pub const HEADER_EXTENSION_COUNT_MAX: usize = 64;
/// Host offsets fit bits 0 to 55 of a table entry (specification).
pub const HOST_OFFSET_BITS: u32 = 56;
/// Longest backing chain, the top layer included: ours; deeper chains cost memory and time on each read.
pub const CHAIN_DEPTH_MAX: usize = 64;
/// Metadata is cached, loaded and written in slices of at most this many bytes.
pub const SLICE_BYTES_MAX: u64 = 4096;
/// Durable unit of a metadata write: no disk tears a sector, so no table entry is ever torn.
pub const SECTOR_BYTES: u64 = 512;
/// Clusters whose L2 entries are kept in memory by default, those of smaller disks all: 256 GiB in clusters of 64 KiB. That
/// is 32 MiB, as in QEMU on Linux, or 64 MiB with extended entries, which would reach half as far in the same memory.
pub const L2_CACHE_CLUSTERS_DEFAULT: u64 = 4 << 20;
/// Default bytes of refcount slices that are kept in memory.
pub const REFCOUNT_CACHE_BYTES_DEFAULT: u64 = 8 << 20;
/// Most bytes of decompressed clusters that an image keeps in memory for small reads: ours; at least one cluster of 2 MiB.
pub const DECODED_CACHE_BYTES_MAX: usize = 8 << 20;
/// Bytes from a cluster's start on that the first read of a compressed cluster unpacks at least: ours.
pub const DECODED_BYTES_MIN: usize = 4096;
/// Smallest cluster, in bytes, that is handed to another thread to be unpacked where there are such threads: ours.
pub const UNPACKED_ELSEWHERE_MIN: usize = 16 << 10;
/// Largest request that the engine takes in one piece; larger ones are the caller's to split.
pub const REQUEST_BYTES_MAX: u64 = 1 << 30;
/// Pieces of one request or flush that are under way at the same time: more only cost memory.
pub const IN_FLIGHT_MAX: usize = 64;
/// Records that a redo log has room for by default: ours. Half of them may wait for a flush that nobody asked for, which is
/// 512 MiB of first writes to clusters of 64 KiB here and there.
pub const REDO_RECORDS_DEFAULT: u64 = 16_384;
/// Most clusters that the records of a redo log stand for, and so most that a replay holds in memory: ours.
pub const REDO_CLUSTERS_MAX: u64 = 1 << 20;
/// Longest passphrase in bytes: ours.
pub const PASSPHRASE_BYTES_MAX: usize = 64 << 10;
/// Most key slots that a passphrase remembers what they gave: ours; those of eight images with all slots in use.
pub const REMEMBERED_SLOTS_MAX: usize = 64;
/// Most bytes of a LUKS header with all its key slots: ours; QEMU and cryptsetup make 2 MiB of them.
pub const LUKS_HEADER_BYTES_MAX: u64 = 4 << 20;
/// Most rounds of PBKDF2 that a key slot or the digest of the master key may ask for: ours; ten seconds or more.
pub const PBKDF2_ITERATIONS_MAX: u32 = 1 << 26;
/// Most HMACs that one passphrase is tried with on all key slots together: ours; a minute or less. Eight slots of two
/// seconds each, as QEMU makes them, ask for less on the machine that made them.
pub const UNLOCK_WORK_MAX: u64 = 1 << 28;
/// Most memory in KiB that a key slot of an authenticated image may ask for: ours; sixteen times what is made here.
pub const ARGON_MEMORY_KIB_MAX: u32 = 1 << 20;
/// Most passes over that memory: ours; in 64 MiB, a few seconds.
pub const ARGON_PASSES_MAX: u32 = 64;
/// Most lanes in that memory: ours, and RFC 9106's recommendation. They are computed one after the other.
pub const ARGON_LANES_MAX: u32 = 4;
/// Most KiB, times passes, that one passphrase is tried with on all key slots of an authenticated image together: ours; a
/// minute or two. Eight slots in 64 MiB with all passes there may be ask for half of it.
pub const ARGON_WORK_MAX: u64 = 1 << 26;
/// Smallest cluster of an authenticated image: a block.
pub const SEALED_CLUSTER_BITS_MIN: u32 = 12;
/// Largest cluster of an authenticated image: ours. Each write, however small, writes a whole one.
pub const SEALED_CLUSTER_BITS_MAX: u32 = 16;
/// Largest disk of an authenticated image in bytes: ours; no sum of an offset and a length in it is too large for a number.
pub const SEALED_DISK_BYTES_MAX: u64 = 1 << 62;
/// Largest file of an authenticated image in bytes: ours, and more than most file systems take. What is known of its blocks
/// takes 32 MiB of memory at least in a file of that length, however sparse it is.
pub const SEALED_FILE_BYTES_MAX: u64 = 1 << 48;
/// Newest root that an image can have: ours. With one each nanosecond it would be reached after 146 years.
pub const SEALED_GENERATION_MAX: u64 = 1 << 62;
/// Most bytes of what a root names beside its tree, details or a map of blocks: ours. A map of that size is one of 16 TiB.
pub const SEALED_BLOB_BYTES_MAX: u64 = 512 << 20;
/// Nodes that are kept in memory of an authenticated image by default, those of changes that are not durable yet beside them:
/// ours; 16,384 of them are 72 MiB and cover 16 GiB in clusters of 16 KiB.
pub const SEALED_NODES_DEFAULT: usize = 16_384;
/// Changed nodes after which an authenticated image is flushed although nobody asked for it: ours.
pub const SEALED_DIRTY_NODES_MAX: usize = 4096;
/// Blocks that wait to become free after which an authenticated image is flushed although nobody asked for it: ours; 1 GiB.
pub const SEALED_PENDING_BLOCKS_MAX: u64 = 1 << 18;
