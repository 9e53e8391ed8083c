//! Micro-benchmarks of what a request passes on the CPU: the looks at the metadata, the counters that queues share, the
//! unpacking of a cluster, the encryption of a page, and the sealing of parts of authenticated images. `cargo bench -p benches --bench hot`.
//!
//! Columns of `threads` show what sharing costs: as many threads as are named do the same to one image.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use divan::Bencher;
use divan::counter::BytesCount;
use qcow::addr::{Geometry, GuestCluster, GuestOffset, HostOffset, SliceKey};
use qcow::codec::{Compressor, Decompressor, Level};
use qcow::crypt::seal::{DataKey, ImageId, Label, SealKind, Sealer};
use qcow::crypt::{CipherSpec, SectorCipher};
use qcow::format::compression::CompressionType;
use qcow::format::entry::L1Entry;
use qcow::meta::Meta;
use qcow::meta::alloc::Allocator;
use qcow::meta::drain::Drain;
use qcow::meta::lookaside::Right;
use qcow::meta::map::Map;
use qcow::meta::refs::Refcounts;
use qcow::meta::table::WordTable;
use qcow::sync::lock;

/// Bytes of the disk: all of it mapped, and all of the mapping in memory.
const DISK_LEN: u64 = 8 << 30;
/// Bytes of the disk whose places are known without a look at the mapping.
const KNOWN_LEN: u64 = 4 << 30;
/// Bytes of a request.
const BLOCK_LEN: u64 = 4096;
/// Bytes of a cluster.
const CLUSTER_LEN: usize = 64 << 10;
/// COPIED, the top bit of an entry.
const COPIED: u64 = 1 << 63;
const CACHE_BYTES: u64 = 32 << 20;
const THREADS: [usize; 3] = [1, 2, 16];

fn main() {
    divan::main();
}

/// What a read of 4 KiB of an encrypted disk adds.
#[divan::bench]
fn decrypt_page(bencher: Bencher<'_, '_>) {
    let cipher = SectorCipher::new(CipherSpec::DEFAULT, &[7; 64]);
    let mut page = [0; BLOCK_LEN as usize];
    let bencher = bencher.counter(BytesCount::new(page.len()));
    bencher.bench_local(|| cipher.decrypt(next_place().get(), &mut page));
}

/// What a write of 4 KiB of an encrypted disk adds.
#[divan::bench]
fn encrypt_page(bencher: Bencher<'_, '_>) {
    let cipher = SectorCipher::new(CipherSpec::DEFAULT, &[7; 64]);
    let mut page = [0; BLOCK_LEN as usize];
    let bencher = bencher.counter(BytesCount::new(page.len()));
    bencher.bench_local(|| cipher.encrypt(next_place().get(), &mut page));
}

/// Parts of authenticated images: a node, and a cluster.
const PARTS: [(SealKind, usize); 4] = [
    (SealKind::Crc32c, 4 << 10),
    (SealKind::Crc32c, 16 << 10),
    (SealKind::Aes256Gcm, 4 << 10),
    (SealKind::Aes256Gcm, 16 << 10),
];

fn sealer(kind: SealKind) -> Sealer {
    match kind {
        SealKind::Crc32c => Sealer::crc32c(ImageId::random()),
        SealKind::Aes256Gcm => Sealer::aes_256_gcm(ImageId::random(), &DataKey::random()),
    }
}

/// What a write to an authenticated image adds for each part.
#[divan::bench(args = PARTS)]
fn seal(bencher: Bencher<'_, '_>, (kind, len): (SealKind, usize)) {
    let (sealer, mut bytes) = (sealer(kind), vec![7; len]);
    let label = Label { level: 0, index: 0, len: len as u32 };
    bencher.counter(BytesCount::new(len)).bench_local(|| sealer.seal(label, &mut bytes));
}

/// What a read of one adds. What is opened is sealed bytes again each time, for the time a copy takes.
#[divan::bench(args = PARTS)]
fn open(bencher: Bencher<'_, '_>, (kind, len): (SealKind, usize)) {
    let (sealer, mut sealed) = (sealer(kind), vec![7; len]);
    let label = Label { level: 0, index: 0, len: len as u32 };
    let seal = sealer.seal(label, &mut sealed);
    let mut bytes = sealed.clone();
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        bytes.copy_from_slice(&sealed);
        assert!(sealer.open(label, &seal, &mut bytes));
    });
}

/// What these compare with, beside the encryption of a page.
#[divan::bench(args = [4 << 10, 16 << 10])]
fn copy(bencher: Bencher<'_, '_>, len: usize) {
    let (from, mut to) = (vec![7_u8; len], vec![0; len]);
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        to.copy_from_slice(&from);
        divan::black_box(&mut to);
    });
}

/// What a read asks.
#[divan::bench(threads = THREADS)]
fn resolve(bencher: Bencher<'_, '_>) {
    let meta = Mutex::new(mapped());
    bencher.bench(|| {
        let at = next_place();
        lock(&meta).map.resolve(at, BLOCK_LEN).expect("in memory").expect("sound")
    });
}

/// What a read or an overwrite asks first, of places that are known.
#[divan::bench(threads = THREADS)]
fn find_known_place(bencher: Bencher<'_, '_>) {
    let mut meta = mapped();
    for cluster in 0..KNOWN_LEN / CLUSTER_LEN as u64 {
        let at = geometry().guest_start(GuestCluster::new(cluster));
        meta.plan_write(geometry(), at, BLOCK_LEN).expect("in memory").expect("sound");
    }
    let lookaside = Arc::clone(meta.map.lookaside());
    bencher.bench(|| {
        let at = GuestOffset::new(next_place().get() % KNOWN_LEN);
        lookaside.find(geometry().guest_cluster(at), Right::Write).expect("known")
    });
}

/// What an overwrite asks.
#[divan::bench(threads = THREADS)]
fn plan_overwrite(bencher: Bencher<'_, '_>) {
    let meta = Mutex::new(mapped());
    bencher.bench(|| {
        let at = next_place();
        lock(&meta).plan_write(geometry(), at, BLOCK_LEN).expect("in memory").expect("sound")
    });
}

/// Counting a request in and out.
#[divan::bench(threads = THREADS)]
fn enter_and_leave(bencher: Bencher<'_, '_>) {
    let drain = Drain::default();
    bencher.bench(|| drop(divan::black_box(drain.enter())));
}

/// A whole cluster, as for a second read of it.
#[divan::bench(args = [CompressionType::Deflate, CompressionType::Zstd])]
fn unpack(bencher: Bencher<'_, '_>, compression: CompressionType) {
    unpack_start(bencher, compression, CLUSTER_LEN);
}

/// The first block of a cluster, as for a first read.
#[divan::bench(args = [CompressionType::Deflate, CompressionType::Zstd])]
fn unpack_a_block(bencher: Bencher<'_, '_>, compression: CompressionType) {
    unpack_start(bencher, compression, BLOCK_LEN as usize);
}

fn unpack_start(bencher: Bencher<'_, '_>, compression: CompressionType, len: usize) {
    let (mut packed, mut cluster) = (Vec::new(), text());
    let level = Level::default_of(compression);
    Compressor::new().compress(compression, level, &cluster, &mut packed).expect("memory");
    let mut decompressor = Decompressor::new();
    bencher.bench_local(|| {
        decompressor.decompress_start(compression, &packed, &mut cluster, len).expect("sound")
    });
}

fn geometry() -> Geometry {
    Geometry::new(CLUSTER_LEN.trailing_zeros(), 4)
}

/// The metadata of an image: header, L1 table, refcount table, L2 tables, and then the guest clusters in their order.
fn mapped() -> Meta {
    let geometry = geometry();
    let tables = geometry.l1_entries_for(DISK_LEN);
    let table = |index: u64| geometry.host_cluster(HostOffset::new((3 + index) << 16));
    let l1 = (0..tables).map(|index| L1Entry::to_table(geometry, table(index), true).0).collect();
    let l1 = WordTable::new(HostOffset::new(1 << 16), l1);
    let mut map = Map::new(geometry, true, l1, CACHE_BYTES);
    let first_data = (3 + tables) << 16;
    let (parts, entries) = (geometry.slices_per_table(), geometry.l2_entries_per_slice());
    for slice in 0..tables * u64::from(parts) {
        let (index, part) = (slice / u64::from(parts), slice % u64::from(parts));
        let key = SliceKey { table: table(index), index: part as u32 };
        let place = |i: u64| (first_data + ((slice * entries + i) << 16)) | COPIED;
        let bytes = (0..entries).flat_map(|i| place(i).to_be_bytes()).collect();
        map.slices_mut().begin_load(key);
        map.slices_mut().finish_load(key, Some(bytes));
    }
    let counts = WordTable::new(HostOffset::new(2 << 16), Vec::new());
    let refs = Refcounts::new(geometry, counts, CACHE_BYTES).expect("an empty table");
    let mut meta = Meta::new(map, refs, Allocator::new(geometry, first_data + DISK_LEN));
    meta.map_regions(geometry).expect("nothing overlaps");
    meta
}

/// A block of the disk, another one each time.
fn next_place() -> GuestOffset {
    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0x9e37_79b9_7f4a_7c15) };
    }
    let mut x = STATE.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    STATE.set(x);
    GuestOffset::new(x % (DISK_LEN / BLOCK_LEN) * BLOCK_LEN)
}

/// A cluster that packs to about a third.
fn text() -> Vec<u8> {
    let mut state = 1_u32;
    let byte = |at: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if at % 16 < 5 { (state >> 24) as u8 } else { b"of a cluster "[at % 13] }
    };
    (0..CLUSTER_LEN).map(byte).collect()
}
